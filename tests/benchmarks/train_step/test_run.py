"""bench train-step: equal losses first; then rates, shares of the roofline, and where time goes."""

from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from fastrot.benchmarks.common.machine_speed import (
    MachineSpeed,
    durations,
    measure_speed,
    percentile,
)
from fastrot.benchmarks.common.roofline import REFERENCE, bounds, layers_of
from fastrot.benchmarks.train_step import subject
from fastrot.benchmarks.train_step.report import TrainStepReport
from fastrot.benchmarks.train_step.run import TrainStepBenchRequest, run_train_step
from fastrot.benchmarks.train_step.subject import StepSubject
from fastrot.benchmarks.train_step.time_table import TimeSlot, TimeTable
from fastrot.benchmarks.train_step.verdict import verdict
from fastrot.config import ModelConfig
from fastrot.errors import UsageError

TINY: dict[str, Any] = {
    **{"model": "resnet18", "width": 8, "resolution": [32], "batch": [2], "device": "cpu"},
    **{"rounds": 2, "seconds": 0.05, "parity_steps": 5, "threads": 1, "progress": False},
}


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trace") / "step.json.gz"


@pytest.fixture(scope="module")
def report(trace: Path) -> TrainStepReport:
    return run_train_step(
        TrainStepBenchRequest(
            **TINY | {"batch": [2, 3], "steps": ["eager", "fused"], "trace": trace}
        )
    )


def test_all_train_the_same(report: TrainStepReport) -> None:
    assert [(p.step, p.batch) for p in report.points] == [
        *(("eager", 2), ("fused", 2), ("eager", 3), ("fused", 3))
    ]
    for point in report.points:
        assert report.loss_difference(point) < 1e-4
        assert len(point.losses) == 5 and len(point.rounds) == 2 and point.together
    assert not report.left_out and report.exit_code == 0
    losses = [point.losses for point in report.points]
    assert losses[0] != pytest.approx(losses[2])


def test_a_record_holds_all_that_a_number_depends_on(
    report: TrainStepReport, tmp_path: Path
) -> None:
    report.save(tmp_path / "one.json", tmp_path / "lines.jsonl")
    document = json.loads((tmp_path / "one.json").read_text())
    records = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert len(records) == len(document["points"]) == 4
    record = records[1]
    needed = {"bench", "model", "step", "resolution", "batch", "views_per_s", "gpu", "driver",
              "cuda", "cudnn", "torch", "commit", "precision", "settings", "record"}  # fmt: skip
    assert needed <= set(record)
    assert record["bench"] == "train-step" and record["step"] == "fused" and record["views"] == 8
    assert record["views_per_s"] == pytest.approx(4 * record["images_per_s"], rel=1e-3)
    seconds = record["views"] / record["views_per_s"]
    assert record["step_ms_p50"] / 1e3 == pytest.approx(seconds, rel=0.5)
    assert record["step_ms_p95"] >= record["step_ms_p50"] > 0
    assert set(record["ratios"]) == {"eager"} and record["peak_memory_bytes"] > 1e7
    for speeds in ("measured", "reference"):
        found = record["roofline"][speeds]
        assert list(found) == ["a0", "a2", "c", "b", "convs"]
        for bound in found.values():
            share = record["views_per_s"] / bound["views_per_s"]
            assert bound["share"] == pytest.approx(share, rel=1e-3)
    flops = record["tflops"] * 1e12 / record["views_per_s"]
    layers = layers_of(ModelConfig(name="resnet18", width=8), 32)
    own = bounds(layers, **REFERENCE, batch=8, value_bytes=4, levels=["a0"])["a0"]
    assert flops == pytest.approx(own.flops, rel=1e-3)
    assert record["peak_share"] == pytest.approx(
        record["tflops"] / record["measured"]["tflops"], rel=1e-2
    )
    stages = {cell["stage"] for cell in record["kernels"]}
    assert {"views", "stem", "layer1", "layer4", "loss", "optimizer"} <= stages
    assert record["attributed"] > 0.8 and "roofline" in record["verdict"]


def test_people_read_it_in_eighty_columns(report: TrainStepReport) -> None:
    console = Console(record=True, width=80)
    report.show(console)
    text = console.export_text()
    tables = [line for line in text.splitlines() if not line.startswith(("eager:", "fused:"))]
    settled = [line for line in tables if not line.startswith(("model ", "this machine", "loss: "))]
    assert max(len(line.rstrip()) for line in settled) <= 80
    for told in ("32 px, 3 source images", "p95 ms", "loss", "roofline: maximum views/s",
                 "cuDNN's Hopper set", "x as fast as eager", "layer4", "in percent"):  # fmt: skip
        assert told in text
    assert "…" not in text


def test_every_point_has_its_trace(report: TrainStepReport, trace: Path) -> None:
    names = {path.name for path in trace.parent.iterdir()}
    assert names == {
        f"step-{step}-32px-{batch}.json.gz" for step in ("eager", "fused") for batch in (2, 3)
    }
    with gzip.open(trace.with_name("step-fused-32px-2.json.gz")) as file:
        events = json.load(file)["traceEvents"]
    assert any(event.get("name") == "fastrot::batch_norm" for event in events)


@pytest.mark.chaos
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
def test_the_compiled_step_is_measured_too() -> None:
    found = run_train_step(TrainStepBenchRequest(**TINY | {"steps": ["eager", "compile"]}))
    assert [point.step for point in found.points] == ["eager", "compile"], found.left_out
    table = found.points[1].table
    assert found.exit_code == 0 and table is not None
    assert not table.by_module and table.share(kind="convolution") > 0.05
    assert table.share(phase="backward") > 0.05 and table.share(phase="update") > 0


def test_what_cannot_run_is_left_out_with_the_reason() -> None:
    found = run_train_step(
        TrainStepBenchRequest(**TINY | {"steps": ["eager", "apex"], "kernels": False})
    )
    assert [point.step for point in found.points] == ["eager"]
    assert "train.batchnorm=apex is for fp16 on one GPU" in found.left_out["apex, 32 px, batch 2"]
    assert found.points[0].table is None and found.points[0].verdict() == "not profiled"
    with pytest.raises(UsageError, match=r"no implementation could run here: apex, 32 px"):
        run_train_step(TrainStepBenchRequest(**TINY | {"steps": ["apex"]}))


def test_too_little_memory_for_all_is_enough_for_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alive: list[str] = []

    class Small(StepSubject):
        """Two of them do not fit, and a batch of 3 never does."""

        def warm(self, steps: int) -> list[float]:
            alive.append(self.name)
            if len(alive) > 1 or self.views == 12:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore")
            return super().warm(steps)

    monkeypatch.setattr("fastrot.benchmarks.train_step.run.StepSubject", Small)
    monkeypatch.setattr("fastrot.benchmarks.train_step.run._free", lambda device: alive.clear())
    options = {"steps": ["eager", "fused"], "batch": [2, 3], "kernels": False}
    found = run_train_step(TrainStepBenchRequest(**TINY | options))
    assert [(p.step, p.batch, p.together) for p in found.points] == [
        *(("eager", 2, False), ("fused", 2, False))
    ]
    reason = "out of memory: CUDA out of memory. Tried to allocate 2 GiB."
    assert found.left_out == {f"{name}, 32 px, batch 3": reason for name in ("eager", "fused")}
    console = Console(record=True, width=80)
    found.show(console)
    assert "timed one after the other" in console.export_text()


def test_another_training_is_an_error(report: TrainStepReport) -> None:
    wrong = replace(report.points[1], losses=[*report.points[1].losses[:-1], 9.0])
    changed = replace(report, points=[report.points[0], wrong])
    assert changed.loss_difference(wrong) > 1 and changed.exit_code == 70
    lost = replace(report.points[1], losses=[*report.points[1].losses[:-1], float("nan")])
    changed = replace(report, points=[report.points[0], lost])
    assert changed.loss_difference(lost) == float("inf") and changed.exit_code == 70


def test_the_verdict_says_what_bounds_a_step() -> None:
    layers = layers_of(ModelConfig(name="resnet50"), 224)
    found = bounds(layers, **REFERENCE, batch=256)
    cells = {
        TimeSlot("layer1", "forward", "convolution"): 0.010,
        TimeSlot("layer1", "forward", "batch norm"): 0.012,
        TimeSlot("layer1", "backward", "elementwise"): 0.003,
    }
    table = TimeTable(cells, "cuda", by_module=True)
    told = verdict(table, 0.026, 256, found)
    assert (
        "batch norm 48 %" in told
        and "elementwise 12 %" in told
        and "limited mostly by passes over memory" in told
    )
    assert "the convolutions alone run at 25,600 views/s, 105 % of their roofline" in told
    assert "no kernel runs in 50 % of the step: limited by the host" in verdict(
        table, 0.050, 256, found
    )
    cells[TimeSlot("layer1", "forward", "convolution")] = 0.050
    assert "limited mostly by the convolutions" in verdict(table, 0.066, 256, found)


def test_the_machine_is_measured() -> None:
    speed = measure_speed(torch.device("cpu"), torch.float32)
    assert 1e9 < speed.peak < 1e14 and 1e8 < speed.bandwidth < 1e13
    assert set(MachineSpeed(1e12, 1e9).to_json().values()) == {1.0}
    times = durations(lambda: None, 4, torch.device("cpu"))
    assert len(times) == 4 and min(times) >= 0
    assert percentile([1.0, 2.0, 3.0], 0.95) == 3.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": ["eager", "turbo"]}, r"unknown steps \['turbo'\]; choose eager, compile"),
        ({"steps": []}, "--steps is empty; name at least one"),
        ({"batch": [0]}, r"--batch=\[0\] must be one or more positive"),
        ({"trace": Path("/nowhere/trace.json")}, "name a file in a folder that exists"),
        ({"device": "tpu"}, "--device=tpu must be auto, cpu or cuda"),
        ({"precision": "fp16"}, "fp16 is for GPUs"),
        ({"model": "resnet7"}, r"model\.name"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run_train_step(TrainStepBenchRequest(**TINY | options))


def test_settings_of_the_steps_are_settings_of_the_training() -> None:
    assert list(subject.STEPS) == ["eager", "compile", "fused", "apex"]
