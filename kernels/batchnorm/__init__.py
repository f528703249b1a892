"""Batch normalisation with what follows it: ReLU, or the sum of a residual block and ReLU."""
