"""Crops that grow: each size for its epochs, then one row."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastrot.benchmarks.plan.predict import phases, predict, together
from fastrot.config import load_config
from tests.benchmarks.plan.plan_parts import inputs


def test_most_runs_have_one_size() -> None:
    config = load_config("resnet50_8xb16-steplr-70e")
    assert phases(config) == [config]


def test_sizes_last_until_the_next_or_the_end() -> None:
    settings = ["data.progressive=[[0,128],[20,160],[55,224]]", "train.epochs=70"]
    cut = phases(load_config(None, settings))
    assert [(each.data.resolution, each.train.epochs) for each in cut] == [
        (128, 20), (160, 35), (224, 15),
    ]  # fmt: skip
    short = phases(load_config(None, [*settings, "train.epochs=30.5"]))
    assert [(each.data.resolution, each.train.epochs) for each in short] == [(128, 20), (160, 10.5)]


def test_one_row_of_two_phases() -> None:
    first = predict(inputs("train.epochs=10", price=1.0), 8)
    second = predict(inputs("train.epochs=30", per_gpu=128, price=1.0), 8)
    second = replace(second, total_steps=3 * first.total_steps)
    row = together([first, second])
    assert row.total_steps == 4 * first.total_steps
    assert row.step == pytest.approx((first.step + 3 * second.step) / 4)
    assert row.hours == pytest.approx(first.hours + second.hours)
    assert row.cost == pytest.approx(8 * row.hours)
    assert row.memory == second.memory and row.how == first.how == "interpolated"
    assert 0 < row.efficiency <= 1
    assert together([first]) is first
    assert together([first, replace(second, memory=None)]).memory is None
