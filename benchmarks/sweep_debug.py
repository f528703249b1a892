"""A cell measured in this very process, where a debugger can look at it."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from fastrot.benchmarks.harness import machine_record
from fastrot.benchmarks.sweep_cell import Outcome, run_cell, save_record
from fastrot.benchmarks.sweep_job import read_job
from fastrot.errors import FastrotError


def debug_cell(path: str) -> None:
    """Measure the cell that a job file describes; one of several ranks as ``run_cell`` does.

    There is no deadline, and an error that is no FastrotError is raised as it is.
    """
    job = read_job(path)
    if job.ranks > 1:
        run_cell(path)
        return
    from fastrot.benchmarks.sweep_measure import measure
    from fastrot.train import out_of_memory_told

    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fastrot-cell-") as folder:
        try:
            with out_of_memory_told():
                measured, config = measure(job, Path(folder))
        except FastrotError as error:
            outcome = Outcome(" ".join(str(error).split()), error.exit_code, {})
        else:
            result = {
                "measured": asdict(measured),
                "config": config.model_dump(mode="json"),
                "record": machine_record(),
            }
            outcome = Outcome(None, 0, result)
    save_record(job, outcome, seconds=time.monotonic() - began, busy=None, task=None)
