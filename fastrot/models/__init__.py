"""Backbones, their layers, and their arithmetic precision."""
