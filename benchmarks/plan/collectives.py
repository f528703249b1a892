"""How long collectives take: the alpha-beta model of Hockney, as NCCL's own tuner uses it.

A message of b bytes over a link takes alpha + b / beta seconds. With n ranks on m nodes of k ranks
each, an all-reduce of B bytes takes

- ring: 2 (n - 1) hops, each passing B / n bytes on. Every rank sends 2 (n - 1) / n B bytes, the
  least there can be (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
  workstations", 2009; it is the reduce-scatter and all-gather of Rabenseifner, "Optimization of
  collective reduction operations", 2004, arranged in a ring). Of the hops 2 m lie between nodes.
- tree: a chain inside of each node and a binary tree between them, up and down, so 2 (k - 1) hops
  inside and 2 log2(m) between. Two trees, each with half of the bytes, in which every rank is a
  leaf of one at least, let each rank send 2 B bytes while all links are busy (Sanders, Speck and
  Traeff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan", 2009; NCCL 2.4's
  double binary trees).
- two levels: reduce-scatter inside of each node, k all-reduces of B / k between the nodes side by
  side, all-gather inside (Thakur, Rabenseifner and Gropp, "Optimization of collective
  communication operations in MPICH", 2005, for the parts).

NCCL computes such a figure for each algorithm and takes the least (``tuning.cc``: hops times
latency plus bytes over bandwidth; NCCL user guide, ``NCCL_ALGO``); so does ``all_reduce``.

Units: seconds, bytes, bytes/s in one direction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """What joins two neighbours.

    Attributes:
        latency: seconds that a hop takes besides its bytes (alpha).
        bandwidth: bytes/s of what one end sends (beta).
    """

    latency: float
    bandwidth: float


@dataclass(frozen=True)
class Fabric:
    """What joins the ranks of a cluster.

    Attributes:
        inside: between two GPUs of a node.
        between: between two nodes; all adapters of a node together.
        gpus_per_node: ranks of a full node.
    """

    inside: Link
    between: Link
    gpus_per_node: int = 8

    def nodes(self, world: int) -> int:
        """Nodes that hold so many ranks, the last one perhaps not full."""
        return math.ceil(world / self.gpus_per_node)


@dataclass(frozen=True)
class Collective:
    """One collective.

    Attributes:
        algorithm: ``none`` (one rank), ``ring``, ``tree`` or ``two levels``.
        seconds: of it.
        rank_bytes: sent by one rank, over whichever link.
        node_bytes: sent by one node into the network between the nodes.
    """

    algorithm: str
    seconds: float
    rank_bytes: float
    node_bytes: float


_NONE = Collective("none", 0.0, 0.0, 0.0)


def ring(world: int, nbytes: float, fabric: Fabric) -> Collective:
    """An all-reduce around one ring that visits node after node."""
    nodes = fabric.nodes(world)
    hops, between = _hops(world, nodes, 2)
    sent = 2 * (world - 1) / world * nbytes
    latency = (hops - between) * fabric.inside.latency + between * fabric.between.latency
    seconds = latency + sent / _slowest(fabric, world, nodes)
    return Collective("ring", seconds, sent, sent if nodes > 1 else 0.0)


def tree(world: int, nbytes: float, fabric: Fabric) -> Collective:
    """An all-reduce up and down: chains inside of the nodes, two binary trees between them."""
    nodes = fabric.nodes(world)
    inside = 2 * (min(world, fabric.gpus_per_node) - 1)
    between = 2 * math.ceil(math.log2(nodes))
    sent = 2 * nbytes
    latency = inside * fabric.inside.latency + between * fabric.between.latency
    seconds = latency + sent / _slowest(fabric, world, nodes)
    return Collective("tree", seconds, sent, sent if nodes > 1 else 0.0)


def two_level(world: int, nbytes: float, fabric: Fabric) -> Collective | None:
    """Scatter inside, all-reduce between, gather inside; None unless all nodes are full."""
    nodes, k = fabric.nodes(world), fabric.gpus_per_node
    if nodes == 1 or k == 1 or world % k:
        return None
    inside = 2 * (k - 1) * fabric.inside.latency
    inside += 2 * (k - 1) / k * nbytes / fabric.inside.bandwidth
    # k rings (or trees) share a node's adapters: each has a k-th of them for a k-th of the bytes.
    flat = Fabric(fabric.between, fabric.between, 1)
    outer = min((ring(nodes, nbytes, flat), tree(nodes, nbytes, flat)), key=_seconds)
    sent = 2 * (k - 1) / k * nbytes + outer.rank_bytes / k
    return Collective("two levels", inside + outer.seconds, sent, outer.node_bytes)


def all_reduce(world: int, nbytes: float, fabric: Fabric) -> Collective:
    """The fastest all-reduce.

    Args:
        world: ranks, n.
        nbytes: of the buffer that every rank holds, B.
        fabric: the links.

    Example:
        >>> one_node = Fabric(Link(5e-6, 100e9), Link(5e-6, 100e9))
        >>> round(1e3 * all_reduce(8, 100e6, one_node).seconds, 3)
        1.82
    """
    if world == 1:
        return _NONE
    found = [ring(world, nbytes, fabric), tree(world, nbytes, fabric)]
    if (levels := two_level(world, nbytes, fabric)) is not None:
        found.append(levels)
    return min(found, key=_seconds)


def all_gather(world: int, nbytes: float, fabric: Fabric) -> Collective:
    """An all-gather around a ring.

    Args:
        world: ranks, n.
        nbytes: that each rank contributes; it ends with n times as many.
        fabric: the links.
    """
    if world == 1:
        return _NONE
    nodes = fabric.nodes(world)
    hops, between = _hops(world, nodes, 1)
    sent = (world - 1) * nbytes
    latency = (hops - between) * fabric.inside.latency + between * fabric.between.latency
    seconds = latency + sent / _slowest(fabric, world, nodes)
    return Collective("ring", seconds, sent, sent if nodes > 1 else 0.0)


def _hops(world: int, nodes: int, rounds: int) -> tuple[int, int]:
    """Hops that follow each other in so many rounds of a ring, and those between nodes of them."""
    hops = rounds * (world - 1)
    return hops, min(rounds * nodes, hops) if nodes > 1 else 0


def _slowest(fabric: Fabric, world: int, nodes: int) -> float:
    """Bandwidth of the slowest link that all bytes pass."""
    used = []
    if min(world, fabric.gpus_per_node) > 1:
        used.append(fabric.inside.bandwidth)
    if nodes > 1:
        used.append(fabric.between.bandwidth)
    return min(used)


def _seconds(collective: Collective) -> float:
    return collective.seconds
