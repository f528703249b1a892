"""Sweeps and training on a real Slurm: what is killed, preempted, over time, or gets nowhere."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fastrot.benchmarks.sweep.record import CellRecord, read_cells
from fastrot.data.digits import write_digits
from fastrot.distributed.slurm_jobs import job_states
from fastrot.runs.checkpoint import newest_checkpoint
from fastrot.runs.folder import read_status
from fastrot.system.jsonl import read_json_lines

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("slurm")]

FASTROT = [sys.executable, "-m", "fastrot"]
SWEEP = """
name: three-faults
kind: loader
recipe: digits
set: {model.width: 8, data.padding: 2, data.workers: 0, train.threads: 1}
grid:
  data.resolution: [16, 24]
  train.global_batch: [8, 16, 32]
repeats: 2
seconds: 0.1
warm_up_steps: 2
deadline_s: 300
slurm: {time_min: 3, signal_delay_s: 1, array_parallelism: 3, cpus_per_task: 1}
"""


# What hangs is given up after this many seconds. Far more than anything here takes, because other
# work on the machine can slow it down several times.
PATIENCE = 900.0


def wait_until(true: Callable[[], Any]) -> Any:
    """What a condition finds, once it finds something."""
    end = time.monotonic() + PATIENCE
    while True:
        found = true()
        if found:
            return found
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.05)


def ranks_of(folder: Path) -> dict[str, int]:
    """Processes that measure cells of a sweep now: their pids, by the cell's key."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0")
        except (OSError, NotADirectoryError):
            continue
        if "fastrot.benchmarks.sweep.rank" in words:
            job = Path(words[words.index("fastrot.benchmarks.sweep.rank") + 1])
            if job.is_relative_to(folder):
                found[job.stem] = int(entry.name)
    return found


def job_of(folder: Path, key: str) -> str:
    return re.findall(r", job (\S+)", (folder / "cells" / f"{key}.log").read_text())[-1]


def told(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


@contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def array_tasks(folder: Path) -> dict[str, int]:
    """How many tasks each job of a sweep had, by what submitit has left of them."""
    tasks: dict[str, int] = {}
    for path in (folder / "jobs").glob("*_submitted.pkl"):
        job = path.name.partition("_")[0]
        tasks[job] = tasks.get(job, 0) + 1
    return tasks


@pytest.mark.chaos
@pytest.mark.fault(26)
def test_a_sweep_as_a_job_array_survives_three_faults(tmp_path: Path) -> None:
    data, _ = write_digits(tmp_path)
    sweep, folder = tmp_path / "sweep.yaml", tmp_path / "out"
    sweep.write_text(SWEEP)
    command = [*FASTROT, "bench", "sweep", str(sweep), "--data", str(data)]
    command += ["--out", str(folder), "--cluster", "slurm", "--json"]
    victims: dict[str, str] = {}

    def fresh() -> tuple[str, int] | None:
        return next(
            ((k, p) for k, p in ranks_of(folder).items() if k not in victims.values()), None
        )

    with running(command, tmp_path / "first.log") as process:
        victims["stopped"], pid = wait_until(fresh)
        os.kill(pid, signal.SIGSTOP)  # as if it hung: only the time limit can end it
        told("scontrol", "update", f"JobId={job_of(folder, victims['stopped'])}", "TimeLimit=1")
        victims["preempted"], pid = wait_until(fresh)
        told("scontrol", "requeue", job_of(folder, victims["preempted"]))
        victims["killed"], pid = wait_until(fresh)
        os.kill(pid, signal.SIGKILL)
        assert process.wait(PATIENCE) == 1, (
            tmp_path / "first.log"
        ).read_text()  # cells have failed

    records = {record.key: record for record in read_cells(folder)}
    assert len(records) == 6
    assert array_tasks(folder) == {records[victims["killed"]].job.partition("_")[0]: 6}  # type: ignore[union-attr]
    failed = {key for key, record in records.items() if record.status == "failed"}
    assert failed == {victims["stopped"], victims["killed"]}
    assert records[victims["killed"]].exit_code == -signal.SIGKILL
    assert "killed by SIGKILL" in str(records[victims["killed"]].reason)
    assert "over its time limit" in str(records[victims["stopped"]].reason)
    assert records[victims["preempted"]].attempts == 2
    assert all(rate_of(record) > 0 for key, record in records.items() if key not in failed)
    assert ranks_of(folder) == {}

    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    summary = json.loads(again.stdout)
    assert (summary["done"], summary["failed"], summary["measured"]) == (6, 0, 2)
    assert sorted(array_tasks(folder).values()) == [2, 6]
    assert {record.attempts for record in read_cells(folder) if record.key in failed} == {2}

    third = json.loads(subprocess.run(command, capture_output=True, text=True).stdout)
    assert (third["measured"], third["skipped"]) == (0, 6)
    assert sorted(array_tasks(folder).values()) == [2, 6]


def rate_of(record: CellRecord) -> float:
    assert record.measured is not None
    return min(record.measured.images_per_s)


@pytest.mark.fault(26)
def test_a_submission_that_slurm_refuses_is_recorded(tmp_path: Path) -> None:
    sweep, folder = tmp_path / "sweep.yaml", tmp_path / "out"
    sweep.write_text(SWEEP)
    command = [*FASTROT, "bench", "sweep", str(sweep), "--out", str(folder), "--json"]
    command += ["--cluster", "slurm", "--set", "slurm.partition=none-such"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    reasons = {record.reason for record in read_cells(folder)}
    assert len(read_cells(folder)) == 6 and len(reasons) == 1
    assert "submission refused" in str(reasons) and "artition" in str(reasons)


TRAIN = [
    *("train", "-c", "digits", "--set", "model.width=8", "--set", "data.resolution=16"),
    *("--set", "data.padding=2", "--set", "data.workers=0", "--set", "train.threads=1"),
    *("--set", "train.global_batch=16", "--set", "train.epochs=2", "--set", "train.val_knn=never"),
    *("--set", "train.log_seconds=0.1", "--set", "sinks.tensorboard=false"),
]


@pytest.mark.chaos  # Slurm lets a job that was requeued wait two minutes
@pytest.mark.fault(4)
def test_a_preempted_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path: Path) -> None:
    alone, out = tmp_path / "alone", tmp_path / "out"
    command = [*FASTROT, *TRAIN, "--out", str(out), "--cluster", "slurm", "--gpus", "0"]
    for option in ("tasks_per_node=2", "cpus_per_task=1", "time_min=20"):
        command += ["--slurm", option]
    submitted = subprocess.run(command, capture_output=True, text=True)
    assert submitted.returncode == 0, submitted.stderr
    job = re.findall(r"submitted job (\d+)", submitted.stdout)[0]
    starts = tmp_path / "out.slurm" / "starts.jsonl"

    def trains(start: int) -> Callable[[], bool]:
        def look() -> bool:
            begun = [r for r in read_json_lines(starts) if r["kind"] == "start"]
            lines = [r for r in read_json_lines(out / "metrics.jsonl") if r["kind"] == "train"]
            return len(begun) == start and bool(lines) and lines[-1]["step"] > begun[-1]["step"]

        return look

    wait_until(trains(1))
    run_id = read_status(out)["run_id"]
    told("scancel", "--signal=USR2", job)  # what Slurm sends before the time limit
    reference = undisturbed(alone)  # while the job waits in the queue
    wait_until(trains(2))
    told("scontrol", "requeue", job)  # what an administrator, or a job that matters more, does
    wait_until(lambda: not job_states([job])[job].lives)
    assert read_status(out)["state"] == "done"
    assert [rank.wait(PATIENCE) for rank in reference] == [0, 0]
    records = list(read_json_lines(starts))
    began = [record["step"] for record in records if record["kind"] == "start"]
    assert len(began) == 3 and began[0] == 0 < began[1] < began[2]
    ends = [record["exit_code"] for record in records if record["kind"] == "end"]
    assert ends[0] == 75 and ends[-1] == 0
    assert read_status(out)["run_id"] == run_id  # and so the trackers' runs
    same, other = (newest_checkpoint(each / "checkpoints", None) for each in (alone, out))
    assert same is not None and other is not None and same.step == other.step
    for name, tensor in same.tensors.items():
        assert tensor.equal(other.tensors[name]), name


def undisturbed(out: Path) -> list[subprocess.Popen[bytes]]:
    """The same two ranks without Slurm, just started."""
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "FASTROT_STORE": f"{out}.store"}
    return [
        subprocess.Popen(
            [*FASTROT, *TRAIN, "--out", str(out)],
            env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]


@pytest.mark.fault(4)
def test_a_run_that_gets_nowhere_is_not_requeued_for_ever(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [*FASTROT, *TRAIN, "--out", str(out), "--cluster", "slurm", "--gpus", "0", "--wait"]
    starts = tmp_path / "out.slurm" / "starts.jsonl"
    with running(command, tmp_path / "log") as process:
        for start in (1, 2):
            wait_until(
                lambda n=start: sum(r["kind"] == "start" for r in read_json_lines(starts)) == n
            )
            job = str(next(read_json_lines(starts))["job"])
            told("scancel", "--signal=USR2", job)  # before its first step
        code = process.wait(PATIENCE)
    text = (tmp_path / "log").read_text()
    assert code == 70, text
    assert (
        "two starts in a row ended at step 0"
        in (tmp_path / "out.slurm" / f"{job}_0_log.out").read_text()
    )
    assert not job_states([job])[job].lives
