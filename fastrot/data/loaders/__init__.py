"""Loaders: each fills batches with pixels; order and crops come from the sampler."""
