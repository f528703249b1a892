"""The time of a step of one GPU at any batch: measured, or bounded by a roofline.

Measured times are extended to other batches, never to other machines. The roofline is what no step
can beat; it is asked for by name where nothing was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from fastrot.benchmarks.common.roofline import REFERENCE, bounds, layers_of
from fastrot.benchmarks.plan.records import StepRecord
from fastrot.config import Config
from fastrot.errors import UsageError

How = Literal["measured", "interpolated", "extrapolated", "bound"]

ROOFLINES = {"h200": REFERENCE}
"""Speeds of GPUs that can be named where nothing was measured."""
_REACH = 2.0
"""Beyond the measured batches by at most this factor."""
_AUTO_STEPS = {True: ("fused", "eager"), False: ("eager",)}  # on a GPU; what train.step=auto takes
_AUTO_PRECISIONS = {True: ("bf16", "fp16"), False: ("fp32",)}


class NoRecordError(UsageError):
    """Nothing was measured that a plan could start from (64)."""


@dataclass(frozen=True)
class Estimate:
    """Seconds of a step, and where they are from."""

    seconds: float
    how: How


class StepTimes(Protocol):
    """Steps of one GPU (or of one share of a CPU)."""

    @property
    def hardware(self) -> str:
        """Of it."""
        ...

    @property
    def on_gpu(self) -> bool:
        """Whether it is a GPU."""
        ...

    @property
    def cuda_graph(self) -> bool:
        """Whether a step is one CUDA graph."""
        ...

    @property
    def backward_share(self) -> float | None:
        """Of a step's time; None: not measured."""
        ...

    def seconds(self, batch: int) -> Estimate:
        """Of a step of so many source images.

        Raises:
            NoRecordError: too far from what was measured.
        """
        ...

    def memory(self, batch: int) -> float | None:
        """Bytes at most; None: not measured."""
        ...

    def describe(self) -> list[str]:
        """Lines for people: what the times are from."""
        ...


@dataclass(frozen=True)
class MeasuredSteps:
    """Times of records that differ in nothing but their batch.

    Attributes:
        records: one a batch, the smallest first.
        command: measures a batch that is missing; ``{batch}`` stands for it.
    """

    records: tuple[StepRecord, ...]
    command: str

    @property
    def hardware(self) -> str:
        """As in ``StepTimes``."""
        return self.records[0].hardware

    @property
    def on_gpu(self) -> bool:
        """As in ``StepTimes``."""
        return self.records[0].on_gpu

    @property
    def cuda_graph(self) -> bool:
        """As in ``StepTimes``."""
        return self.records[0].cuda_graph

    @property
    def backward_share(self) -> float | None:
        """Of the largest batch: of a profile of a small one much is the host's."""
        shares = [r.backward_share for r in self.records if r.backward_share is not None]
        return shares[-1] if shares else None

    def seconds(self, batch: int) -> Estimate:
        """As measured; linear between two batches; beyond them t = a + b * batch, fitted."""
        batches = [record.batch for record in self.records]
        times = [record.seconds for record in self.records]
        if batch in batches:
            return Estimate(times[batches.index(batch)], "measured")
        low, high = batches[0], batches[-1]
        if len(batches) == 1 or not low / _REACH <= batch <= high * _REACH:
            raise NoRecordError(
                f"{batch} images a GPU: measured are {', '.join(map(str, batches))}"
                f"{'' if len(batches) > 1 else ', one batch alone, which tells of no other'}; "
                f"measure it: {self.command.format(batch=batch)}"
            )
        if low < batch < high:
            return Estimate(float(np.interp(batch, batches, times)), "interpolated")
        fixed, each = _line(batches, times)
        fitted = fixed + each * batch
        # A larger batch is never faster, whatever noise did to the slope.
        return Estimate(
            min(fitted, times[0]) if batch < low else max(fitted, times[-1]), "extrapolated"
        )

    def memory(self, batch: int) -> float | None:
        """As measured, else on the line through what was."""
        known = {r.batch: r.memory for r in self.records if r.memory is not None}
        if batch in known or len(known) < 2:
            return known.get(batch)
        fixed, each = _line(list(known), [float(value) for value in known.values()])
        return fixed + each * batch

    def describe(self) -> list[str]:
        """What was measured, where, with which code."""
        first = self.records[0]
        name, width, stem = first.model
        files = dict.fromkeys(record.source for record in self.records)
        commits = dict.fromkeys(record.commit[:12] for record in self.records)
        points = ", ".join(f"{r.batch}: {1e3 * r.seconds:.4g} ms" for r in self.records)
        return [
            f"step of one GPU: measured on {first.hardware} ({', '.join(files)}; commit "
            f"{', '.join(commits)})",
            f"  {name}, width {width}, stem {stem}, {first.resolution} px, {first.precision}, "
            f"step {first.step}{' as one CUDA graph' if first.cuda_graph else ''}; "
            f"images a step: {points}",
        ]


@dataclass(frozen=True)
class RooflineSteps:
    """What no step can beat on a GPU of given speeds: asked for, where nothing was measured.

    Attributes:
        name: of the GPU.
        view_seconds: of one view.
        views: of an image.
        precision: of it.
    """

    name: str
    view_seconds: float
    views: int
    precision: str
    on_gpu: bool = True
    cuda_graph: bool = False
    backward_share: float | None = None

    @property
    def hardware(self) -> str:
        """As in ``StepTimes``."""
        return f"{self.name}, roofline"

    def seconds(self, batch: int) -> Estimate:
        """At least."""
        return Estimate(self.view_seconds * self.views * batch, "bound")

    def memory(self, batch: int) -> float | None:
        """Not measured."""
        return None

    def describe(self) -> list[str]:
        """That it is a bound."""
        return [
            f"STEP OF ONE GPU: NOT MEASURED. It is the roofline's bound for {self.name} "
            f"({self.precision}, fused): no run is that fast; hours, cost and efficiency are "
            "bounds, not predictions",
        ]


def choose_steps(
    records: Sequence[StepRecord],
    config: Config,
    *,
    batches: Sequence[int],
    hardware: str | None = None,
) -> MeasuredSteps:
    """The records that fit a configuration, all of one kind of hardware.

    Args:
        records: all there are; of several of one batch the last one counts.
        config: of the run.
        batches: source images a pass of one GPU that will be asked for.
        hardware: part of the name of the hardware; None: there must be one kind alone.

    Raises:
        NoRecordError: none fits, or they are of several kinds of hardware.
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
            f"{config.data.resolution} px{where} in {len(records)} records; measure it on the GPU "
            f"you mean: {command.format(batch=','.join(map(str, batches)))}; then name the "
            "file with --record, or ask for a bound with --roofline h200"
        )
    if len(kinds) > 1:
        raise NoRecordError(
            f"records of several kinds of hardware fit: {'; '.join(kinds)}; they are never mixed: "
            "name one with --hardware"
        )
    on_gpu = fitting[0].on_gpu
    fitting = _first_of(fitting, "precision", _AUTO_PRECISIONS[on_gpu])
    fitting = _first_of(fitting, "step", _AUTO_STEPS[on_gpu])
    by_batch = {record.batch: record for record in fitting}
    return MeasuredSteps(tuple(by_batch[batch] for batch in sorted(by_batch)), command)


def roofline_steps(name: str, config: Config) -> RooflineSteps:
    """The bound of the fused step.

    Args:
        name: key of ``ROOFLINES``, or ``PEAK:BANDWIDTH`` in TFLOP/s and TB/s.
        config: of the run.

    Raises:
        UsageError: the name says neither.
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
                f"--roofline {name}: name {' or '.join(ROOFLINES)}, or TFLOP/s and TB/s of the "
                "GPU, as in --roofline 790:4.3"
            )
        name = f"{peak} TFLOP/s, {bandwidth} TB/s"
    precision = config.train.precision
    wide = precision == "fp32"
    bound = bounds(
        layers_of(config.model, config.data.resolution),
        peak=speeds["peak"], bandwidth=speeds["bandwidth"], batch=256,
        value_bytes=4 if wide else 2, levels=("a2",),
    )["a2"]  # fmt: skip
    views = 4 if config.pretext.views == "all" else 1
    return RooflineSteps(name, bound.seconds, views, "bf16" if precision == "auto" else precision)


def _fits(record: StepRecord, config: Config) -> bool:
    model, train = config.model, config.train
    views = 4 if config.pretext.views == "all" else 1
    return (
        record.model == (model.name, model.width, model.stem)
        and record.resolution == config.data.resolution
        and record.views == views
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
    """Those with the first preferred value that occurs; with another one if none does."""
    values = [getattr(record, attribute) for record in records]
    chosen = next((value for value in preferred if value in values), values[-1])
    return [r for r, value in zip(records, values, strict=True) if value == chosen]


def _line(batches: Sequence[int], values: Sequence[float]) -> tuple[float, float]:
    """Intercept and slope of least squares, neither of them negative."""
    slope, intercept = np.polyfit(batches, values, 1)
    if intercept < 0:
        slope = float(np.dot(batches, values) / np.dot(batches, batches))
        return 0.0, slope
    return float(intercept), max(float(slope), 0.0)


def _command(config: Config) -> str:
    model, train = config.model, config.train
    words = ["fastrot bench train-step", f"--model {model.name}"]
    if model.width != 64:
        words.append(f"--width {model.width}")
    if model.stem != "imagenet":
        words.append(f"--stem {model.stem}")
    if train.step != "auto":
        words.append(f"--steps {train.step}")
    if train.precision != "auto":
        words.append(f"--precision {train.precision}")
    if train.threads is not None:
        words.append(f"--threads {train.threads}")
    words.append(f"--resolution {config.data.resolution}")
    return " ".join([*words, "--batch {batch} --append steps.jsonl"])
