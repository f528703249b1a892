"""Benchmarks that run the same code as training."""
