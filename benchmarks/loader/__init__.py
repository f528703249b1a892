"""Benchmarks of loading and converting data sets."""
