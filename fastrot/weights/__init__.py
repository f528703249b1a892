"""Weights of runs and of other libraries."""
