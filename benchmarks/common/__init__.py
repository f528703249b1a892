"""Code shared by all benchmarks: rounds and records, rooflines, the speed of the machine."""
