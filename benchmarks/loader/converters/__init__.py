"""The competitors of ``fastrot bench loader --what prepare``: a delivery is a whole conversion."""
