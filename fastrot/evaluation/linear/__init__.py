"""Linear probes on cached features and on images."""
