"""Links and overlap: as given, else as measured on the same hardware, else assumed."""

from __future__ import annotations

import pytest

from fastrot.benchmarks.plan.collectives import Fabric, Link, measured_link, ring
from fastrot.benchmarks.plan.links import choose_link, choose_overlap
from fastrot.benchmarks.plan.records import LinkRecord, OverlapRecord

MEASURED = Link(7e-6, 12e9)


@pytest.mark.parametrize(("ranks", "nodes"), [(2, 1), (8, 1), (4, 4)])
def test_the_link_behind_exact_times(ranks: int, nodes: int) -> None:
    fabric = Fabric(MEASURED, MEASURED, ranks // nodes)
    sizes = (4, 1_000_000, 300_000_000)
    times = {size: ring(ranks, size, fabric).seconds for size in sizes}
    found = measured_link(times, ranks=ranks, nodes=nodes)
    assert found.latency == pytest.approx(MEASURED.latency, rel=1e-3)
    assert found.bandwidth == pytest.approx(MEASURED.bandwidth, rel=0.01)


def test_only_links_of_the_same_hardware_and_kind_count() -> None:
    records = [
        LinkRecord("a.json", "GPU A", 8, 1, "nccl", MEASURED),
        LinkRecord("b.json", "GPU B", 8, 1, "nccl", Link(1e-6, 1e9)),
        LinkRecord("c.json", "GPU A", 16, 2, "nccl", Link(9e-6, 3e9)),
    ]
    inside, line = choose_link(records, "GPU A", None, None, between_nodes=False)
    assert inside == MEASURED and "measured: 8 ranks, nccl, a.json" in line
    assert "not used: the link of b.json, of other hardware: GPU B" in line
    between, _ = choose_link(records, "GPU A", None, None, between_nodes=True)
    assert between == Link(9e-6, 3e9)
    given, line = choose_link(records, "GPU A", 50.0, None, between_nodes=False)
    assert given == Link(7e-6, 50e9) and "50 GB/s (given), 7 us per hop (measured" in line
    assert "assumed" in choose_link(records, "GPU C", None, None, between_nodes=True)[1]


def test_an_overlap_is_given_or_measured_or_assumed() -> None:
    records = [OverlapRecord("p.jsonl", "GPU A", share) for share in (0.5, 0.9, 0.7)]
    assert choose_overlap(records, "GPU A", 0.25, on_gpu=True)[0] == 0.25
    overlap, line = choose_overlap(records, "GPU A", None, on_gpu=True)
    assert overlap == 0.7 and "(measured: p.jsonl)" in line
    for on_gpu, expected in ((True, 0.8), (False, 0.0)):
        overlap, line = choose_overlap(records, "other", None, on_gpu=on_gpu)
        assert overlap == expected and "assumed" in line
