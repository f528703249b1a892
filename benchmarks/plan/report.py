"""Report of ``fastrot plan``: tables within 80 columns, all assumptions, JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fastrot.benchmarks.common.harness import SavedReport
from fastrot.benchmarks.plan.predict import Prediction

_MARKS = {"measured": "", "interpolated": "~", "extrapolated": "?", "bound": "≥"}
"""Marks before a step's time: how it is known."""
_WIDTH = 79
_BYTES = {"PB": 1e15, "TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3}

Columns = Mapping[str, Callable[[Prediction], str]]
_TIMES: Columns = {
    "GPUs": lambda row: f"{row.gpus:,}",
    "batch": lambda row: f"{row.global_batch:,}",
    "steps": lambda row: _short(row.total_steps),
    "ms/step": lambda row: f"{_MARKS[row.how]}{_milliseconds(row.step)}",
    "wait ms": lambda row: _short(1e3 * row.exposed),
    "views/s": lambda row: _short(row.views_per_s),
    "eff.": lambda row: f"{100 * row.efficiency:.0f} %",
    "hours": lambda row: _short(row.hours),
    "GPU h": lambda row: _short(row.gpu_hours),
    "cost": lambda row: "" if row.cost is None else _short(row.cost),
}
_NETWORK: Columns = {
    "GPUs": lambda row: f"{row.gpus:,}",
    "nodes": lambda row: f"{row.nodes:,}",
    "by a GPU": lambda row: _bytes(row.gpu_sent),
    "all-reduce": lambda row: row.algorithm,
    "ms": lambda row: _short(1e3 * row.all_reduce),
    "BN ms": lambda row: _short(1e3 * row.sync_bn),
    "nodes send": lambda row: _bytes(row.network_sent),
    "in all": lambda row: _bytes(row.network_total),
    "bound": lambda row: row.bound,
}
_DATA: Columns = {
    "GPUs": lambda row: f"{row.gpus:,}",
    "batch/GPU": lambda row: f"{row.per_gpu:,}" + (f" in {row.passes}" if row.passes > 1 else ""),
    "read/epoch": lambda row: _bytes(row.epoch_bytes),
    "in all": lambda row: _bytes(row.read_bytes),
    "node reads": lambda row: f"{_bytes(row.node_read_per_s)}/s",
    "node loads": lambda row: f"{_short(row.node_images_per_s)}/s",
    "memory/GPU": lambda row: "not measured" if row.memory is None else _bytes(row.memory),
}


@dataclass(frozen=True)
class PlanReport(SavedReport):
    """Predictions of a run."""

    title: str
    rows: Sequence[Prediction]  # one per number of GPUs that can be planned
    refused: Mapping[int, str]  # for the other numbers of GPUs: the reason
    assumptions: Sequence[str]  # assumptions of all rows, one or two lines each
    settings: Mapping[str, Any]  # options of the command
    exit_code: int = 0  # 64 if there is no row

    def to_json(self) -> dict[str, Any]:
        """Return plain values in seconds, bytes and images."""
        return {
            "plan": self.title,
            "rows": [asdict(row) for row in self.rows],
            "refused": {str(gpus): reason for gpus, reason in self.refused.items()},
            "assumptions": list(self.assumptions),
            "settings": dict(self.settings),
        }

    def show(self, console: Console) -> None:
        """Print the report in at most 80 columns."""
        _say(console, self.title)
        if self.rows:
            times = _table("time", _TIMES, self.rows)
            used = sorted({row.how for row in self.rows} - {"measured"})
            times.caption = ", ".join(f"{_MARKS[how]}: {how}" for how in used) or None
            console.print(times)
            title = "network: bytes per step, and in the whole run"
            console.print(_table(title, _NETWORK, self.rows))
            console.print(_table("reading and memory", _DATA, self.rows))
        for gpus, reason in self.refused.items():
            _say(console, f"{gpus} GPUs: not planned: {reason}")
        _say(console, "Assumptions:")
        for line in self.assumptions:
            _say(console, line, indent="  ")


def _table(title: str, columns: Columns, rows: Sequence[Prediction]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
                  padding=(0, 1, 0, 0), caption_justify="left")  # fmt: skip
    for head in columns:
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(cell(row) for cell in columns.values()))
    return table


def _say(console: Console, text: str, indent: str = "") -> None:
    """Print wrapped text; a command must break at a space, not where the screen ends."""
    lines = textwrap.wrap(
        text, _WIDTH, initial_indent=indent, subsequent_indent=indent + "  ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _bytes(value: float) -> str:
    """Return three digits with a decimal prefix; ``0`` for nothing."""
    return _scaled(value, _BYTES) or (f"{value:.0f}B" if value else "0")


def _short(value: float) -> str:
    """Return about three digits, with k or M from 10,000 on; ``<0.01`` for what is smaller."""
    if 0 < value < 0.01:
        return "<0.01"
    if value >= 1e4:
        return _scaled(value, {"M": 1e6, "k": 1e3})
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _milliseconds(seconds: float) -> str:
    """Return four digits, because three could hide the cost of one more GPU."""
    value = 1e3 * seconds
    return f"{value:.4g}" if 0.01 <= value < 9999.5 else _short(value)


def _scaled(value: float, units: Mapping[str, float]) -> str:
    """Return three digits in the largest unit that fits; empty if the value is below all units."""
    for unit, size in units.items():
        if value >= size:
            shown = value / size
            return f"{shown:.0f}{unit}" if shown >= 99.95 else f"{shown:.3g}{unit}"
    return ""
