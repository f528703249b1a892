"""Interleaved rounds of competitors, each in a process of its own."""
