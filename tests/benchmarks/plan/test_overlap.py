"""The backward pass, message by message, beside values worked out by hand."""

from __future__ import annotations

import pytest

from fastrot.benchmarks.plan.overlap import BackwardLayer, simulate


def seconds(nbytes: int) -> float:
    return float(nbytes)


def test_what_ends_within_the_backward_pass_costs_nothing() -> None:
    layers = [BackwardLayer(1, buckets=(2,)), BackwardLayer(4)]
    found = simulate(layers, seconds)
    assert (found.seconds, found.exposed) == (5, 0)
    assert (found.sent[0].begin, found.sent[0].end) == (1, 3)


def test_only_the_rest_is_exposed() -> None:
    # The first is sent from 1 to 4; the second is ready at 2, sent from 4 to 7; the last from 7.
    layers = [BackwardLayer(1, buckets=(3,)), BackwardLayer(1, buckets=(3,)),
              BackwardLayer(3, buckets=(1,))]  # fmt: skip
    found = simulate(layers, seconds)
    assert [(each.ready, each.begin, each.end) for each in found.sent] == [
        (1, 1, 4), (2, 4, 7), (5, 7, 8),
    ]  # fmt: skip
    assert found.exposed == 3


def test_the_last_bucket_never_overlaps() -> None:
    assert simulate([BackwardLayer(9), BackwardLayer(1, buckets=(2,))], seconds).exposed == 2


def test_statistics_are_waited_for_behind_the_buckets() -> None:
    # The bucket is sent from 1 to 5, so that the message asked for at 2 begins at 5.
    layers = [BackwardLayer(1, buckets=(4,)), BackwardLayer(1, waits=0.5), BackwardLayer(2)]
    found = simulate(layers, seconds)
    assert (found.seconds, found.waiting, found.exposed) == (7.5, 3.5, 3.5)


def test_without_overlap_all_of_it_is_added() -> None:
    layers = [BackwardLayer(1, buckets=(3,)), BackwardLayer(1, waits=0.5), BackwardLayer(5)]
    assert simulate(layers, seconds, overlap=False).exposed == 3.5


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_overlap_never_costs(scale: float) -> None:
    layers = [BackwardLayer(i % 3, 0.1 * (i % 2), (i,) * (i % 4 == 0)) for i in range(1, 30)]
    with_it = simulate(layers, lambda nbytes: scale * nbytes)
    without = simulate(layers, lambda nbytes: scale * nbytes, overlap=False)
    assert with_it.computing == without.computing
    assert 0 <= with_it.exposed <= without.exposed + 1e-9
