"""tfusion: train Transfusion models (arXiv 2408.11039) with JAX."""

__version__ = "0.1.0"
