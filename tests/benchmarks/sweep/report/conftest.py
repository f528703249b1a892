"""Records of cells with numbers that are easy to reckon with, and a browser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fastrot.benchmarks.sweep.record import CellRecord, Measured
from tests.browser import browser  # noqa: F401

MACHINE = {
    "date": "2026-11-27",
    "command": "fastrot bench sweep",
    "system": "Linux",
    "python": "3.11.7",
    "processor": "Xeon",
    "cores": 8,
    "packages": {"torch": "2.15.0", "numpy": "2.4.6"},
    "commit": "c" * 40,
    "gpus": ["NVIDIA H100", "NVIDIA H100"],
    "driver": "580.1",
}


@pytest.fixture(scope="session")
def cell() -> Callable[..., CellRecord]:
    """Makes the record of a cell with numbers that are easy to reckon with."""

    def make(
        axes: dict[str, Any] | None = None,
        rates: tuple[float, ...] = (100.0, 100.0, 100.0),
        *,
        settings: dict[str, Any] | None = None,
        machine: dict[str, Any] | None = None,
        failed: str | None = None,
        key: str | None = None,
        kind: Any = "train",
        host: str = "Xeon, 8 cores, 2 x H100",
        code: str = "c0de",
        attempts: int = 1,
        **numbers: Any,
    ) -> CellRecord:
        axes = {} if axes is None else axes
        ranks = int(axes.get("ranks", 1))
        values: dict[str, Any] = {
            "ranks": ranks,
            "nodes": int(axes.get("nodes", 1)),
            "global_batch": int(axes.get("batch_per_rank", 50)) * ranks,
            "views": 4,
            "images_per_s": rates,
            "steps_ms": {"p50": 500.0, "p95": 600.0, "p99": 700.0},
            "data_wait": (0.1, 0.2, 0.3),
            "first_batch_s": 0.5,
            "loader_images_per_s": 400.0,
            "compute_images_per_s": 110.0,
            "flops_per_view": 1e9,
            "peak_flops": 1e12,
            "memory_bytes": 2**31,
            "loss": 1.25,
            "busy": 0.01,
            **numbers,
        }
        plain = {"workers": axes.get("data.workers", 2), "train": "/data/in.beton"}
        config: dict[str, Any] = {
            "data": plain | {"loader": axes.get("data.loader", "native")},
            "train": {"global_batch": values["global_batch"], "threads": 4, "epochs": 9.0},
        }
        for name, value in (settings or {}).items():
            section, _, leaf = name.partition(".")
            config[section][leaf] = value
        return CellRecord(
            key=key or "-".join(["k", *map(str, axes.values()), host[-4:], code]).replace("/", "_"),
            sweep="tried",
            kind=kind,
            axes=axes,
            config=config,
            code=code,
            host=host,
            status="failed" if failed else "done",
            reason=failed,
            exit_code=71 if failed else 0,
            attempts=attempts,
            seconds=30.0,
            job=None,
            record=MACHINE | (machine or {}),
            measured=None if failed else Measured(**values),
        )

    return make
