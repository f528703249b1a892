"""Rotation pretraining, from the request to the last step."""
