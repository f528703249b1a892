"""Competitors of ``fastrot bench loader --what prepare``: each delivery is a whole conversion."""
