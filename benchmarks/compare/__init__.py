"""Interleaved rounds of competitors, each in its own process."""
