"""Networks, their layers and their arithmetic precision."""
