"""prefopt: the audited zoo of preference-optimization algorithms for language models."""

__version__ = "0.1.0"
