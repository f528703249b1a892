"""The published protocols: what is measured, with which settings."""
