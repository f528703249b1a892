"""bench extract: the code that extracts, each engine beside the other, with its distance."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from fastrot.benchmarks.extract import ExtractBenchRequest, run_extract
from fastrot.errors import UsageError


def test_engines_give_the_same_features_and_each_has_its_rate(
    test_data: Callable[[str], Path],
) -> None:
    photos = test_data("imagenette-128") / "val"
    report = run_extract(ExtractBenchRequest(
        model="resnet18", data=str(photos), resolution=32, batch=8, device="cpu", rounds=2,
        seconds=0.05, progress=False,
    ))  # fmt: skip
    document = json.loads(json.dumps(report.to_json()))
    points = {point["point"]: point for point in document["points"]}
    assert list(points) == ["torch", "fused", "from data"]
    assert points["torch"]["distance"] == 0 <= points["fused"]["distance"] < 1e-5
    for point in points.values():
        rate = point["images_per_second"]
        assert rate["repeats"] == 2 and 0 < rate["low"] <= rate["median"] <= rate["high"]
    assert set(document["ratios"]) == {"fused", "from data"}
    assert document["settings"]["precision"] == "fp32"
    console = Console(width=80, record=True)
    report.show(console)
    assert "torch is" in console.export_text()


def test_half_precision_is_told_from_float32() -> None:
    report = run_extract(ExtractBenchRequest(
        model="resnet18", resolution=32, batch=4, precision="bf16", device="cpu", rounds=1,
        seconds=0.01, progress=False,
    ))  # fmt: skip
    for point in report.points:
        assert 1e-4 < point.distance < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rounds": 0}, "--rounds=0 must be more than 0"),
        ({"batch": -1}, "--batch=-1 must be more than 0"),
        ({"resolution": 8}, "--resolution=8 must be from 32 to 4096"),
        ({"model": "resnet19"}, "model.name"),
        ({"precision": "fp16"}, "precision 'fp16' is not for a cpu"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run_extract(ExtractBenchRequest(device="cpu", progress=False, **arguments))
