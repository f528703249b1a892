"""Weights from runs and from other libraries."""
