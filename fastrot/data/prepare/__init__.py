"""Conversion of datasets to .beton files."""
