"""Benchmarks of loading and converting datasets."""
