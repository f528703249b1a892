"""What a run writes and reports: its folder, checkpoints, logs and messages."""
