"""Measurements of several ranks: the link between them, and predictions held against real runs."""
