"""Benchmarks of loading and of converting data sets."""
