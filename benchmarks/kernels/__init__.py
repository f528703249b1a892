"""Benchmarks of the kernels: every implementation beside its reference."""
