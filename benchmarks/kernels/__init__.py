"""Benchmarks of the kernels: compare every implementation with its reference."""
