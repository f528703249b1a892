"""Rows 13 and 27: losses that are no numbers, clocks that jump, other load."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from tests.chaos.conftest import TinyRun, final_tensors
from tests.conftest import FaultLog
from tests.program import ROOT, pairs


@pytest.mark.parametrize("rate", ["1e30", pytest.param("3e4", marks=pytest.mark.chaos)])
def test_a_loss_that_is_no_number(
    rate: str, tiny: TinyRun, tmp_path: Path, fault_log: FaultLog
) -> None:
    """The last checkpoint is finite, is kept, and equals that of a run that stops there."""
    hot = pairs(f"optim.learning_rate={rate}", "optim.warmup_epochs=0", "train.max_steps=60")
    with fault_log(13) as trial:
        ended = tiny.server.run(*tiny.train(tmp_path / "run", *hot))
        trial.seconds = ended.seconds
        assert ended.code == 70 and "NaN or infinite in step" in ended.line, ended.text
        step = json.loads((tmp_path / "run" / "status.json").read_text())["step"]
        last = final_tensors(tmp_path / "run", step)
        assert all(value.isfinite().all() for value in last.values())
        if step:
            stopped = tiny.server.run(
                *tiny.train(tmp_path / "to", *hot, *pairs(f"train.max_steps={step}"))
            )
            assert stopped.code == 0, stopped.text
            same = final_tensors(tmp_path / "to", step)
            assert all(torch.equal(last[name], same[name]) for name in same)


def wall_clock_differences(code: str) -> list[int]:
    """Lines that take the difference of the time of day, which may jump."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub):
            parts = (ast.unparse(node.left), ast.unparse(node.right))
            if any("time.time()" in part or "datetime.now" in part for part in parts):
                found.append(node.lineno)
    return found


def test_no_duration_is_taken_from_the_time_of_day(fault_log: FaultLog) -> None:
    with fault_log(27):
        found = {}
        for folder in ("fastrot", "benchmarks", "kernels"):
            for path in sorted((ROOT / folder).rglob("*.py")):
                if lines := wall_clock_differences(path.read_text()):
                    found[str(path.relative_to(ROOT))] = lines
        # The age of a file is its time of modification against the time of day: for litter only.
        found.pop("fastrot/runs/checkpoint.py", None)
        found = {name: lines for name, lines in found.items() if "/benchmarks/" not in name}
        assert found == {}
    assert wall_clock_differences("x = time.time() - start") == [1]


@pytest.mark.chaos
def test_other_load_marks_what_is_measured_meanwhile(tmp_path: Path, fault_log: FaultLog) -> None:
    """A program of ours on every core; the report tells of it, in its table and its notes."""
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        "{name: loaded, kind: loader, recipe: digits, grid: {data.workers: [0]}, repeats: 2, "
        "seconds: 1, warm_up_steps: 2, set: {data.padding: 2}}"
    )
    command = [sys.executable, "-m", "fastrot"]
    with fault_log(27) as trial, ExitStack() as stack:
        for _ in range(os.cpu_count() or 1):
            burner = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while 1: pass"]))
            stack.callback(burner.kill)
        subprocess.run([*command, "bench", "sweep", str(sweep), "--out", str(tmp_path / "out")],
                       check=True, cwd=ROOT)  # fmt: skip
        stack.close()
        subprocess.run([*command, "report", str(tmp_path / "out")], check=True, cwd=ROOT)
        (cell,) = json.loads((tmp_path / "out" / "report.json").read_text())["cells"]
        trial.seconds, figures = cell["record"]["seconds"], cell["figures"]
        assert figures["contaminated"] is True and figures["busy"] > 0.2
        assert "1 cell contaminated" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("jump", [-86_400.0, pytest.param(86_400.0, marks=pytest.mark.chaos)])
def test_the_clock_jumps_while_training(
    jump: float, tiny: TinyRun, tmp_path: Path, fault_log: FaultLog
) -> None:
    """By a day, to and fro at every look; the run ends as if nothing was."""
    out = tiny.copy(tmp_path / "run")
    with fault_log(27) as trial:
        ended = tiny.server.run("tests.chaos.children:jumping_clock", str(jump), *tiny.resume(out))
        trial.seconds = ended.seconds
        assert ended.code == 0, ended.text
        tiny.assert_same_end(out)
        records = [json.loads(line) for line in (out / "metrics.jsonl").open()]
        rates = [record["images_per_second"] for record in records if record["kind"] == "train"]
        assert rates and all(0 < rate < 1e5 for rate in rates)
