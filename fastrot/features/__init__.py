"""Features of frozen backbones: what is extracted, the forward pass, and the cache."""
