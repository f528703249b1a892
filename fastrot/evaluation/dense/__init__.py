"""What detection and segmentation share: stages, batches, training."""
