from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from fastrot.benchmarks.sweep import pending
from fastrot.benchmarks.sweep.record import read_cells
from fastrot.benchmarks.sweep.run import SweepRequest, run_sweep
from fastrot.errors import MismatchError, UsageError
from fastrot.system.lock import RunLock

SWEEP = """
name: tiny
kind: KIND
recipe: digits
set: {model.width: 8, data.padding: 2, data.workers: 0, train.threads: 1, data.resolution: 16}
grid:
  train.global_batch: [16, 4096]
repeats: 2
seconds: 0.1
warm_up_steps: 2
deadline_s: 120
"""


def write(folder: Path, kind: str = "loader", **changes: str) -> str:
    path = folder / "sweep.yaml"
    text = SWEEP.replace("KIND", kind)
    for old, new in changes.items():
        text = text.replace(old, new)
    path.write_text(text)
    return str(path)


def request(folder: Path, sweep: str, cluster: str = "debug", **more: object) -> SweepRequest:
    return SweepRequest(sweep, out=folder / "out", cluster=cluster, progress=False, **more)  # type: ignore[arg-type]


def test_a_cell_that_cannot_be_is_recorded_and_not_tried_again(tmp_path: Path) -> None:
    sweep = write(tmp_path)
    first = run_sweep(request(tmp_path, sweep))
    done, failed = sorted(read_cells(tmp_path / "out"), key=lambda record: record.status)
    assert (done.status, failed.status, first.exit_code) == ("done", "failed", 1)
    assert done.measured is not None and len(done.measured.images_per_s) == 2
    assert "4096" in str(failed.reason) and failed.exit_code in (64, 65) and failed.measured is None
    assert (first.measured, first.skipped, first.known) == (2, 0, 0)
    plan = yaml.safe_load((tmp_path / "out" / "sweep.yaml").read_text())
    assert {cell["key"] for cell in plan["cells"]} == {done.key, failed.key}
    again = run_sweep(request(tmp_path, sweep))
    assert (again.measured, again.skipped, again.known) == (0, 1, 1)
    retried = run_sweep(request(tmp_path, sweep, retry_failed=True))
    assert (retried.measured, retried.skipped) == (1, 1)
    assert max(record.attempts for record in read_cells(tmp_path / "out")) == 1 + retried.measured


def test_what_other_settings_measured_waits_aside(tmp_path: Path) -> None:
    sweep = write(tmp_path)
    run_sweep(request(tmp_path, sweep, overrides=["train.seed=0"]))
    other = run_sweep(request(tmp_path, sweep, overrides=["train.seed=1"], dry_run=True))
    assert other.records == {} and len(read_cells(tmp_path / "out")) == 2  # untouched
    run_sweep(request(tmp_path, sweep, overrides=["train.seed=1"]))
    assert len(read_cells(tmp_path / "out")) == 2
    plan = yaml.safe_load((tmp_path / "out" / "sweep.yaml").read_text())
    assert plan["given"] == {"data": None, "overrides": ["train.seed=1"]}
    assert len(list((tmp_path / "out" / "cells" / pending.SUPERSEDED).glob("*.json"))) == 2
    back = run_sweep(request(tmp_path, sweep))
    assert (back.measured, back.skipped) == (0, 1)


def test_a_rank_trains_and_everything_is_measured(tmp_path: Path) -> None:
    sweep = write(tmp_path, "train", **{"[16, 4096]": "[16]"})
    summary = run_sweep(request(tmp_path, sweep))
    assert summary.exit_code == 0
    (record,) = read_cells(tmp_path / "out")
    measured = record.measured
    assert measured is not None and record.config["data"]["loader"] == "native"
    assert len(measured.images_per_s) == len(measured.data_wait) == 2
    p50, p95, p99 = (measured.steps_ms[name] for name in ("p50", "p95", "p99"))
    assert 0 < p50 <= p95 <= p99
    # Rates and times are of the same steps: the median step is near the mean rate.
    assert 1e3 * 16 / p50 == pytest.approx(max(measured.images_per_s), rel=1.0)
    assert measured.loss is not None and 0 < measured.loss < 3
    for value in (
        measured.first_batch_s,
        measured.loader_images_per_s,
        measured.compute_images_per_s,
        measured.flops_per_view,
        measured.peak_flops,
        measured.memory_bytes,
    ):
        assert value is not None and value > 0
    assert all(0 <= wait < 1 for wait in measured.data_wait)


@pytest.mark.chaos
def test_two_ranks_are_measured_and_leave_no_process(tmp_path: Path) -> None:
    sweep = write(tmp_path, "train", **{"train.global_batch: [16, 4096]": "ranks: [2]"})
    summary = run_sweep(request(tmp_path, sweep, "local", overrides=["train.global_batch=16"]))
    (record,) = read_cells(tmp_path / "out")
    assert summary.exit_code == 0, record.reason
    assert record.measured is not None
    assert (record.measured.ranks, record.measured.global_batch) == (2, 16)
    assert record.measured.busy is not None and 0 <= record.measured.busy <= 1


def test_a_cell_over_its_deadline_is_recorded_and_tried_again(tmp_path: Path) -> None:
    sweep = write(tmp_path, **{"[16, 4096]": "[16]", "deadline_s: 120": "deadline_s: 0.3"})
    assert run_sweep(request(tmp_path, sweep, "local")).exit_code == 1
    (record,) = read_cells(tmp_path / "out")
    assert "deadline_s=0.3" in str(record.reason) and record.exit_code is None
    assert run_sweep(request(tmp_path, sweep, "local", dry_run=True)).to_json()["failed"] == 1
    run_sweep(request(tmp_path, sweep, "local"))
    (record,) = read_cells(tmp_path / "out")
    assert record.attempts == 2


def test_an_interrupted_sweep_ends_its_ranks_and_keeps_the_finished_cells(tmp_path: Path) -> None:
    sweep = write(tmp_path, **{"[16, 4096]": "[16, 32]"})
    command = [sys.executable, "-m", "fastrot", "bench", "sweep", sweep, "--out"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, str(tmp_path / "out"), "--set", "deadline_s=600"], stderr=log, stdout=log
        )
        end = time.monotonic() + 600
        while len(list((tmp_path / "out" / "cells").glob("*.log"))) < 2:
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.02)  # until the second cell begins
        process.send_signal(signal.SIGINT)
        assert process.wait(300) == 130
    assert "the same command continues" in (tmp_path / "log").read_text()
    assert [record.status for record in read_cells(tmp_path / "out")] == ["done"]
    assert not any("sweep.rank" in command for command in commands_naming(tmp_path))


def commands_naming(folder: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(folder) in words:
                found.append(words)
    return found


def test_two_commands_do_not_measure_into_one_folder(tmp_path: Path) -> None:
    sweep = write(tmp_path)
    (tmp_path / "out").mkdir()
    with (
        RunLock(tmp_path / "out" / "sweep.lock"),
        pytest.raises(MismatchError, match=r"the sweep in .* is held"),
    ):
        run_sweep(request(tmp_path, sweep))


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastrot", "bench", "sweep", write(tmp_path)]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out"), "--dry-run", "--json"],
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout)["cells"] == 2 and done.returncode == 0
    assert not (tmp_path / "out").exists()


def test_an_unknown_cluster_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="slurm, local, debug"):
        run_sweep(request(tmp_path, write(tmp_path), "cloud"))
