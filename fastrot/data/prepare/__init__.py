"""Conversion of data sets to .beton files."""
