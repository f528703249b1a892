"""``fastrot report``: one self-contained page about a run or a sweep, out of its folder."""
