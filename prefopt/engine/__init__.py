"""One engine for all methods: scores records and samples completions, with any causal language model."""
