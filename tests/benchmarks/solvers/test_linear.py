"""The linear benchmark: equal quality first, ratios from rounds, who is left out and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from fastrot.benchmarks.solvers.linear import (
    LinearBenchRequest,
    LinearReport,
    SolverTimes,
    run_linear,
)
from fastrot.benchmarks.solvers.linear_baselines import SOLVERS, STOPS, Stop
from fastrot.data.images.decode import decode_image
from fastrot.errors import UsageError
from tests.fastrot.features.written_cache import write_cache


@pytest.fixture(scope="module")
def cache(test_data: Callable[[str], Path], tmp_path_factory) -> Path:
    """Pixels of 120 photos in 4 classes, every sixteenth row and column."""
    rows, labels = [], []
    for label, folder in enumerate(sorted((test_data("imagenette-128") / "train").iterdir())[:4]):
        for path in sorted(folder.iterdir())[:30]:
            pixels = decode_image(path.read_bytes(), apply_exif=True)
            rows.append(pixels[:128:16, :128:16].reshape(-1) / 64)
            labels.append(label)
    path: Path = tmp_path_factory.mktemp("bench") / "cache"
    write_cache(path, features={"pool": np.stack(rows)}, labels=np.array(labels), fingerprint={})
    return path


def test_all_reach_the_same_objective_before_they_are_timed(cache, tmp_path) -> None:
    baselines = ("cyanure", "sklearn")
    report = run_linear(LinearBenchRequest(
        cache, layer="pool", strengths=(1e-1, 1e-2), baselines=baselines, rounds=2, threads=1,
        progress=False,
    ))  # fmt: skip
    there = {name for name in ("fastrot", *baselines) if name not in report.left_out}
    assert {"fastrot", "sklearn"} <= there
    assert [(p.strength, p.name) for p in report.points] == [
        (strength, name) for strength in (1e-1, 1e-2) for name in SOLVERS if name in there
    ]
    for point in report.points:
        assert -1e-9 <= point.excess <= 1e-5
        assert len(point.wall) == len(point.cpu) == 2
    report.save(tmp_path / "out.json", None)
    saved = json.loads((tmp_path / "out.json").read_text())
    assert set(saved["ratios"]) == there - {"fastrot"}
    assert set(saved) >= {"ratios", "quality", "points", "record"}
    assert saved["data"] == {
        "layer": "pool", "samples": 120, "dims": 192, "classes": 4,
        "made": "features of real images, standardised",
    }  # fmt: skip
    assert report.exit_code == 0


@pytest.mark.slow  # the first optimizer of a process imports torch's compiler
def test_the_plain_torch_loop_gets_there_too(cache) -> None:
    report = run_linear(
        LinearBenchRequest(
            cache,
            layer="pool",
            strengths=(1e-2,),
            baselines=("torch-lbfgs",),
            rounds=1,
            progress=False,
        )
    )
    assert [point.name for point in report.points] == ["fastrot", "torch-lbfgs"]


def test_who_does_not_get_there_is_left_out_with_what_it_reached(cache, monkeypatch) -> None:
    monkeypatch.setitem(STOPS, "sklearn", (Stop(0.5),))  # scikit-learn as loose as can be
    report = run_linear(
        LinearBenchRequest(
            cache, layer="pool", strengths=(1e-3,), baselines=("sklearn",), rounds=1, progress=False
        )
    )
    assert list(report.left_out) == ["sklearn at 0.001"]
    assert "above the minimum after its last stopping rule" in report.left_out["sklearn at 0.001"]
    assert report.ratios() == {}
    text = StringIO()
    report.show(Console(file=text, width=100))
    assert "left out: sklearn at 0.001" in text.getvalue()


def test_a_ratio_is_over_the_strengths_that_the_baseline_reached() -> None:
    def point(name: str, strength: float, wall: list[float]) -> SolverTimes:
        return SolverTimes(name, strength, Stop(1e-5), 0.0, 0.0, wall, [2 * w for w in wall])

    points = [
        point("fastrot", 0.1, [1.0, 2.0]),
        point("fastrot", 0.01, [1.0, 1.0]),
        point("cyanure", 0.1, [10.0, 10.0]),
        point("cyanure", 0.01, [4.0, 5.0]),
        point("sklearn", 0.1, [3.0, 3.0]),
    ]
    found = LinearReport(points, {}, {}, {}, {}).ratios()
    assert (found["cyanure"].low, found["cyanure"].high) == (5.0, 7.0)
    assert (found["sklearn"].low, found["sklearn"].high) == (1.5, 3.0)
    assert found["cyanure"].repeats == 2


def test_wrong_arguments_are_named(cache) -> None:
    for options, message in (
        ({"rounds": 0}, "--rounds=0 must be more than 0"),
        ({"limit": float("nan")}, "--limit=nan must be more than 0"),
        ({"strengths": ()}, "one or more"),
        ({"strengths": (-1.0,)}, "must be one or more positive"),
        ({"baselines": ("liblinear",)}, r"unknown peers \['liblinear'\]; choose fastrot, cyanure"),
        ({"layer": "layer9"}, "no layer 'layer9'"),
    ):
        arguments = {"layer": "pool", "progress": False, **options}
        with pytest.raises(UsageError, match=message):
            run_linear(LinearBenchRequest(cache, **arguments))


def test_two_classes_are_refused(cache, tmp_path) -> None:
    write_cache(
        tmp_path / "two",
        features={"pool": np.eye(4)},
        labels=np.array([0, 1, 0, 1]),
        fingerprint={},
    )
    with pytest.raises(UsageError, match="2 classes; the comparison needs three"):
        run_linear(LinearBenchRequest(tmp_path / "two", layer="pool", progress=False))
