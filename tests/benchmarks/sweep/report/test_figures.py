"""Figures of a cell: numbers that were worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fastrot.benchmarks.common.harness import Spread
from fastrot.benchmarks.sweep.record import CellRecord
from fastrot.benchmarks.sweep.report.figures import (
    Figures,
    figures_of,
    overlap,
    quotient,
    to_plain,
)

Make = Callable[..., CellRecord]


def figures(record: CellRecord) -> Figures:
    found = figures_of(record)
    assert found is not None
    return found


def test_rates_are_of_all_ranks_and_of_one(cell: Make) -> None:
    found = figures(cell({"ranks": 2}, (90.0, 110.0, 100.0)))
    assert found.images_per_s == Spread(100.0, 90.0, 110.0, 3)
    assert found.views_per_s == Spread(400.0, 360.0, 440.0, 3)
    assert found.views_per_s_per_rank == Spread(200.0, 180.0, 220.0, 3)
    assert found.images_per_s_per_rank == Spread(50.0, 45.0, 55.0, 3)
    assert found.share_of_peak == pytest.approx(0.2)  # 200 views/s x 1 GFLOP of 1 TFLOP/s
    assert found.data_wait == Spread(0.2, 0.1, 0.3, 3)
    assert found.step_ms == {"p50": 500.0, "p95": 600.0, "p99": 700.0}
    assert to_plain(found)["views_per_s_per_rank"]["median"] == 200


@pytest.mark.parametrize(
    ("loader", "compute", "rate", "bound", "words"),
    [
        (105.0, 400.0, 100.0, "loader", "the loader: 95 % of its ceiling"),
        (400.0, 125.0, 100.0, "compute", "compute: 80 % of its ceiling"),
        (108.0, 112.0, 100.0, "both", "loader and compute alike: 93 %"),
        (400.0, 200.0, 100.0, "neither", "only 50 % of that of compute"),
        (None, 200.0, 100.0, "unknown", "not known"),
        (200.0, None, 100.0, "unknown", "not known"),
    ],
)
def test_the_lower_ceiling_bounds_if_it_is_reached(
    cell: Make, loader: float | None, compute: float | None, rate: float, bound: str, words: str
) -> None:
    record = cell(None, (rate,), loader_images_per_s=loader, compute_images_per_s=compute)
    assert figures(record).bound_by == bound
    assert words in figures(record).verdict


def test_a_loader_alone_has_no_waits(cell: Make) -> None:
    found = figures(cell(kind="loader", data_wait=(1.0,), compute_images_per_s=None))
    assert found.data_wait is None and found.bound_by == "loader"


def test_others_contaminate_beyond_a_tenth(cell: Make) -> None:
    shares = {0.1: False, 0.11: True, None: False}
    assert {b: figures(cell(busy=b)).contaminated for b in shares} == shares


def test_what_is_not_known_is_none(cell: Make) -> None:
    numbers = ("flops_per_view", "memory_bytes", "first_batch_s", "loss")
    found = figures(cell(steps_ms={}, data_wait=(), **dict.fromkeys(numbers)))
    assert (found.share_of_peak, found.memory_bytes, found.loss, found.data_wait) == (None,) * 4
    assert found.step_ms == {}
    assert figures_of(cell(failed="out of memory")) is None


@pytest.mark.parametrize(
    "numbers",
    [
        {"images_per_s": ()},
        {"images_per_s": (0.0,)},
        {"images_per_s": (float("nan"),)},
        {"images_per_s": (float("inf"),)},
        {"images_per_s": (1e300,)},
        {"ranks": 0},
        {"ranks": 10**400},
        {"views": 0},
        {"global_batch": -1},
        {"data_wait": (1.5,)},
        {"data_wait": (float("nan"),)},
    ],
)
def test_impossible_numbers_are_refused(cell: Make, numbers: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="|".join(numbers)):
        figures_of(cell(**numbers))


def test_quotients_reach_from_the_worst_to_the_best() -> None:
    ratio = quotient(Spread(100, 90, 120, 3), Spread(50, 40, 60, 2))
    assert ratio == Spread(2.0, 1.5, 3.0, 2)


def test_spreads_overlap_where_they_touch() -> None:
    low, high = Spread(10, 9, 11, 3), Spread(12, 11, 13, 3)
    assert overlap(low, high) and overlap(high, low)
    assert not overlap(low, Spread(12, 11.01, 13, 3)) and not overlap(Spread(12, 11.01, 13, 3), low)
