"""Loaders fill batches with pixels; ids, boxes, flips and turns come from sampling."""
