"""The command: tables of 80 columns, assumptions, refusals."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fastrot.benchmarks.plan import command
from fastrot.benchmarks.plan.command import PlanRequest, plan
from fastrot.benchmarks.plan.report import PlanReport
from fastrot.benchmarks.plan.step_times import NoRecordError
from fastrot.data.digits import write_digits
from fastrot.errors import UsageError
from tests.program import run_python

RECIPE = "resnet50_8xb16-steplr-70e"
MACHINE = {"processor": "Some CPU", "cores": 8, "gpus": ["GPU A"] * 8, "commit": "abc"}


def step_line(batch: int, views_per_s: float) -> dict[str, Any]:
    return {
        "bench": "train-step", "model": "resnet50", "step": "fused", "cuda_graph": True,
        "resolution": 224, "batch": batch, "views": 4 * batch, "precision": "bf16",
        "views_per_s": views_per_s, "peak_memory_bytes": 10**9 * batch,
        "settings": {"width": 64, "stem": "imagenet", "threads": 8}, "record": MACHINE,
    }  # fmt: skip


LINK = {"bench": "allreduce", "ranks": 8, "nodes": 1, "backend": "nccl", "latency_us": 4.5,
        "gb_per_s": 180.0, "record": MACHINE}  # fmt: skip


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    path = tmp_path / "gpu.jsonl"
    lines = [step_line(16, 4000.0), step_line(64, 5000.0), LINK]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def shown(report: PlanReport) -> str:
    console = Console(width=80, record=True, quiet=True)
    with console.capture() as capture:
        console.quiet = False
        report.show(console)
    return capture.get()


def test_a_plan_states_everything_it_rests_on(measured: Path) -> None:
    report = plan(
        PlanRequest(RECIPE, gpus=(1, 8, 64, 1024), records=(measured,), per_gpu=64, price=2.5)
    )
    text = shown(report)
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    said = " ".join(text.split())
    for words in (
        "measured on GPU A (gpu.jsonl; commit abc)", "16: 16 ms, 64: 51.2 ms",
        "180 GB/s (measured: 8 ranks, nccl, gpu.jsonl), 4.5 us per hop (measured",
        "25 GB/s (assumed), 10 us per hop (assumed)", "the faster of ring and tree", "94.1 MB",
        "overlap: 80 % of the all-reduce", "synchronised batch norm: 53 layers",
        "assumed to keep up with what a node loads", "not modelled:", "64GB", "115,000",
    ):  # fmt: skip
        assert words in said, words
    assert [row.gpus for row in report.rows] == [1, 8, 64, 1024]
    assert report.rows[0].step == pytest.approx(0.0512)
    assert report.rows[0].memory == 64e9
    assert all(0 < row.efficiency <= 1 for row in report.rows)
    assert report.exit_code == 0


def test_what_is_given_goes_before_what_was_measured(measured: Path) -> None:
    report = plan(PlanRequest(
        RECIPE, gpus=(16,), records=(measured,), per_gpu=16,
        gpus_per_node=4, link=50.0, network=12.5, latency_us=20.0, overlap=0.5,
    ))  # fmt: skip
    said = "\n".join(report.assumptions)
    assert "50 GB/s (given), 4.5 us per hop (measured" in said
    assert "12.5 GB/s (given), 20 us per hop (given)" in said
    assert "overlap: 50 %" in said and "(given)" in said
    assert report.rows[0].nodes == 4


def test_crops_that_grow_need_a_record_of_each_size(measured: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.jsonl"
    growing = PlanRequest(
        RECIPE, gpus=(1,), per_gpu=64, overrides=("data.progressive=[[0,128],[35,224]]",),
        records=(measured, small),
    )  # fmt: skip
    small.write_text(json.dumps(step_line(64, 10_000.0) | {"resolution": 128}))
    report = plan(growing)
    assert "128, 224 px" in report.title
    assert report.rows[0].step == pytest.approx((256 / 10_000 + 256 / 5000) / 2)
    machine = MACHINE | {"gpus": ["GPU B"]}
    small.write_text(json.dumps(step_line(64, 10_000.0) | {"resolution": 128, "record": machine}))
    with pytest.raises(NoRecordError, match="at 224 px on 'GPU B'"):
        plan(growing)


def test_what_cannot_be_planned_is_refused_line_by_line(measured: Path) -> None:
    # 32, 16, -, 1 images each
    report = plan(PlanRequest(RECIPE, gpus=(4, 8, 3, 128), records=(measured,)))
    assert [row.gpus for row in report.rows] == [4, 8]
    assert "multiple of the 3 ranks" in report.refused[3]
    assert "fastrot bench train-step" in report.refused[128]
    assert "128 GPUs: not planned: 1 images per GPU" in " ".join(shown(report).split())
    none = plan(PlanRequest(RECIPE, gpus=(3,), records=(measured,)))
    assert none.exit_code == 64 and "Assumptions" in shown(none)


def test_without_a_record_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "shipped_paths", lambda: [])
    with pytest.raises(NoRecordError, match=r"--resolution 224 --batch 16,128 --append") as raised:
        plan(PlanRequest(RECIPE, gpus=(1, 8)))
    assert raised.value.exit_code == 64


def test_a_roofline_says_that_it_is_a_bound() -> None:
    report = plan(PlanRequest(RECIPE, gpus=(1,), roofline="h200", per_gpu=64))
    assert "NOT MEASURED" in report.assumptions[0] and report.rows[0].how == "bound"
    # 10,200 views/s: the level that ``benchmarks/common/roofline.py`` names in its example.
    assert report.rows[0].views_per_s == pytest.approx(10_200, rel=0.01)
    assert "≥: bound" in shown(report) and "≥25" in shown(report)
    twice = plan(PlanRequest(RECIPE, gpus=(1,), roofline="1580:8.6", per_gpu=64))
    assert twice.rows[0].step == pytest.approx(report.rows[0].step / 2, rel=1e-6)
    with pytest.raises(UsageError, match=r"--roofline 790:4\.3"):
        plan(PlanRequest(RECIPE, gpus=(1,), roofline="h300"))


def test_bytes_are_those_of_the_data(measured: Path, tmp_path: Path) -> None:
    digits = write_digits(tmp_path)[0]
    report = plan(PlanRequest(RECIPE, gpus=(1,), records=(measured,), per_gpu=64, data=str(digits)))
    (row,) = report.rows
    assert row.steps_per_epoch == 1497 // 64
    assert 0 < row.epoch_bytes < digits.stat().st_size
    with pytest.raises(UsageError, match="omit --images"):
        plan(PlanRequest(RECIPE, gpus=(1,), records=(measured,), data=str(digits), images=3))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"gpus": (0,)}, "between 1 and 1,024"),
        ({"gpus": (1025,)}, "between 1 and 1,024"),
        ({"price": -1.0}, "--price=-1.0"),
        ({"per_gpu": 0}, "--batch-per-gpu=0"),
        ({"link": float("nan")}, "--link=nan"),
        ({"overlap": 1.5}, "--overlap=1.5 must be between 0 and 1"),
    ],
)
def test_wrong_numbers(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(PlanRequest(RECIPE, **({"gpus": (1,)} | wrong)))


def test_the_command_line(measured: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    done = run_python(
        [sys.executable, "-m", "fastrot", "plan", RECIPE, "--gpus", "8", "--record", str(measured),
         "--price", "2", "--set", "train.epochs=1", "--json", str(out)]
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text())
    (row,) = document["rows"]
    assert row["total_steps"] == 10_009 and row["cost"] == pytest.approx(2 * row["gpu_hours"])
    assert "Assumptions:" in done.stdout and str(tmp_path) not in out.read_text()


def test_figures_of_every_size_fit(measured: Path) -> None:
    report = plan(PlanRequest(RECIPE, gpus=(1,), records=(measured,), per_gpu=64, price=1.0))
    for factor in (1e-6, 1e-3, 1.0, 1e3, 1e5):
        (row,) = report.rows
        row = replace(
            row, gpus=1024, step=row.step * factor, hours=row.hours * factor,
            gpu_hours=1024 * row.hours * factor, cost=1024 * row.hours * factor,
            views_per_s=row.views_per_s / factor,
        )  # fmt: skip
        text = shown(replace(report, rows=[row]))
        assert max(map(len, text.splitlines())) <= 80 and "…" not in text
