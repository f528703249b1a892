"""Measurements of several ranks: the link between them, and predictions compared with real runs."""
