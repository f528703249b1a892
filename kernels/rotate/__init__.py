"""Normalised, rotated views of images."""
