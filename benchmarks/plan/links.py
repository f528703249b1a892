"""Links between GPUs, and how much of the all-reduce is hidden: given, measured or assumed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from fastrot.benchmarks.plan.collectives import Link
from fastrot.benchmarks.plan.records import LinkRecord, OverlapRecord, Record

_ASSUMED = {False: Link(3e-6, 200e9), True: Link(10e-6, 25e9)}
"""Cautious assumptions: False: GPUs linked by NVLink; True: nodes with 200 Gbit/s."""
OVERLAP = {True: 0.8, False: 0.0}
"""Assumed overlap: on a GPU (True), DDP hides all buckets except the last, that is, 70 to 90 % of a
ResNet's bytes; elsewhere the cores that compute also send."""


def choose_link(
    records: Sequence[Record],
    hardware: str,
    bandwidth: float | None,
    latency: float | None,
    *,
    between_nodes: bool,
) -> tuple[Link, str]:
    """Return the given link, else a measured one, else an assumed one, and a line about it.

    Args:
        records: the last link of this hardware counts.
        hardware: hardware of the steps.
        bandwidth: GB/s in one direction; None: not given.
        latency: microseconds per hop; None: not given.
        between_nodes: the link is between two nodes; otherwise between two GPUs of one.
    """
    links = [r for r in records if isinstance(r, LinkRecord) and (r.nodes > 1) == between_nodes]
    link, source = _ASSUMED[between_nodes], "assumed"
    for record in links:
        if hardware.startswith(record.hardware):
            link = record.link
            source = f"measured: {record.ranks} ranks, {record.backend}, {record.source}"
    speed, hop = (source if each is None else "given" for each in (bandwidth, latency))
    link = Link(
        link.latency if latency is None else 1e-6 * latency,
        link.bandwidth if bandwidth is None else 1e9 * bandwidth,
    )
    others = "".join(
        f"; not used: the link of {record.source}, of other hardware: {record.hardware}"
        for record in links
        if not hardware.startswith(record.hardware)
    )
    return link, (
        f"link {'of a node to the others' if between_nodes else 'inside a node'}: "
        f"{link.bandwidth / 1e9:.4g} GB/s ({speed}), {1e6 * link.latency:.4g} us per hop ({hop})"
        f"{others}"
    )


def choose_overlap(
    records: Sequence[Record], hardware: str, given: float | None, *, on_gpu: bool
) -> tuple[float, str]:
    """Return the fraction of the all-reduce that the backward pass hides, and a line about it.

    Args:
        records: the median of the overlaps of this hardware counts.
        hardware: hardware of the steps.
        given: overlap in [0, 1]; None: measured or assumed.
        on_gpu: whether the hardware is a GPU.
    """
    ours = [r for r in records if isinstance(r, OverlapRecord) and hardware.startswith(r.hardware)]
    if given is not None:
        overlap, source = given, "given"
    elif ours:
        overlap = statistics.median(record.overlap for record in ours)
        source = f"measured: {', '.join(dict.fromkeys(record.source for record in ours))}"
    else:
        overlap, source = OVERLAP[on_gpu], "assumed; fastrot bench plan-check measures it"
    return overlap, (
        f"overlap: {100 * overlap:.0f} % of the all-reduce, or of the backward pass if that is "
        f"shorter, is hidden ({source})"
    )
