"""Log-probs of the reference, computed once and kept on disk."""
