"""Compute kernels, one folder an operation; this package imports nothing of fastrot."""
