"""What a run on many GPUs will take, predicted from what one GPU was measured to do."""
