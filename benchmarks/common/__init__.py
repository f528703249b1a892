"""What every benchmark uses: rounds and records, rooflines, what this machine can do."""
