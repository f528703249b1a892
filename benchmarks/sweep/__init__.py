"""Grids of measurements: cells, jobs, records."""
