"""What a run leaves and tells: its folder, checkpoints, logs and messages."""
