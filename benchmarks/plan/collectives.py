"""Duration of collectives: hops times latency plus bytes over bandwidth (Hockney's model).

With n ranks on m nodes of k ranks each, an all-reduce of B bytes takes

- as a ring: 2 (n - 1) hops, 2 m of them between nodes; every rank sends 2 (n - 1) / n B bytes,
  which is the minimum (Patarasuk and Yuan, 2009).
- as a tree: a chain inside each node and two binary trees between the nodes, up and down:
  2 (k - 1) hops inside, 2 log2(m) between; every rank sends 2 B bytes (Sanders, Speck and Traeff,
  "Two-tree algorithms for full bandwidth broadcast, reduction and scan", 2009).

NCCL estimates the time of each algorithm in this way and uses the fastest (``tuning.cc``); so does
``all_reduce``. Units: seconds, bytes, bytes/s in one direction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """Link between two neighbours: latency per hop in seconds, bandwidth of one end in bytes/s."""

    latency: float
    bandwidth: float


@dataclass(frozen=True)
class Fabric:
    """Links between ranks: between GPUs inside a node, and between nodes (all adapters of one)."""

    inside: Link
    between: Link
    gpus_per_node: int = 8

    def nodes(self, world: int) -> int:
        """Return how many nodes hold this many ranks; the last one may not be full."""
        return math.ceil(world / self.gpus_per_node)


@dataclass(frozen=True)
class Collective:
    """Cost of a collective: its time, and the bytes that each rank and each node send to others."""

    algorithm: str  # ``none`` (one rank), ``ring`` or ``tree``
    seconds: float = 0.0
    rank_bytes: float = 0.0
    node_bytes: float = 0.0


def ring(world: int, nbytes: float, fabric: Fabric, *, rounds: int = 2) -> Collective:
    """Return the cost of two rounds of a ring that visits node after node: an all-reduce."""
    nodes, hops = fabric.nodes(world), rounds * (world - 1)
    between = min(rounds * nodes, hops) if nodes > 1 else 0
    return _cost("ring", world, fabric, hops - between, between, hops / world * nbytes)


def tree(world: int, nbytes: float, fabric: Fabric) -> Collective:
    """Return the cost of an all-reduce along chains inside the nodes and trees between them."""
    inside = 2 * (min(world, fabric.gpus_per_node) - 1)
    between = 2 * math.ceil(math.log2(fabric.nodes(world)))
    return _cost("tree", world, fabric, inside, between, 2 * nbytes)


def all_reduce(world: int, nbytes: float, fabric: Fabric) -> Collective:
    """Return the cost of the faster all-reduce of ``nbytes``, the buffer that every rank holds.

    Example:
        >>> one_node = Fabric(Link(5e-6, 100e9), Link(5e-6, 100e9))
        >>> round(1e3 * all_reduce(8, 100e6, one_node).seconds, 3)
        1.82
    """
    if world == 1:
        return Collective("none")
    found = ring(world, nbytes, fabric), tree(world, nbytes, fabric)
    return min(found, key=lambda each: each.seconds)


def all_gather(world: int, nbytes: float, fabric: Fabric) -> Collective:
    """Return the cost of an all-gather of ``nbytes`` from each rank, one round of a ring."""
    return ring(world, world * nbytes, fabric, rounds=1) if world > 1 else Collective("none")


def measured_link(times: Mapping[int, float], *, ranks: int, nodes: int = 1) -> Link:
    """Return the link that explains the measured times of all-reduces, in seconds, by bytes.

    The smallest buffer gives the latency, the largest the bandwidth. With several nodes, both are
    attributed to the links between them.

    Example:
        >>> measured_link({1_000: 1e-4, 100_000_000: 0.1}, ranks=2)
        Link(latency=5e-05, bandwidth=1000000000.0)
    """
    hops = 2 * (ranks - 1) if nodes == 1 else min(2 * nodes, 2 * (ranks - 1))
    small, large = min(times), max(times)
    sent = 2 * (ranks - 1) / ranks * large
    return Link(float(f"{times[small] / hops:.6g}"), float(f"{sent / times[large]:.6g}"))


def _cost(
    name: str, world: int, fabric: Fabric, inside: int, between: int, sent: float
) -> Collective:
    """Return the cost of these hops and bytes; the slowest link in use limits the bandwidth."""
    several = fabric.nodes(world) > 1
    used = [fabric.inside] if min(world, fabric.gpus_per_node) > 1 else []
    used += [fabric.between] if several else []
    seconds = inside * fabric.inside.latency + between * fabric.between.latency
    seconds += sent / min(link.bandwidth for link in used)
    return Collective(name, seconds, sent, sent if several else 0.0)
