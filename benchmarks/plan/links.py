"""The links between GPUs: fitted to measured all-reduces, and chosen for a plan.

What the user gives goes before what was measured; a default comes last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastrot.benchmarks.plan.collectives import Fabric, Link
from fastrot.benchmarks.plan.records import LinkRecord, Record
from fastrot.benchmarks.plan.step_times import StepTimes

_LINK, _NETWORK = Link(3e-6, 200e9), Link(10e-6, 25e9)
"""Cautious for GPUs joined by NVLink, and for nodes with 200 Gbit/s."""


@dataclass(frozen=True)
class GivenLinks:
    """Links as they were given; None: a default, which the plan calls an assumption.

    Attributes:
        gpus_per_node: ranks of a full node.
        link: GB/s between two GPUs of a node, in one direction.
        network: GB/s of a node to the others, all adapters together, in one direction.
        link_latency: microseconds of a hop inside of a node.
        latency: microseconds of a hop between nodes.
    """

    gpus_per_node: int = 8
    link: float | None = None
    network: float | None = None
    link_latency: float | None = None
    latency: float | None = None


def fabric_of(
    records: Sequence[Record], steps: StepTimes, given: GivenLinks
) -> tuple[Fabric, list[str]]:
    """The links, and a line about each: what was given, else measured, else assumed.

    Args:
        records: those of links count that are of the hardware of the steps.
        steps: of one GPU.
        given: on the command line.
    """
    measured: dict[bool, LinkRecord] = {}
    lines = []
    for record in records:
        if not isinstance(record, LinkRecord):
            continue
        if steps.hardware.startswith(record.hardware):
            measured[record.nodes > 1] = record
        else:
            lines.append(
                f"not used: the link of {record.source}, of other hardware: {record.hardware}"
            )
    inside, first = _link(
        "inside of a node", measured.get(False), _LINK, given.link, given.link_latency
    )
    between, second = _link(
        "of a node to the others", measured.get(True), _NETWORK, given.network, given.latency
    )
    return Fabric(inside, between, given.gpus_per_node), [first, second, *lines]


def _link(
    name: str,
    record: LinkRecord | None,
    default: Link,
    bandwidth: float | None,
    latency: float | None,
) -> tuple[Link, str]:
    source, link = "assumed", default
    if record is not None:
        link = record.link
        source = f"measured: {record.ranks} ranks, {record.backend}, {record.source}"
    chosen = Link(
        link.latency if latency is None else 1e-6 * latency,
        link.bandwidth if bandwidth is None else 1e9 * bandwidth,
    )
    speed, hop = (source if given is None else "given" for given in (bandwidth, latency))
    return chosen, (
        f"link {name}: {chosen.bandwidth / 1e9:.4g} GB/s ({speed}), "
        f"{1e6 * chosen.latency:.4g} us a hop ({hop})"
    )


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
