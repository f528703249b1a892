"""Several processes that train together: who they are, how they start, meet and fail."""
