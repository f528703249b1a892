"""Data sets as they are published: folders, lists and annotations."""
