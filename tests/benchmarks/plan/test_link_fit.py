"""A link is found again from the times that it gives."""

from __future__ import annotations

import numpy as np
import pytest

from fastrot.benchmarks.plan.collectives import Fabric, Link, ring
from fastrot.benchmarks.plan.links import fit_link

SIZES = (1_000, 30_000, 1_000_000, 30_000_000)


@pytest.mark.parametrize(("ranks", "nodes"), [(2, 1), (8, 1), (4, 4)])
def test_the_link_behind_exact_times(ranks: int, nodes: int) -> None:
    link = Link(7e-6, 12e9)
    fabric = Fabric(link, link, ranks // nodes)
    times = {size: ring(ranks, size, fabric).seconds for size in SIZES}
    found, error = fit_link(times, ranks=ranks, nodes=nodes)
    assert found.latency == pytest.approx(link.latency, rel=1e-4)
    assert found.bandwidth == pytest.approx(link.bandwidth, rel=1e-4)
    assert error < 1e-4


def test_noise_moves_it_little_and_shows_in_the_error() -> None:
    link = Link(50e-6, 2e9)
    rng = np.random.default_rng(0)
    times = {
        size: ring(2, size, Fabric(link, link)).seconds * float(rng.uniform(0.9, 1.1))
        for size in np.geomspace(1e3, 1e8, 20).astype(int).tolist()
    }
    found, error = fit_link(times, ranks=2)
    assert found.bandwidth == pytest.approx(link.bandwidth, rel=0.1)
    assert found.latency == pytest.approx(link.latency, rel=0.1)
    assert 0.01 < error < 0.1


def test_a_latency_is_never_negative() -> None:
    found, _ = fit_link({1_000: 1e-7, 1_000_000: 1e-3, 2_000_000: 3e-3}, ranks=2)
    assert found.latency >= 0 < found.bandwidth
