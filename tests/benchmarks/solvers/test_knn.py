"""bench knn: equal answers first, then ratios; a wrong answer is no result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from fastrot.benchmarks.common.harness import DisagreementError, limited
from fastrot.benchmarks.solvers import knn_baselines
from fastrot.benchmarks.solvers.knn import (
    KnnBenchRequest,
    KnnReport,
    rows_from,
    run_knn,
)
from fastrot.benchmarks.solvers.knn_baselines import Found, missing
from fastrot.data.images.decode import decode_image
from fastrot.errors import UsageError
from fastrot.features.cache import FeatureCache
from tests.fastrot.features.written_cache import write_cache


@pytest.fixture(scope="module")
def features(test_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thumbnails of 200 photos in 10 classes, of 300 values each."""
    rows, labels = [], []
    for label, folder in enumerate(sorted((test_data("imagenette-128") / "train").iterdir())):
        for path in sorted(folder.iterdir())[:20]:
            pixels = decode_image(path.read_bytes(), apply_exif=True)[:100:10, :100:10]
            rows.append(pixels.reshape(-1).astype(np.float32))
            labels.append(label)
    path = tmp_path_factory.mktemp("bench") / "cache"
    write_cache(
        path,
        features={"pool": np.stack(rows)},
        labels=np.array(labels),
        fingerprint={"made": "here"},
    )
    return path


@pytest.fixture(scope="module")
def report(features: Path) -> KnnReport:
    return run_knn(
        KnnBenchRequest(features, bank=400, queries=60, dims=None, k=50, rounds=2, threads=1)
    )


def test_all_competitors_find_the_same(report: KnnReport) -> None:
    for name, agree in report.quality.items():
        assert agree["similarity_difference"] < 5e-6, name
        assert agree["predictions_equal"] == 1, name
        assert agree["rows_equal"] > 0.98, name
        assert agree["top1"] == report.quality["fastrot"]["top1"] > 10
    assert report.quality["fastrot"]["rows_of_definition"] == 1


def test_the_record_holds_ratios_and_what_was_searched(report: KnnReport, tmp_path: Path) -> None:
    report.save(tmp_path / "knn.json", None)
    document = json.loads((tmp_path / "knn.json").read_text())
    baselines = {"torch", "sklearn"} | ({"faiss"} if missing("faiss") is None else set())
    assert set(document["ratios"]) == baselines
    points = {point["point"]: point["seconds"] for point in document["points"]}
    assert set(points) == {"fastrot", *baselines}
    assert all(seconds["repeats"] == 2 and seconds["median"] > 0 for seconds in points.values())
    assert (
        document["data"]["rows"] == 200 and "difference of two others" in document["data"]["made"]
    )
    assert document["settings"] == {
        **{"bank": 400, "queries": 60, "dims": 300, "k": 50, "threads": 1, "rounds": 2}
    }
    assert {"date", "simd"} <= set(document["record"])
    console = Console(record=True, width=120)
    report.show(console)
    assert "times slower" in console.export_text()


def test_enough_images_are_taken_as_they_are(features: Path) -> None:
    cache = FeatureCache.open(features)
    rows, labels, data = rows_from(cache, "pool", 150, None)
    assert data["made"] == "features of real images" and rows.shape == (150, 300)
    real = {row.tobytes() for row in rows_from(cache, "pool", 200, None)[0].numpy()}
    assert all(row.tobytes() in real for row in rows.numpy()) and len(real) == 200
    assert set(labels.tolist()) == set(range(10))


def test_a_wrong_answer_is_no_result(features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(queries: torch.Tensor, bank: torch.Tensor, k: int, threads: int) -> Found:
        similarities, rows = knn_baselines.own(queries, bank[: len(bank) // 2], k, threads)
        return Found(similarities, rows)

    monkeypatch.setitem(knn_baselines.SEARCHES, "torch", careless)
    with pytest.raises(DisagreementError, match="torch: a similarity differs by"):
        run_knn(
            KnnBenchRequest(
                features, bank=150, queries=20, dims=None, k=10, rounds=1, baselines=["torch"]
            )
        )


def test_threads_are_as_before_afterwards() -> None:
    before = torch.get_num_threads()
    with limited(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "--k=0 must be at least 1"),
        ({"k": 90, "bank": 80}, "--k=90 must be at most --bank=80"),
        ({"baselines": ["faiss", "annoy"]}, r"unknown peers \['annoy'\]; choose fastrot, faiss"),
        ({"dims": 2048}, "has 300 values, fewer than --dims=2048"),
        ({"layer": "stem"}, "no layer 'stem'"),
    ],
)
def test_a_wrong_option_is_named(features: Path, options, message) -> None:
    with pytest.raises(UsageError, match=message):
        run_knn(
            KnnBenchRequest(
                features, **{"bank": 100, "queries": 10, "k": 10, "dims": None, **options}
            )
        )
