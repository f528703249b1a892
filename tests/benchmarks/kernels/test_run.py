"""bench kernels: the same results first, then times beside a copy's; here on the CPU, tiny."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fastrot.benchmarks.common.harness import DisagreementError
from fastrot.benchmarks.kernels import implementations
from fastrot.benchmarks.kernels.cases import OPS, Case, cases
from fastrot.benchmarks.kernels.run import (
    KernelsBenchRequest,
    KernelsReport,
    run_kernels,
)
from fastrot.errors import UsageError

BASELINES = ["reference", "torch", "apex"]


@pytest.fixture(scope="module")
def report() -> KernelsReport:
    return run_kernels(
        KernelsBenchRequest(
            resolution=16,
            batch=1,
            dtype="float16",
            device="cpu",
            baselines=BASELINES,
            rounds=2,
            runs=1,
            progress=False,
        )
    )


def test_every_operation_has_times_beside_a_copy(report: KernelsReport, tmp_path: Path) -> None:
    report.save(tmp_path / "kernels.json", tmp_path / "kernels.jsonl")
    document = json.loads((tmp_path / "kernels.json").read_text())
    assert document["bench"] == "kernels" and document["settings"]["batch"] == 1
    records = [json.loads(line) for line in (tmp_path / "kernels.jsonl").read_text().splitlines()]
    assert len(records) == len(document["points"])
    assert {record["op"] for record in records} == set(OPS)
    for record in records:
        assert record["implementation"] in ("fastrot", "reference", "torch")
        assert record["microseconds"]["repeats"] == 2 and record["microseconds"]["median"] > 0
        assert record["gbytes_per_s"] > 0 and record["share_of_copy"] > 0
        assert {"gpu", "driver", "cuda", "cudnn", "torch", "commit", "bench"} <= set(record)
        if record["implementation"] == "fastrot":
            assert record["times_ours"] == 1
    known = ("needs a GPU", "no such operation", "float16 only")
    assert all(any(why in each["apex"] for why in known) for each in document["left_out"])


def test_the_table_fits_100_columns(report: KernelsReport) -> None:
    console = Console(record=True, width=100)
    report.show(console)
    text = console.export_text()
    assert "4x2048x1x1" in text and "left out: apex" in text
    assert "…" not in text and max(map(len, text.splitlines()[1:-3])) <= 100


def test_views_and_gradients_are_compared(report: KernelsReport) -> None:
    for point in report.plain_points():
        if point["op"].startswith("rotate"):
            assert point["largest_difference"] == 0
        elif point["implementation"] == "fastrot":
            assert 0 < point["largest_difference"] < 0.02 and point["mean_difference"] < 1e-3


def test_what_is_compiled_gives_the_same() -> None:
    report = run_kernels(
        KernelsBenchRequest(
            ops=["bn-add-relu-backward"],
            resolution=8,
            batch=1,
            dtype="float32",
            device="cpu",
            baselines=["compiled"],
            rounds=1,
            runs=1,
            progress=False,
        )
    )
    compiled = [point for point in report.plain_points() if point["implementation"] == "compiled"]
    assert len(compiled) == 4
    assert all(point["mean_difference"] < 1e-6 for point in compiled)


def test_shapes_are_those_of_resnet_50_and_bytes_those_of_the_definition() -> None:
    def shapes(name: str) -> list[tuple[int, ...]]:
        return [case.shape for case in cases([name], resolution=224, batch=2, dtype="float16")]

    assert shapes("rotate-4") == [(2, 224, 224, 3)]
    assert shapes("bn-relu-forward") == [
        *((8, 64, 112, 112), (8, 64, 56, 56), (8, 128, 28, 28), (8, 256, 14, 14), (8, 512, 7, 7))
    ]
    assert shapes("bn-add-relu-frozen") == [
        *((8, 256, 56, 56), (8, 512, 28, 28), (8, 1024, 14, 14), (8, 2048, 7, 7))
    ]
    half, elements = torch.float16, 8 * 64 * 16
    for name, expected in (
        ("bn-relu-forward", 3 * 2 * elements + elements // 8),
        ("bn-add-relu-forward", 4 * 2 * elements + elements // 8),
        ("bn-relu-backward", 5 * 2 * elements + elements // 4),
        ("bn-add-relu-backward", 6 * 2 * elements + elements // 4),
        ("bn-relu-frozen", 2 * 2 * elements),
        ("bn-add-relu-frozen", 3 * 2 * elements),
    ):
        assert Case(name, (8, 64, 4, 4), half).bytes == expected, name
    assert Case("rotate-4", (2, 10, 10, 3), half).bytes == 600 + 4 * 200 * 4 * 2


def test_a_wrong_result_is_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(given, training):
        return given.x * 0.99

    monkeypatch.setattr(implementations, "_torch_norm", careless)
    with pytest.raises(DisagreementError, match=r"torch: bn-relu-forward .* differs from float"):
        run_kernels(
            KernelsBenchRequest(
                ops=["bn-relu-forward"],
                resolution=8,
                batch=1,
                device="cpu",
                baselines=["torch"],
                rounds=1,
                runs=1,
                progress=False,
            )
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "--rounds=0 must be at least 1"),
        ({"batch": 0}, "--batch=0 must be at least 1"),
        ({"resolution": 4}, "--resolution=4 must be at least 8"),
        ({"ops": ["conv"]}, r"unknown ops \['conv'\]; choose rotate-3"),
        ({"baselines": ["cudnn"]}, r"unknown peers \['cudnn'\]; choose reference, torch"),
        ({"dtype": "int8"}, "unknown --dtype=int8; choose float16"),
        ({"device": "tpu"}, "tpu"),
    ],
)
def test_a_wrong_option_is_named(options, message) -> None:
    with pytest.raises(UsageError, match=message):
        run_kernels(KernelsBenchRequest(**{"device": "cpu", **options}))
