"""Records: the files of this repository, of every command, and damaged ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastrot.benchmarks.plan.records import (
    RESULTS,
    LinkRecord,
    OverlapRecord,
    StepRecord,
    read_records,
    shipped_paths,
)
from fastrot.benchmarks.sweep.record import CellRecord, Measured
from fastrot.config import load_config
from fastrot.errors import BadDataError, UsageError

MACHINE = {"processor": "Some CPU", "cores": 4, "gpus": [], "commit": "abc"}


def cell(**changes: Any) -> CellRecord:
    config = load_config("photos_cpu", ["train.threads=1", "train.precision=fp32"])
    measured = Measured(
        ranks=1, nodes=1, global_batch=32, views=4, images_per_s=(30.0, 32.0, 40.0), steps_ms={},
        data_wait=(0.0,), first_batch_s=None, loader_images_per_s=None,
        compute_images_per_s=64.0, flops_per_view=None, peak_flops=None, memory_bytes=10**9,
        loss=None, busy=None,
    )  # fmt: skip
    values: dict[str, Any] = {
        "key": "k", "sweep": "s", "kind": "train", "axes": {}, "code": "c", "host": "h",
        "config": config.model_dump(mode="json"), "status": "done", "reason": None,
        "exit_code": 0, "attempts": 1, "seconds": 1.0, "job": None, "record": MACHINE,
        "measured": measured,
    }  # fmt: skip
    return CellRecord(**(values | changes))


def test_the_committed_records_are_read() -> None:
    assert shipped_paths()
    steps = [r for r in read_records(shipped_paths()) if isinstance(r, StepRecord)]
    (one,) = (r for r in steps if r.model[0] == "resnet50" and r.step == "eager")
    assert (one.batch, one.resolution, one.precision, one.views) == (8, 64, "fp32", 4)
    assert one.seconds == pytest.approx(32 / 64.783)
    assert one.hardware == "Intel(R) Xeon(R) Processor, 2 threads" and not one.on_gpu
    (trainer,) = (r for r in steps if r.source.startswith("train_2xeon"))
    assert (trainer.model, trainer.batch) == (("resnet18", 32, "imagenet"), 32)


def test_overlaps_are_read_and_worked_out_of_older_records(tmp_path: Path) -> None:
    found = read_records([RESULTS / "plan_2xeon_202611.jsonl"])
    assert [r.overlap for r in found if isinstance(r, OverlapRecord)] == [0.0, 0.0, 0.0]
    times = {"alone": 10.0, "predicted": 14.0, "measured": 11.0}
    older = {"bench": "plan-check", "record": MACHINE | {"gpus": ["GPU A"]},
             **{f"{name}_ms": {"median": value} for name, value in times.items()}}  # fmt: skip
    whole = {"bench": "plan-check", "settings": {}, "record": MACHINE, "points": [{"overlap": 0.5}]}
    for tree, hardware, expected in ((older, "GPU A", 0.75), (whole, "Some CPU", 0.5)):
        (tmp_path / "one.json").write_text(json.dumps(tree))
        (record,) = read_records([tmp_path / "one.json"])
        assert record == OverlapRecord("one.json", hardware, expected)


def test_a_cell_and_a_folder_of_a_sweep(tmp_path: Path) -> None:
    file = cell().save(tmp_path)
    for path in (file, tmp_path):
        (record,) = read_records([path])
        assert isinstance(record, StepRecord)
        assert record.seconds == pytest.approx(32 / 64.0)  # of the step alone
        assert (record.batch, record.memory) == (32, 10**9)
        assert record.hardware == "Some CPU, 1 thread"


def test_cells_that_failed_or_had_several_ranks_tell_of_no_single_one(tmp_path: Path) -> None:
    whole = cell()
    assert whole.measured is not None
    several = Measured(**{**vars(whole.measured), "ranks": 2})
    cell(key="a", status="failed", measured=None).save(tmp_path)
    cell(key="b", measured=several).save(tmp_path)
    assert read_records([tmp_path]) == []


def test_one_object_written_with_json(tmp_path: Path) -> None:
    line = (RESULTS / "train_step_2xeon_202611.jsonl").read_text().splitlines()[0]
    point = json.loads(line)
    whole = {"bench": "train-step", "points": [point], "settings": point["settings"],
             "record": point["record"]}  # fmt: skip
    (tmp_path / "one.json").write_text(json.dumps(whole, indent=1))
    (tmp_path / "lines.jsonl").write_text(line + "\n")
    one, other = read_records([tmp_path / "one.json", tmp_path / "lines.jsonl"])
    assert isinstance(one, StepRecord) and isinstance(other, StepRecord)
    assert vars(one) | {"source": ""} == vars(other) | {"source": ""}


def test_a_link(tmp_path: Path) -> None:
    tree = {"bench": "allreduce", "ranks": 8, "nodes": 1, "backend": "nccl", "latency_us": 4.0,
            "gb_per_s": 180.0, "record": MACHINE | {"gpus": ["NVIDIA H100"]}}  # fmt: skip
    (tmp_path / "link.json").write_text(json.dumps(tree))
    (record,) = read_records([tmp_path / "link.json"])
    assert isinstance(record, LinkRecord)
    assert (record.hardware, record.ranks) == ("NVIDIA H100", 8)
    assert record.link.latency == pytest.approx(4e-6)
    assert record.link.bandwidth == pytest.approx(180e9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "neither a JSON object nor lines"),
        ("[1, 2]", "no record of fastrot bench"),
        ('{"bench": "allreduce"}', "lacks a field"),
        ('{"bench": "train-step", "settings": 3}', "lacks a field"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(BadDataError, match=message) as raised:
        read_records([tmp_path / "x.jsonl"])
    assert "x.jsonl" in str(raised.value)


def test_a_missing_file_is_a_mistake_of_the_command(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_records([tmp_path / "none.jsonl"])


def test_other_benchmarks_are_passed_over() -> None:
    for name in ("knn", "loader"):
        assert read_records([RESULTS / f"{name}_2xeon_202611.jsonl"]) == []


STEP = {
    "bench": "train-step", "model": "resnet18", "resolution": 64, "batch": 8, "views": 32,
    "views_per_s": 64.0, "precision": "fp32", "step": "eager", "record": MACHINE,
    "settings": {"width": 64, "stem": "imagenet", "threads": 1},
}  # fmt: skip
LINK = {"bench": "allreduce", "record": MACHINE, "ranks": 2, "nodes": 1, "backend": "gloo",
        "latency_us": 10.0, "gb_per_s": 1.0}  # fmt: skip


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (STEP | {"views_per_s": float("nan")}, "seconds per step is nan"),
        (STEP | {"views_per_s": -5}, "seconds per step is -6.4"),
        (STEP | {"views_per_s": 0}, "ZeroDivisionError"),
        (STEP | {"batch": -64}, "views is -1"),
        (STEP | {"batch": 0}, "ZeroDivisionError"),
        (STEP | {"peak_memory_bytes": "lots"}, "memory is 'lots', not a number"),
        (LINK | {"gb_per_s": 0}, "bandwidth is 0"),
        (LINK | {"nodes": [1]}, "nodes is .1., not a number"),
        ({"bench": "plan-check", "record": MACHINE, "overlap": 7.5}, "overlap is 7.5"),
        ({"bench": "plan-check", "record": MACHINE, "overlap": float("nan")}, "overlap is nan"),
        ({"bench": "train-step", "points": 5, "settings": {}}, "settings and points"),
        ({"bench": "train-step", "points": [1]}, "settings and points"),
        ({}, "no record of fastrot bench"),
    ],
)
def test_impossible_values_are_refused(tmp_path: Path, tree: Any, words: str) -> None:
    for good in (STEP, LINK):
        (tmp_path / "good.json").write_text(json.dumps(good))
        assert len(read_records([tmp_path / "good.json"])) == 1
    (tmp_path / "x.json").write_text(json.dumps(tree))
    with pytest.raises(BadDataError, match=words):
        read_records([tmp_path / "x.json"])


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(BadDataError, match=r"x\.json"):
        read_records([tmp_path / "x.json"])
