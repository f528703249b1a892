"""Benchmarks of the solvers beside the libraries that solve the same problems."""
