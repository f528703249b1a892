"""Image files: type detection, headers and decoding."""
