"""Figures of a model: held-out log-probs, texts, KL, judges, tasks."""
