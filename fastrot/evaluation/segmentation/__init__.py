"""Semantic segmentation: mean intersection over union."""
