"""Report on a comparison of throughput: JSON, records for a results file, and a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fastrot.benchmarks.common.harness import SavedReport, Spread, ratio_fields, ratios, spread
from fastrot.benchmarks.compare.runner import CompetitorResults, Measurements

_QUIET_CORES = 0.1


@dataclass(frozen=True)
class ComparisonReport(SavedReport):
    """Results of the comparison.

    Attributes:
        bench: ``loader`` or ``prepare``.
        subject: name of the competitor that the benchmark is about.
        compared: by name of each baseline, the competitor whose rate is divided by the baseline's.
        results: the measurements.
        bytes_an_image: mean number of bytes read per image.
        settings: settings of the benchmark.
        data: the data that was read.
        record: the machine, the versions, the command.
    """

    bench: str
    subject: str
    compared: Mapping[str, str]
    results: CompetitorResults
    bytes_an_image: float
    settings: Mapping[str, Any]
    data: Mapping[str, Any]
    record: Mapping[str, Any]
    exit_code: int = field(default=0, init=False)

    @cached_property
    def ratios(self) -> dict[str, Spread]:
        """Return, for each baseline, how many times as fast its competitor is."""
        measured = self.results.measured
        return {
            baseline: ratios(measured[ours].rates(), measured[baseline].rates())
            for baseline, ours in self.compared.items()
            if baseline in measured and ours in measured
        }

    def points(self) -> dict[str, dict[str, Any]]:
        """Return the results of each competitor, by name."""
        return {name: self._point(each) for name, each in self.results.measured.items()}

    def to_json(self) -> dict[str, Any]:
        """Return one object of plain values; ``ratios`` holds the medians."""
        return {
            "bench": self.bench,
            **ratio_fields(self.ratios),
            "subject": self.subject,
            "points": self.points(),
            "left_out": self.results.left_out,
            "settings": dict(self.settings),
            "data": dict(self.data),
            "record": dict(self.record),
        }

    def records(self) -> list[dict[str, Any]]:
        """Return one self-contained object per competitor, for a results file."""
        return [
            {
                "bench": self.bench,
                "point": name,
                "subject": self.subject,
                "ratio": self.ratios[name].to_json() if name in self.ratios else None,
                **point,
                "settings": dict(self.settings),
                "data": dict(self.data),
                "record": dict(self.record),
            }
            for name, point in self.points().items()
        ]

    def show(self, console: Console) -> None:
        """Print the report for people: settings, measurements, and finally ratios."""
        settings = "  ".join(f"{key} {value}" for key, value in self.settings.items())
        data = "  ".join(f"{key} {_short(value)}" for key, value in self.data.items())
        for line in (f"data: {data}", f"settings: {settings}"):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        table = _table(f"{self.bench}: medians of the rounds", "", "images/s", "of rounds",
                       "CPU s/1k", "first s", "import s", "peak MB")  # fmt: skip
        for name, measured in self.results.measured.items():
            table.add_row(name, *self._cells(measured))
        console.print(table)
        for line in (*self._left_out(), *self._disturbed()):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        versus = _table("ratios: how many times faster", "", "ratio", "of rounds")
        for name, ratio in self.ratios.items():
            pair = f"{self.compared[name]} / {name}"
            versus.add_row(pair, f"{ratio.median:.2f}", f"{ratio.low:.2f}-{ratio.high:.2f}")
        console.print(versus)

    def _left_out(self) -> list[str]:
        return [f"left out: {name}: {why}" for name, why in self.results.left_out.items()]

    def _disturbed(self) -> list[str]:
        foreign = statistics.fmean(
            each["foreign_cores"]
            for measured in self.results.measured.values()
            for each in measured.rounds
        )
        if foreign < _QUIET_CORES:
            return []
        return [f"other processes used {foreign:.1f} of the cores: repeat this on a quiet machine"]

    def _cells(self, measured: Measurements) -> list[str]:
        rate = spread(measured.rates())
        cpu = spread(_cpu_seconds(measured)).median
        first = spread([start["first_seconds"] for start in measured.starts])
        imports = spread([start["import_seconds"] for start in measured.starts])
        peak = max(each["peak_bytes"] for each in measured.rounds)
        return [
            f"{rate.median:,.0f}",
            f"{rate.low:,.0f}-{rate.high:,.0f}",
            f"{cpu:.2f}",
            f"{first.median:.2f}",
            f"{imports.median:.2f}",
            f"{peak / 1e6:,.0f}",
        ]

    def _point(self, measured: Measurements) -> dict[str, Any]:
        starts, rounds = measured.starts, measured.rounds
        rates = spread(measured.rates())
        return {
            "images_per_second": rates.to_json(),
            "bytes_per_second": round(rates.median * self.bytes_an_image),
            "cpu_seconds_per_1000": spread(_cpu_seconds(measured)).to_json(),
            "first_seconds": spread([start["first_seconds"] for start in starts]).to_json(),
            "import_seconds": spread([start["import_seconds"] for start in starts]).to_json(),
            "process_seconds": spread([start["process_seconds"] for start in starts]).to_json(),
            "peak_bytes": max(each["peak_bytes"] for each in rounds),
            "steady_bytes": max(each["steady_bytes"] for each in rounds),
            "file_page_bytes": max(each["file_page_bytes"] for each in rounds),
            "foreign_cores": spread([each["foreign_cores"] for each in rounds]).to_json(),
            "storage_bytes": sum(each["storage_bytes"] for each in rounds),
            "notes": starts[-1]["notes"],
        }


def _cpu_seconds(measured: Measurements) -> list[float]:
    """Return core-seconds per 1,000 images, for each round."""
    return [1000 * each["cpu_seconds"] / each["images"] for each in measured.rounds]


def _table(title: str, *heads: str) -> Table:
    """Return an empty table within 80 columns: names left-aligned, numbers right-aligned."""
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=True)
    return table


def _short(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
