"""Latency and bandwidth of a link, fitted to measured all-reduces."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fastrot.plan.allreduce import Link


def fit_link(times: Mapping[int, float], *, ranks: int, nodes: int = 1) -> tuple[Link, float]:
    """The link whose ring explains the times best.

    Relative errors are made small, so that a small message counts as much as a large one. With
    several nodes all of it is put down to the links between them.

    Args:
        times: seconds of an all-reduce by its bytes; two sizes at least.
        ranks: that took part, two at least.
        nodes: that they ran on.

    Returns:
        The link; and the median relative error of the fit over the sizes.

    Example:
        >>> times = {size: 2 * 5e-6 + size / 1e9 for size in (1_000, 1_000_000)}
        >>> fit_link(times, ranks=2)[0]
        Link(latency=5e-06, bandwidth=1000000000.0)
    """
    hops = 2 * (ranks - 1) if nodes == 1 else min(2 * nodes, 2 * (ranks - 1))
    sizes = np.array(list(times), dtype=float)
    seconds = np.array(list(times.values()), dtype=float)
    sent = 2 * (ranks - 1) / ranks * sizes
    terms = np.stack([np.full_like(sent, hops), sent], axis=1) / seconds[:, None]
    (latency, per_byte), *_ = np.linalg.lstsq(terms, np.ones_like(sent), rcond=None)
    latency = max(float(latency), 0.0)  # noise may make the intercept negative
    if per_byte <= 0:  # nothing but latency was seen
        per_byte = float(np.min(seconds / sent))
    fitted = latency * hops + per_byte * sent
    error = float(np.median(np.abs(fitted / seconds - 1)))
    return Link(float(f"{latency:.6g}"), float(f"{1 / per_byte:.6g}")), error
