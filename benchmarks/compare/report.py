"""Report on a comparison of throughput: JSON, records for a results file, and a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rich.console import Console

from fastrot.benchmarks.common.harness import Spread, ratio_fields, ratios, spread
from fastrot.benchmarks.common.points_report import PointsReport, empty_table, say
from fastrot.benchmarks.compare.runner import CompetitorResults, Measurements

_QUIET_CORES = 0.1


@dataclass(frozen=True)
class ComparisonReport(PointsReport):
    """Results of the comparison.

    Attributes:
        bench: ``loader`` or ``prepare``.
        subject: name of the competitor that the benchmark is about.
        compared: for each baseline, the competitor whose rate is divided by its rate.
        results: the measurements.
        bytes_an_image: mean number of bytes read per image.
    """

    bench: str  # type: ignore[misc]
    subject: str
    compared: Mapping[str, str]
    results: CompetitorResults
    bytes_an_image: float

    @cached_property
    def ratios(self) -> dict[str, Spread]:
        """Return the speed-up over each baseline of the competitor compared with it."""
        measured = self.results.measured
        return {
            baseline: ratios(measured[ours].rates(), measured[baseline].rates())
            for baseline, ours in self.compared.items()
            if baseline in measured and ours in measured
        }

    def plain_points(self) -> list[dict[str, Any]]:
        """Return one object per competitor."""
        return [
            {
                "point": name,
                "subject": self.subject,
                "ratio": self.ratios[name].to_json() if name in self.ratios else None,
                **self._point(each),
            }
            for name, each in self.results.measured.items()
        ]

    def summary(self) -> dict[str, Any]:
        """Return the ratios, whose medians are in ``ratios``, and the subject."""
        return {**ratio_fields(self.ratios), "subject": self.subject}

    def to_json(self) -> dict[str, Any]:
        """Return one object of plain values; ``points`` holds an object per name."""
        points = {name: self._point(each) for name, each in self.results.measured.items()}
        return super().to_json() | {"points": points}

    def show(self, console: Console) -> None:
        """Print the report: settings, measurements, and finally ratios."""
        super().show(console)
        measured = self.results.measured.values()
        rounds = [each["foreign_cores"] for point in measured for each in point.rounds]
        foreign = statistics.fmean(rounds)
        if foreign >= _QUIET_CORES:
            say(
                console,
                f"other processes used {foreign:.1f} of the cores: repeat this on a quiet machine",
            )
        versus = empty_table("ratios: how many times faster", "", "ratio", "of rounds")
        for name, ratio in self.ratios.items():
            pair = f"{self.compared[name]} / {name}"
            versus.add_row(pair, f"{ratio.median:.2f}", f"{ratio.low:.2f}-{ratio.high:.2f}")
        console.print(versus)

    def show_points(self, console: Console) -> None:
        """Print the measurements."""
        table = empty_table(f"{self.bench}: medians of the rounds", "", "images/s", "of rounds",
                            "CPU s/1k", "first s", "import s", "peak MB")  # fmt: skip
        for name, measured in self.results.measured.items():
            table.add_row(name, *self._cells(measured))
        console.print(table)

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
