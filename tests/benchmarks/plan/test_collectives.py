"""Collectives: values by hand, a simulation that knows no formula, and the laws they obey."""

from __future__ import annotations

import itertools

import pytest

from fastrot.benchmarks.plan.collectives import (
    Fabric,
    Link,
    all_gather,
    all_reduce,
    ring,
    tree,
)

LINK, SLOW = Link(2e-6, 100e9), Link(10e-6, 10e9)
CLUSTER = Fabric(LINK, SLOW, 8)


def test_a_ring_inside_of_a_node_by_hand() -> None:
    found = ring(8, 80e6, CLUSTER)
    assert found.seconds == pytest.approx(14 * 2e-6 + 140e6 / 100e9)
    assert (found.rank_bytes, found.node_bytes) == (140e6, 0.0)


def test_a_ring_over_nodes_by_hand() -> None:
    found = ring(16, 80e6, CLUSTER)  # 30 hops, four of them between the two nodes
    assert found.seconds == pytest.approx(26 * 2e-6 + 4 * 10e-6 + 150e6 / 10e9)
    assert found.node_bytes == 150e6


def test_a_ring_of_one_gpu_a_node_has_no_link_inside() -> None:
    assert ring(4, 80e6, Fabric(LINK, SLOW, 1)).seconds == pytest.approx(6 * 10e-6 + 120e6 / 10e9)


def test_a_tree_by_hand() -> None:
    assert tree(8, 80e6, CLUSTER).seconds == pytest.approx(14 * 2e-6 + 160e6 / 100e9)
    # 128 nodes: seven levels, up and down.
    found = tree(1024, 80e6, CLUSTER)
    assert found.seconds == pytest.approx(14 * 2e-6 + 14 * 10e-6 + 160e6 / 10e9)


def test_the_fastest_is_taken() -> None:
    assert all_reduce(8, 100e6, CLUSTER).algorithm == "ring"
    assert all_reduce(1024, 4, CLUSTER).algorithm == "tree"
    for world, nbytes in itertools.product((2, 8, 12, 64, 1000), (4, 1e5, 1e8)):
        both = (ring(world, nbytes, CLUSTER), tree(world, nbytes, CLUSTER))
        found = all_reduce(world, nbytes, CLUSTER)
        assert found in both and found.seconds == min(each.seconds for each in both)


def test_one_rank_sends_nothing() -> None:
    assert all_reduce(1, 1e9, CLUSTER).seconds == 0 == all_gather(1, 1e9, CLUSTER).seconds


def simulated_ring(nbytes: float, hops: list[Link]) -> float:
    """Pass chunks around, message by message; ``hops[r]`` leads from rank r to the next.

    A rank may send in round s once the chunk of round s - 1 has arrived and its link is free
    again; a link is busy for as long as the bytes take, and they arrive a latency later.
    """
    n = len(hops)
    arrived, free = [0.0] * n, [0.0] * n
    for _ in range(2 * (n - 1)):
        after = [0.0] * n
        for rank, link in enumerate(hops):
            begin = max(arrived[rank], free[rank])
            free[rank] = begin + nbytes / n / link.bandwidth
            after[(rank + 1) % n] = free[rank] + link.latency
        arrived = after
    return max(arrived)


@pytest.mark.parametrize("world", [2, 3, 8])
@pytest.mark.parametrize("nbytes", [4.0, 1e6, 1e9])
def test_a_ring_takes_as_long_as_its_messages(world: int, nbytes: float) -> None:
    expected = simulated_ring(nbytes, [LINK] * world)
    assert ring(world, nbytes, CLUSTER).seconds == pytest.approx(expected)


@pytest.mark.parametrize("nodes", [2, 4, 16])
@pytest.mark.parametrize("nbytes", [4.0, 1e6, 1e9])
def test_a_ring_over_nodes_takes_about_as_long_as_its_messages(nodes: int, nbytes: float) -> None:
    """The model adds what the latencies and the bytes take, of which the larger part counts.

    So it is an upper bound; close to it where one of the two is small, never twice as much.
    """
    expected = simulated_ring(nbytes, ([LINK] * 7 + [SLOW]) * nodes)
    ratio = ring(8 * nodes, nbytes, CLUSTER).seconds / expected
    assert 1.0 <= ratio < (2.0 if nbytes == 1e6 else 1.15)


@pytest.mark.parametrize("world", [2, 8, 16, 60, 1024])
def test_a_faster_link_is_never_slower(world: int) -> None:
    for nbytes, wide in itertools.product((4, 1e6, 1e9), (1.0, 1.5, 8.0)):
        slow = all_reduce(world, nbytes, CLUSTER).seconds
        for faster in (
            Fabric(Link(2e-6, wide * 100e9), SLOW, 8),
            Fabric(LINK, Link(10e-6, wide * 10e9), 8),
            Fabric(Link(2e-6 / wide, 100e9), Link(10e-6 / wide, 10e9), 8),
        ):
            assert all_reduce(world, nbytes, faster).seconds <= slow


def test_gathering_by_hand() -> None:
    assert all_gather(4, 1e6, CLUSTER).seconds == pytest.approx(3 * 2e-6 + 3e6 / 100e9)
    assert all_gather(16, 1e6, CLUSTER).seconds == pytest.approx(
        13 * 2e-6 + 2 * 10e-6 + 15e6 / 10e9
    )
