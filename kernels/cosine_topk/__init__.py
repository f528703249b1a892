"""Nearest rows by cosine similarity, exactly."""
