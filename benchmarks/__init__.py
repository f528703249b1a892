"""Benchmarks, on the same code path as training."""
