"""Features of frozen backbones: their specification, the forward pass and the cache."""
