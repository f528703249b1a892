"""Detection and instance segmentation on torchvision's parts."""
