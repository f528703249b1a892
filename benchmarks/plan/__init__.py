"""Predictions of the time that a run takes on many GPUs, from measurements of one GPU."""
