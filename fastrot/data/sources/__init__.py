"""Datasets in their published layouts: folders, lists and annotations."""
