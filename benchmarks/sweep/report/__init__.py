"""The report of a sweep: tables, charts, and the comparison with a baseline."""
