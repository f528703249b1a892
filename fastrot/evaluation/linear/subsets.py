"""Balanced shares of the labels: 1 % and 10 % of the semi-supervised protocols.

The published numbers of these fine-tune the whole network; a probe on frozen features that uses
the same share of labels is another, cheaper measurement, and its scores say so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrot.data.sampling.philox import Stream, philox_u64


def balanced_subset(labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.int64]:
    """Ids of the same number of samples of every class, increasing, of shape (m,), int64.

    A class has ``share * n / classes`` of them, rounded, at least one and at most all that it
    has. A pure function of its arguments; a smaller share is a subset of a larger one.

    Args:
        labels: of shape (n,), int64, not negative.
        share: of the samples, in (0, 1].
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
    """What a score says about the labels it used: how many, and what that is not."""
    counts = np.unique(labels[ids], return_counts=True)[1]
    return {
        "share": share,
        "seed": seed,
        "images": len(ids),
        "images_a_class": [int(counts.min()), int(counts.max())],
        "label": f"frozen-feature probe on {100 * share:g} % of the labels; the published "
        "semi-supervised numbers fine-tune the whole network",
    }
