"""How many images the data sets of the benchmarks have. Imports no torch."""

from __future__ import annotations

SIZES = {
    ("voc07", "trainval"): 5011,
    ("voc07", "test"): 4952,
    ("voc07", "train"): 2501,
    ("voc07", "val"): 2510,
    ("imagenet", "train"): 1281167,
    ("imagenet", "val"): 50000,
    ("places205", "train"): 2448873,
    ("places205", "val"): 20500,
    ("inat18", "train"): 437513,
    ("inat18", "val"): 24426,
    ("cifar", "train"): 50000,
    ("cifar", "test"): 10000,
}
"""Images by kind and split, as the pages of the data sets state them."""


def size_note(kind: str, split: str, count: int) -> str | None:
    """What to say beside scores if a split is not the whole one that a benchmark uses.

    Args:
        kind: ``voc07``, ``imagenet`` ...; others have no known size.
        split: of it.
        count: images that there are.

    Returns:
        One line; None where the split is whole, or its size not known.

    Example:
        >>> size_note("voc07", "test", 115)
        '115 images, but voc07 test has 4,952: scores are not comparable with published ones'
    """
    genuine = SIZES.get((kind, split))
    if genuine is None or count == genuine:
        return None
    return (
        f"{count:,} images, but {kind} {split} has {genuine:,}: scores are not comparable with "
        "published ones"
    )
