"""Processes that train together: their ranks, start, rendezvous and failures."""
