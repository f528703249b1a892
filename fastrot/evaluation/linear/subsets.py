"""Balanced shares of the labels, such as the 1 % and 10 % of the semi-supervised protocols.

The published numbers are from fine-tuning the whole network; a probe on frozen features with the
same share of labels is a different, cheaper measurement, and its scores say so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrot.data.sampling.philox import Stream, philox_u64


def balanced_subset(labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.int64]:
    """Return ids of equally many samples per class, increasing, of shape (m,), int64.

    Each class gets ``share * n / classes`` samples, rounded, at least one and at most all it has.
    A pure function of its arguments; a smaller share is a subset of a larger one.

    Args:
        labels: of shape (n,), int64, not negative.
        share: fraction of the samples, in (0, 1].
        seed: 64-bit key.

    Example:
        >>> balanced_subset(np.arange(100) % 10, 0.2, seed=0).size
        20
    """
    classes, sizes = np.unique(labels, return_counts=True)
    each = max(1, round(share * len(labels) / len(classes)))
    keys = philox_u64(seed, 0, np.arange(len(labels)), Stream.SUBSET)
    order = np.lexsort((keys, labels))  # by class, and within it as if shuffled
    starts = np.cumsum(sizes) - sizes
    rank = np.arange(len(labels)) - np.repeat(starts, sizes)
    return np.sort(order[rank < each]).astype(np.int64)


def describe_subset(
    labels: NDArray[np.int64], ids: NDArray[np.int64], share: float, seed: int
) -> dict[str, Any]:
    """Return what a score records about its labels: how many, and what it must not be taken for."""
    counts = np.unique(labels[ids], return_counts=True)[1]
    return {
        "share": share,
        "seed": seed,
        "images": len(ids),
        "images_a_class": [int(counts.min()), int(counts.max())],
        "label": f"frozen-feature probe on {100 * share:g} % of the labels; the published "
        "semi-supervised numbers fine-tune the whole network",
    }
