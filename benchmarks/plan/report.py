"""The outcome of ``fastrot plan``: tables of 80 columns, every assumption, JSON.

What the model takes for granted is put into words here, too.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fastrot.benchmarks.common.harness import SavedReport
from fastrot.benchmarks.plan.predict import PlanInputs, Prediction
from fastrot.benchmarks.plan.records import LoaderRecord

_MARKS = {"measured": "", "interpolated": "~", "extrapolated": "?", "bound": "≥"}
"""Before a step's time: how it is known."""
_WIDTH = 79


@dataclass(frozen=True)
class PlanReport(SavedReport):
    """What is expected.

    Attributes:
        title: the run.
        rows: one for each number of GPUs that can be planned.
        refused: reason by number of GPUs for the others.
        assumptions: what the rows rest on, one line or two each.
        settings: what was asked for.
        exit_code: 0; that of the first refusal if there is no row.
    """

    title: str
    rows: Sequence[Prediction]
    refused: Mapping[int, str]
    assumptions: Sequence[str]
    settings: Mapping[str, Any]
    exit_code: int = field(default=0)

    def to_json(self) -> dict[str, Any]:
        """Plain values in seconds, bytes and images."""
        return {
            "plan": self.title,
            "rows": [asdict(row) for row in self.rows],
            "refused": {str(gpus): reason for gpus, reason in self.refused.items()},
            "assumptions": list(self.assumptions),
            "settings": dict(self.settings),
        }

    def show(self, console: Console) -> None:
        """Print it for people, in at most 80 columns."""
        _say(console, self.title)
        if self.rows:
            console.print(self._times())
            console.print(self._network())
            console.print(self._data())
        for gpus, reason in self.refused.items():
            _say(console, f"{gpus} GPUs: not planned: {reason}")
        _say(console, "Assumptions:")
        for line in self.assumptions:
            _say(console, line, indent="  ")

    def _times(self) -> Table:
        table = _table(
            "time", "GPUs", "batch", "steps", "ms/step", "wait ms", "views/s", "eff.", "hours",
            "GPU h", "cost",
        )  # fmt: skip
        for row in self.rows:
            table.add_row(
                f"{row.gpus:,}",
                f"{row.global_batch:,}",
                _short(row.total_steps),
                f"{_MARKS[row.how]}{_milliseconds(row.step)}",
                _short(1e3 * row.exposed),
                _short(row.views_per_s),
                f"{100 * row.efficiency:.0f} %",
                _short(row.hours),
                _short(row.gpu_hours),
                "" if row.cost is None else _short(row.cost),
            )
        used = {row.how for row in self.rows} - {"measured"}
        if used:
            table.caption = ", ".join(f"{_MARKS[how]}: {how}" for how in sorted(used))
            table.caption_justify = "left"
        return table

    def _network(self) -> Table:
        table = _table(
            "network: bytes of a step, and of the whole run", "GPUs", "nodes", "by a GPU",
            "all-reduce", "ms", "BN ms", "nodes send", "in all", "bound",
        )  # fmt: skip
        for row in self.rows:
            table.add_row(
                f"{row.gpus:,}",
                f"{row.nodes:,}",
                _bytes(row.gpu_sent),
                row.algorithm,
                _short(1e3 * row.all_reduce),
                _short(1e3 * row.sync_bn),
                _bytes(row.network_sent),
                _bytes(row.network_total),
                row.bound,
            )
        return table

    def _data(self) -> Table:
        table = _table(
            "reading and memory", "GPUs", "batch/GPU", "read/epoch", "in all", "node reads",
            "node loads", "memory/GPU",
        )  # fmt: skip
        for row in self.rows:
            passes = f" in {row.passes}" if row.passes > 1 else ""
            table.add_row(
                f"{row.gpus:,}",
                f"{row.per_gpu:,}{passes}",
                _bytes(row.epoch_bytes),
                _bytes(row.read_bytes),
                f"{_bytes(row.node_read_per_s)}/s",
                f"{_short(row.node_images_per_s)}/s",
                "not measured" if row.memory is None else _bytes(row.memory),
            )
        return table


def method_lines(inputs: PlanInputs, rows: Sequence[Prediction]) -> list[str]:
    """What the model takes for granted.

    Args:
        inputs: of the rows.
        rows: of the plan.
    """
    several = any(row.gpus > 1 for row in rows)
    fabric, network = inputs.fabric, inputs.network
    share = inputs.steps.backward_share
    backward = f"{100 * share:.0f} % of the step, as profiled" if share is not None else (
        f"{100 * network.backward_flops / (network.forward_flops + network.backward_flops):.0f} % "
        "of the step, its share of the FLOPs"
    )  # fmt: skip
    lines = [
        "all-reduce: latency and bandwidth (alpha-beta); the fastest of ring, tree and two levels "
        f"({fabric.gpus_per_node} GPUs a node); gradients in fp32, "
        f"{network.gradient_bytes / 1e6:.1f} MB in DDP's buckets of 25 MiB, the first of 1 MiB",
        f"overlap: each bucket is sent when its last gradient is ready, along a backward pass of "
        f"{backward}, spread over layers by FLOPs"
        if inputs.overlap
        else "overlap: none; on a CPU the cores that compute also send",
    ]
    if inputs.config.model.sync_bn:
        lines.append(
            f"synchronised batch norm: {len(network.norms)} layers, each with an all-gather "
            "(ring) forward and an all-reduce backward that the computation waits for"
        )
    if inputs.overlap and several:
        lines.append("sending takes no time from the GPU's computing (it takes a few of its SMs)")
    if inputs.steps.cuda_graph and several:
        graph = "is, too (train.cuda_graph)" if inputs.config.train.cuda_graph else (
            "is not, unless train.cuda_graph=true, and may be slower"
        )  # fmt: skip
        lines.append(f"the record's step is one CUDA graph; that of several ranks {graph}")
    if inputs.config.model.sync_bn and several and not inputs.steps.on_gpu:
        lines.append(
            "on a CPU several ranks normalise by a slower kernel, which shares statistics; the "
            "record's is that of one rank (--set model.sync_bn=false: the same for both)"
        )
    if any(row.memory is not None for row in rows):
        row = next(row for row in rows if row.memory is not None)
        lines.append(
            f"memory: the record's peak, on the line through its batches; "
            f"{row.fixed_memory / 1e6:,.0f} MB of it parameters, gradients (DDP's buckets are "
            "these) and momentum; buffers of NCCL are not in it"
        )
    else:
        lines.append(
            f"memory: not measured (parameters, gradients and momentum alone: "
            f"{3 * network.gradient_bytes / 1e6:,.0f} MB)"
        )
    return lines


def loading_line(loader: LoaderRecord | None) -> str:
    """Whether the loader was looked at."""
    if loader is None:
        return (
            "loading: taken to keep up (no record of a loader is named): /s/node is what it must "
            "read; fastrot bench loader --append FILE measures it"
        )
    return (
        f"loading: {loader.loader}, {loader.images_per_s:,.0f} images/s a node, measured on "
        f"{loader.hardware} ({loader.source})"
    )


def _table(title: str, *heads: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
                  padding=(0, 1, 0, 0))  # fmt: skip
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _say(console: Console, text: str, indent: str = "") -> None:
    """Wrapped here, since commands must not be cut where a screen ends but at a space."""
    lines = textwrap.wrap(
        text, _WIDTH, initial_indent=indent, subsequent_indent=indent + "  ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _bytes(value: float) -> str:
    """Three digits with a decimal prefix; nothing for nothing."""
    for limit, unit in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{_three(value / limit)}{unit}"
    return f"{value:.0f}B" if value else "0"


def _short(value: float) -> str:
    """Three digits, with k and M; what is very small is not spelled out."""
    if 0 < value < 0.01:
        return "<0.01"
    for limit, unit in ((1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{_three(value / (limit if unit == 'M' else 1e3))}{unit}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _milliseconds(seconds: float) -> str:
    """Four digits where three would hide what one GPU more costs."""
    value = 1e3 * seconds
    return f"{value:.4g}" if 0.01 <= value < 9999.5 else _short(value)


def _three(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"
