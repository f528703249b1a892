"""Self-contained pages: the page about a run, and the charts and HTML that benchmarks share."""
