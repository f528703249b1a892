"""Images to normalised, turned views."""
