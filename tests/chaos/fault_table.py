"""The fault table: what was tried, from the lines that the fixture ``fault_log`` wrote.

``python tests/chaos/fault_table.py FOLDER --json FILE --markdown FILE --append FILE.jsonl``.
Exit code 1 if anything
that was tried was not survived.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FAULTS = {
    1: "kill -9 at any call of a checkpoint write",
    2: "power loss: what was not synced is gone",
    3: "SIGTERM, USR1, USR2 at any moment, and twice",
    4: "Slurm: time limit, preemption, requeue",
    5: "disk full, at any call",
    6: "read-only run, data or cache folder",
    7: "corrupt image",
    8: "beton cut or with flipped bytes",
    9: "beton replaced or cut while in use",
    10: "a program, its worker or its disk dies while converting or loading",
    11: "two writers; locks of the dead",
    12: "wrong class count, labels out of range",
    13: "NaN or infinite loss",
    14: "out of memory; a worker killed for it",
    15: "a rank dies",
    16: "a rank stops, or is slow",
    17: "an exception or a crash in a loader's worker",
    18: "EIO and ESTALE, at any call",
    19: "resume on another number of ranks",
    20: "checkpoint of another version, model, data, configuration",
    21: "bit-rot in any tensor; cut, empty, missing, renamed files",
    22: "feature cache of another model, cut, or half written",
    23: "old checkpoints that cannot be removed, or are torn",
    24: "a failure of rank 0 alone",
    25: "rendezvous: port in use, missing rank",
    26: "a killed, hanging or failing cell of a sweep",
    27: "clock jumps and other load",
    28: "planted files, malicious inputs, listeners",
    29: "Ctrl-C",
    30: "logs on a full disk, torn lines",
    31: "little shared memory, few open files",
    32: "faults of a GPU",
}


def read_trials(folder: Path) -> list[dict[str, Any]]:
    """All lines of all test processes."""
    files = sorted(folder.glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def table(trials: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a fault; those that were not tried have ``tried`` 0."""
    by_row: dict[int, list[dict[str, Any]]] = {row: [] for row in FAULTS}
    for trial in trials:
        by_row[trial["row"]].append(trial)
    rows = []
    for row, found in by_row.items():
        seconds = [trial["seconds"] for trial in found if trial["seconds"] is not None]
        rows.append(
            {
                "row": row,
                "fault": FAULTS[row],
                "tried": len(found),
                "survived": sum(trial["survived"] for trial in found),
                "lost_checkpoints": sum(trial["lost"] for trial in found),
                "hangs": sum(trial["hang"] for trial in found),
                "wrong_samples": sum(trial["wrong"] for trial in found),
                "orphans": sum(trial["orphans"] for trial in found),
                "seconds_median": round(statistics.median(seconds), 3) if seconds else None,
                "seconds_max": round(max(seconds), 3) if seconds else None,
            }
        )
    return rows


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """For people; a row that nobody tried says so."""
    lines = [
        "| # | fault | tried | survived | lost checkpoints | hangs | wrong samples | orphans "
        "| s to exit: median | most |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [str("-" if value is None else value) for value in row.values()]
        if not row["tried"]:
            cells = [str(row["row"]), row["fault"], "not tried here", *["-"] * 7]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def machine() -> dict[str, Any]:
    """Where and with what this was tried."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": commit,
    }


def main() -> int:
    """Print the table and write its files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--append", type=Path, help="A record a row, for benchmarks/results/.")
    options = parser.parse_args()
    trials = read_trials(options.folder)
    rows = table(trials)
    failed = [trial for trial in trials if not trial["survived"]]
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "failed": failed}, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(as_markdown(rows))
    if options.append:
        about = machine()
        with options.append.open("a") as file:
            file.writelines(json.dumps({**row, **about}) + "\n" for row in rows if row["tried"])
    print(as_markdown(rows))
    for trial in failed:
        print(f"not survived: {trial['row']} {trial['test']}: {trial['reason']}")
    keys = ("tried", "survived", "lost_checkpoints", "hangs", "wrong_samples", "orphans")
    total = {key: sum(row[key] for row in rows) for key in keys}
    print(", ".join(f"{value} {key.replace('_', ' ')}" for key, value in total.items()))
    return 1 if failed or not trials else 0


if __name__ == "__main__":
    sys.exit(main())
