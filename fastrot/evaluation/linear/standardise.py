"""Features of one layer, standardised as by the probes' batch norm.

Shapes: m samples, C channels, g rows of the pooled map, D = C g^2 features.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fastrot.features.cache import FeatureCache

EPSILON = 1e-5  # of batch norm


class ChannelStatistics(NamedTuple):
    """Statistics of every channel over samples and positions, each of shape (C,), float64.

    Attributes:
        mean: mean of the values.
        variance: variance with the count minus one as divisor, as in batch norm's running variance.
    """

    mean: torch.Tensor
    variance: torch.Tensor


def read_rows(cache: FeatureCache, layer: str, ids: NDArray[np.int64]) -> torch.Tensor:
    """Read features of some samples, of shape (m, D), float32; with crops, those of the first.

    Raises:
        UsageError: there is no such layer.
        BadDataError: its file is damaged.
    """
    features = cache.features(layer)
    rows = features[ids, 0] if cache.crops else features[ids]
    return torch.from_numpy(rows.astype(np.float32))


def channel_statistics(rows: torch.Tensor, channels: int) -> ChannelStatistics:
    """Return the statistics of rows of shape (m, D), channel-major."""
    values = rows.view(len(rows), channels, -1)
    count = values.shape[0] * values.shape[2]
    mean = values.mean(dim=(0, 2), dtype=torch.float64)
    squares = (values - mean.float()[:, None]).square().sum(dim=(0, 2), dtype=torch.float64)
    return ChannelStatistics(mean, squares / max(1, count - 1))


def standardise(rows: torch.Tensor, statistics: ChannelStatistics) -> torch.Tensor:
    """Compute (rows - mean) / sqrt(variance + 1e-5) per channel, in place, of shape (m, D)."""
    values = rows.view(len(rows), len(statistics.mean), -1)
    values -= statistics.mean.to(values)[:, None]
    values *= (statistics.variance + EPSILON).rsqrt().to(values)[:, None]
    return rows
