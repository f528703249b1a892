"""Weights for other libraries, with a model card."""
