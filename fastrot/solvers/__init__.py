"""Mathematics on arrays: no model, no loader, no files."""
