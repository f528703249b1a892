"""``fastrot report``: one self-contained page about a run, from what its folder holds."""
