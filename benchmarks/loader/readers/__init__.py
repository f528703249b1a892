"""Competitors of ``fastrot bench loader``, one file each, in the fastest configuration found."""
