"""Image files: what type they are, their headers, and decoding."""
