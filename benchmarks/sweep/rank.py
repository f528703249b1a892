"""Process of one rank of a cell: ``python -m fastrot.benchmarks.sweep.rank JOB.json SCRATCH``.

It writes ``result.json`` (the main rank) or ``error-<rank>.txt`` to SCRATCH, and exits with a code.
"""

from __future__ import annotations

import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastrot.benchmarks.common.harness import machine_record, write_json
from fastrot.benchmarks.sweep.record import read_job
from fastrot.errors import FastrotError

RESULT = "result.json"
_FAILED = 1  # Python's exit code after an uncaught error


def error_file(scratch: Path, rank: int) -> Path:
    """Return the file for a rank's error."""
    return scratch / f"error-{rank}.txt"


def measured_result(path: str, scratch: Path) -> dict[str, Any]:
    """Measure the cell that a job file describes as one rank; return the result as plain values."""
    from fastrot.benchmarks.sweep.measure import measure
    from fastrot.training.failures import translate_oom

    with translate_oom():
        measured, config = measure(read_job(path), scratch)
    return {
        "measured": asdict(measured),
        "config": config.model_dump(mode="json"),
        "record": machine_record(),
    }


def main(path: str, folder: str) -> int:
    """Measure, and return the exit code."""
    from fastrot.distributed.world import read_world

    scratch, world = Path(folder), read_world()
    try:
        result = measured_result(path, scratch)
    except FastrotError as error:
        error_file(scratch, world.rank).write_text(
            str(error), encoding="utf-8", errors="backslashreplace"
        )
        print(f"fastrot: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:  # the cell's record reports any error
        line = (str(error).strip() or "no message").splitlines()[0]
        error_file(scratch, world.rank).write_text(
            f"{type(error).__name__}: {line}", encoding="utf-8"
        )
        traceback.print_exc()
        return _FAILED
    if world.is_main:
        write_json(scratch / RESULT, result)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
