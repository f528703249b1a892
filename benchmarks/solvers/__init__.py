"""Benchmarks of the solvers against libraries that solve the same problems."""
