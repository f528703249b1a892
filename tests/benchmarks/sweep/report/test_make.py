"""The three files of a sweep, and what is printed: complete for no cell, one, and five hundred."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from fastrot.benchmarks.sweep.record import CellRecord, read_cells
from fastrot.benchmarks.sweep.report.make import SweepReport, make_sweep_report
from fastrot.errors import StorageError, UsageError
from tests.program import run_python

Make = Callable[..., CellRecord]

HEADS = """key kind status reason environment expected ranks nodes global_batch_images
views_per_image repeats views_per_s views_per_s_low views_per_s_high views_per_s_per_rank
views_per_s_per_rank_low views_per_s_per_rank_high images_per_s images_per_s_low images_per_s_high
images_per_s_per_rank images_per_s_per_rank_low images_per_s_per_rank_high step_p50_ms step_p95_ms
step_p99_ms data_wait_fraction data_wait_fraction_low data_wait_fraction_high first_batch_s
loader_ceiling_images_per_s compute_ceiling_images_per_s bound_by share_of_peak_fraction
memory_bytes_per_rank loss busy_fraction contaminated weak_efficiency_vs_1_rank
weak_efficiency_vs_1_node strong_efficiency_vs_1_rank strong_efficiency_vs_1_node attempts seconds
exit_code job host code commit""".split()


def printed(report: SweepReport) -> str:
    console = Console(file=io.StringIO(), width=80)
    report.show(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def table(report: SweepReport) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(report.paths[1].read_text())))


def test_one_cell(cell: Make, tmp_path: Path) -> None:
    cell({"data.workers": 2}, (90.0, 100.0, 110.0)).save(tmp_path)
    report = make_sweep_report(tmp_path)
    assert [p.name for p in report.paths] == ["report.html", "report.csv", "report.json"]
    (row,) = table(report)
    assert list(row) == [*HEADS, "axis.data.workers"]  # what others read: never renamed
    assert (row["views_per_s"], row["views_per_s_low"], row["step_p99_ms"]) == ("400", "360", "700")
    assert (row["share_of_peak_fraction"], row["bound_by"], row["busy_fraction"]) == (
        *("0.4", "compute"),
        "0.01",
    )
    tree = json.loads(report.paths[2].read_text())
    assert tree["format"] == 1 and tree["cells"][0]["figures"]["views_per_s"]["median"] == 400
    assert tree["cells"][0]["record"]["measured"]["images_per_s"] == [90, 100, 110]
    assert tree["environments"][0]["fields"]["torch"] == "2.15.0"
    assert "Scaling" not in report.paths[0].read_text()
    assert "1 done" in printed(report) and report.exit_code == 0


def test_a_loss_that_is_not_finite_is_null(cell: Make, tmp_path: Path) -> None:
    cell(loss=float("nan"), peak_flops=1e-300, flops_per_view=1e300).save(tmp_path)
    (only,) = json.loads(make_sweep_report(tmp_path).paths[2].read_text())["cells"]
    assert only["record"]["measured"]["loss"] is None
    assert only["figures"]["loss"] is None and only["figures"]["share_of_peak"] is None


def test_no_cell_is_done(cell: Make, tmp_path: Path) -> None:
    cell({"ranks": 1}, failed="out of memory: 9 GiB").save(tmp_path)
    tree = {"cells": [{"key": "k2", "axes": {"ranks": 2}}]}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(tree))
    report = make_sweep_report(tmp_path)
    assert [row["status"] for row in table(report)] == ["failed", "not measured"]
    page = report.paths[0].read_text()
    assert "✗ failed: out of memory: 9 GiB" in page and "– not measured" in page
    assert "0 done, 1 failed, 1 not measured" in printed(report)


def test_no_cell_at_all(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    report = make_sweep_report(tmp_path)
    assert table(report) == [] and "0 done" in printed(report)
    assert "none is recorded" in report.paths[0].read_text()


def test_five_hundred_cells(cell: Make, tmp_path: Path) -> None:
    grid = itertools.product(["native", "ffcv"], range(10), range(8, 208, 8))
    for n, (loader, workers, batch) in enumerate(grid):
        axes = {"data.loader": loader, "data.workers": workers, "batch_per_rank": batch}
        failed = "out of memory" if n % 7 == 0 else None
        cell(axes, (n + 1.0, n + 1.5), failed=failed).save(tmp_path)
    report = make_sweep_report(tmp_path)
    assert len(table(report)) == 500
    page = report.paths[0].read_text()
    assert page.count("✗ failed: out of memory") == 72 and len(page) < 2e6
    assert "2,001" in page  # the fastest: 500.25 images/s of four views
    assert "428 done, 72 failed" in printed(report)
    old = make_sweep_report(tmp_path, tmp_path / "old").paths[2]
    for record in read_cells(tmp_path):
        replace(record, status="failed", reason="lost", measured=None).save(tmp_path)
    lines = printed(make_sweep_report(tmp_path, baseline=old)).splitlines()
    assert max(map(len, lines[:-5])) <= 80
    assert any("388 more cells: see report.html" in line for line in lines)


def test_the_same_cells_give_the_same_bytes(cell: Make, tmp_path: Path) -> None:
    for ranks in (1, 2):
        cell({"ranks": ranks}).save(tmp_path)
    one = [path.read_bytes() for path in make_sweep_report(tmp_path).paths]
    other = [path.read_bytes() for path in make_sweep_report(tmp_path, tmp_path / "b").paths]
    assert one == other


def test_where_it_is_written(cell: Make, tmp_path: Path) -> None:
    cell().save(tmp_path)
    paths = make_sweep_report(tmp_path, tmp_path / "x.html").paths
    assert [path.name for path in paths] == ["x.html", "x.csv", "x.json"]
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="name another folder"):
        make_sweep_report(tmp_path, tmp_path / "file/y")


def test_formulas_of_a_spreadsheet_are_text(cell: Make, tmp_path: Path) -> None:
    cell({"=x": "=1+1", "n": -4}, failed="@SUM(A1)").save(tmp_path)
    (row,) = table(make_sweep_report(tmp_path))
    assert (row["reason"], row["axis.=x"], row["axis.n"]) == ("'@SUM(A1)", "'=1+1", "-4")


def test_efficiencies_and_environments_stand_in_all_files(cell: Make, tmp_path: Path) -> None:
    for ranks, rate in ((1, 100.0), (2, 180.0)):
        cell({"ranks": ranks}, (rate, rate)).save(tmp_path)
    cell({"ranks": 4}, host="EPYC").save(tmp_path)
    report = make_sweep_report(tmp_path)
    rows = {row["ranks"]: row for row in table(report)}
    weak = {ranks: row["weak_efficiency_vs_1_rank"] for ranks, row in rows.items()}
    assert weak == {"1": "", "2": "0.9", "4": ""}
    tree = json.loads(report.paths[2].read_text())
    assert [each["efficiency"]["median"] for each in tree["scaling"]] == [0.9]
    assert [each["name"] for each in tree["environments"]] == ["A", "B"]
    page = report.paths[0].read_text()
    assert "Environment B: host EPYC" in page and "differ in: host" in page
    assert "2 environments" in printed(report)


def fastrot(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastrot", "report", *map(str, words)]
    environment = os.environ | {"COLUMNS": "80"}
    return run_python(command, env=environment)


def test_the_command_line(cell: Make, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    cell({"ranks": 1}, (100.0, 101.0)).save(old)
    cell({"ranks": 1}, (80.0, 81.0)).save(new)
    kept = make_sweep_report(old).paths[2].rename(tmp_path / "kept.json")
    slower = fastrot(new, "--baseline", kept, "--threshold", "5%")
    assert slower.returncode == 79, slower.stderr
    assert "✗ slower" in slower.stdout and "0.801" in slower.stdout
    assert max(map(len, slower.stdout.splitlines()[:8])) <= 80
    assert make_sweep_report(new, baseline=kept, threshold="25").exit_code == 0
    page = (new / "report.html").read_text()
    assert "Comparison with the baseline" in page and "0.801" in page


def test_what_cannot_be_meant_is_refused(cell: Make, tmp_path: Path) -> None:
    cell().save(tmp_path)
    report = make_sweep_report(tmp_path)
    before = report.paths[2].read_bytes()
    with pytest.raises(UsageError, match="would be overwritten"):
        make_sweep_report(tmp_path, baseline=report.paths[2])
    with pytest.raises(UsageError, match="--threshold=5 is for --baseline"):
        make_sweep_report(tmp_path, threshold="5")
    with pytest.raises(UsageError, match="--threshold=much must be a number"):
        make_sweep_report(tmp_path, tmp_path / "b", baseline=report.paths[2], threshold="much")
    assert report.paths[2].read_bytes() == before


def test_a_run_has_no_baseline(tmp_path: Path) -> None:
    refused = fastrot(tmp_path, "--threshold", "5")
    assert refused.returncode == 64 and "are for the folder of a sweep" in refused.stderr


def test_a_sweep_is_not_its_own_baseline(cell: Make, tmp_path: Path) -> None:
    cell({"ranks": 1}, (100.0, 101.0)).save(tmp_path / "sweep")
    done = fastrot(tmp_path / "sweep", "--baseline", tmp_path / "sweep")
    assert done.returncode == 64 and "is the sweep itself" in done.stderr
