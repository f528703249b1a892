"""Batch normalisation fused with what follows it: ReLU, or a residual addition and ReLU."""
