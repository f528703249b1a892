"""Time of a step of one GPU at any batch: measured, or bounded by a roofline.

Measured times are extended to other batches, but never to other machines. No step can be faster
than the roofline; it must be requested by name and needs no measurement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fastrot.benchmarks.common.roofline import REFERENCE, bounds, layers_of
from fastrot.benchmarks.plan.records import StepRecord
from fastrot.config import Config
from fastrot.errors import UsageError

How = Literal["measured", "interpolated", "extrapolated", "bound"]

ROOFLINES = {"h200": REFERENCE}
"""Speeds of GPUs whose roofline can be requested by name."""
_REACH = 2.0  # how many times larger or smaller than a measured batch another one may be
_AUTO_STEPS = {True: ("fused", "eager"), False: ("eager",)}  # by on_gpu; train.step=auto uses these
_AUTO_PRECISIONS = {True: ("bf16", "fp16"), False: ("fp32",)}


class NoRecordError(UsageError):
    """No record fits, so there is nothing to plan with (exit code 64)."""


@dataclass(frozen=True)
class StepTimes:
    """Steps of one GPU (or of one share of a CPU)."""

    hardware: str
    on_gpu: bool
    times: Mapping[int, float]  # seconds per step, by source images per step
    peaks: Mapping[int, int] = field(default_factory=dict)  # bytes of memory; empty: not measured
    described: tuple[str, ...] = ()  # origin of the times, as lines of text
    command: str = ""  # measures a missing batch, which replaces ``{batch}``
    bound: bool = False  # times are a roofline's, proportional to the batch

    def seconds(self, batch: int) -> tuple[float, How]:
        """Return the time of a step of this many images, in seconds, and how it is known.

        Time is linear between two measured batches; beyond them the rate is that of the nearest.

        Raises:
            NoRecordError: the batch is too far from what was measured.
        """
        nearest = _nearest(self.times, batch)
        found = _between(self.times, nearest) * batch / nearest
        if self.bound:
            return found, "bound"
        if not nearest / _REACH <= batch <= nearest * _REACH:
            raise NoRecordError(
                f"{batch} images per GPU: only {', '.join(map(str, sorted(self.times)))} "
                f"were measured; measure it: {self.command.format(batch=batch)}"
            )
        if batch in self.times:
            return found, "measured"
        return found, "interpolated" if batch == nearest else "extrapolated"

    def memory(self, batch: int) -> float | None:
        """Return an upper estimate of the peak in bytes; None if not measured."""
        if not self.peaks:
            return None
        nearest = _nearest(self.peaks, batch)
        return _between(self.peaks, nearest) * max(batch / nearest, 1.0)


def choose_steps(
    records: Sequence[StepRecord],
    config: Config,
    *,
    batches: Sequence[int],
    hardware: str | None = None,
) -> StepTimes:
    """Choose the records that fit a configuration, all of one kind of hardware.

    Args:
        records: all known records; if several have the same batch, the last one counts.
        config: configuration of the run.
        batches: source images per micro-batch and GPU that will be needed.
        hardware: part of the name of the hardware; None: there must be only one kind.

    Raises:
        NoRecordError: no record fits, or those that fit are of several kinds of hardware.
    """
    fitting = [r for r in records if _fits(r, config)]
    if hardware is not None:
        fitting = [r for r in fitting if hardware.lower() in r.hardware.lower()]
    kinds = sorted({record.hardware for record in fitting})
    command = _command(config)
    if not kinds:
        where = f" on {hardware!r}" if hardware else ""
        model = config.model
        raise NoRecordError(
            f"no record of a step of {model.name} (width {model.width}, stem {model.stem}) at "
            f"{config.data.resolution} px{where} in {len(records)} records; measure it on your "
            f"GPU: {command.format(batch=','.join(map(str, batches)))}; then name the file with "
            "--record, or request a bound with --roofline h200"
        )
    if len(kinds) > 1:
        raise NoRecordError(
            f"records of several kinds of hardware fit: {'; '.join(kinds)}; they are never mixed: "
            "name one with --hardware"
        )
    on_gpu = fitting[0].on_gpu
    fitting = _first_of(fitting, "precision", _AUTO_PRECISIONS[on_gpu])
    fitting = _first_of(fitting, "step", _AUTO_STEPS[on_gpu])
    chosen = {r.batch: r for r in sorted(fitting, key=lambda record: record.batch)}
    return StepTimes(
        kinds[0], on_gpu, {batch: r.seconds for batch, r in chosen.items()},
        {batch: r.memory for batch, r in chosen.items() if r.memory is not None},
        _described(list(chosen.values())), command,
    )  # fmt: skip


def roofline_steps(name: str, config: Config) -> StepTimes:
    """Return the bound of the fused step, which no step can beat on a GPU with these speeds.

    Args:
        name: key of ``ROOFLINES``, or ``PEAK:BANDWIDTH`` in TFLOP/s and TB/s.
        config: configuration of the run.

    Raises:
        UsageError: the name has neither form.
    """
    speeds = ROOFLINES.get(name.lower())
    if speeds is None:
        peak, colon, bandwidth = name.partition(":")
        try:
            speeds = {"peak": float(peak) * 1e12, "bandwidth": float(bandwidth) * 1e12}
        except ValueError:
            speeds = {"peak": 0.0, "bandwidth": 0.0}
        if not colon or not all(0 < value < float("inf") for value in speeds.values()):
            raise UsageError(
                f"--roofline {name}: name {' or '.join(ROOFLINES)}, or give TFLOP/s and TB/s of "
                "the GPU, as in --roofline 790:4.3"
            )
        name = f"{peak} TFLOP/s, {bandwidth} TB/s"
    precision = config.train.precision
    view = bounds(
        layers_of(config.model, config.data.resolution),
        peak=speeds["peak"], bandwidth=speeds["bandwidth"], batch=256,
        value_bytes=4 if precision == "fp32" else 2, levels=("a2",),
    )["a2"]  # fmt: skip
    said = (
        f"STEP OF ONE GPU: NOT MEASURED. It is the roofline's bound for {name} "
        f"({'bf16' if precision == 'auto' else precision}, fused): no run is that fast; hours, "
        "cost and efficiency are bounds, not predictions"
    )
    return StepTimes(
        f"{name}, roofline", True, {1: _views(config) * view.seconds}, described=(said,), bound=True
    )


def _nearest(measured: Mapping[int, float], batch: int) -> int:
    """Return the batch if it is between measured ones, otherwise the nearest measured one."""
    return min(max(batch, min(measured)), max(measured))


def _between(measured: Mapping[int, float], batch: int) -> float:
    batches = sorted(measured)
    return float(np.interp(batch, batches, [measured[each] for each in batches]))


def _described(records: Sequence[StepRecord]) -> tuple[str, ...]:
    first = records[0]
    name, width, stem = first.model
    files = dict.fromkeys(record.source for record in records)
    commits = dict.fromkeys(record.commit[:12] for record in records)
    points = ", ".join(f"{r.batch}: {1e3 * r.seconds:.4g} ms" for r in records)
    return (
        f"step of one GPU: measured on {first.hardware} ({', '.join(files)}; commit "
        f"{', '.join(commits)})",
        f"  {name}, width {width}, stem {stem}, {first.resolution} px, {first.precision}, "
        f"step {first.step}; "
        f"images per step: {points}",
    )


def _views(config: Config) -> int:
    return 4 if config.pretext.views == "all" else 1


def _fits(record: StepRecord, config: Config) -> bool:
    model, train = config.model, config.train
    return (
        record.model == (model.name, model.width, model.stem)
        and record.resolution == config.data.resolution
        and record.views == _views(config)
        and train.precision in ("auto", record.precision)
        and (record.step == train.step if train.step != "auto" else record.step != "apex")
        and (
            record.on_gpu
            or train.threads is None
            or record.hardware.endswith(f", {train.threads} thread{'s'[: train.threads > 1]}")
        )
    )


def _first_of(
    records: list[StepRecord], attribute: str, preferred: Sequence[str]
) -> list[StepRecord]:
    """Return records with the first preferred value that occurs, otherwise with the last value."""
    values = [getattr(record, attribute) for record in records]
    chosen = next((value for value in preferred if value in values), values[-1])
    return [r for r, value in zip(records, values, strict=True) if value == chosen]


def _command(config: Config) -> str:
    """Return a command that measures a step of this configuration, with ``{batch}`` left open."""
    model, train = config.model, config.train
    options = {
        "width": model.width if model.width != 64 else None,
        "stem": model.stem if model.stem != "imagenet" else None,
        "steps": train.step if train.step != "auto" else None,
        "precision": train.precision if train.precision != "auto" else None,
        "threads": train.threads,
        "resolution": config.data.resolution,
        "batch": "{batch}",
        "append": "steps.jsonl",
    }
    words = [f"--{name} {value}" for name, value in options.items() if value is not None]
    return " ".join(["fastrot bench train-step", f"--model {model.name}", *words])
