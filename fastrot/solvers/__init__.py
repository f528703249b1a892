"""Solvers: mathematics on arrays, without models, loaders or files."""
