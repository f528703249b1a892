"""Detection and instance segmentation: predictions and their average precision."""
