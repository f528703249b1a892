"""Rotation pretraining, from a request to the last step."""
