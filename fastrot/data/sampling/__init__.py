"""Which samples a step takes, and how they are cropped, flipped and turned."""
