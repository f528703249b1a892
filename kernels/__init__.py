"""Compute kernels, one folder per operation; this package imports nothing else from fastrot."""
