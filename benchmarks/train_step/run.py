"""``fastrot bench train-step``: compares the implementations of the training step.

Each implementation trains the same model from the same start on the same random images. The losses
of the first steps are compared first, because speed means nothing if they differ. Then all are
timed in rounds, each briefly in every round and in a different order each time. Their rates are
compared with the roofline of this model and size (``roofline.py``), at speeds measured on this
machine in the same run, and a profiled step shows where the time goes.

Shapes: N source images per step, 4 N views, S side.
"""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from fastrot.benchmarks.common.harness import (
    Countdown,
    check_outputs,
    check_positive,
    limited,
    machine_record,
    rotated,
)
from fastrot.benchmarks.common.machine_speed import (
    MachineSpeed,
    durations,
    measure_speed,
    usable_device,
)
from fastrot.benchmarks.common.roofline import REFERENCE, bounds, layers_of, step_flops
from fastrot.benchmarks.train_step.report import INTERRUPTED, StepPoint, TrainStepReport
from fastrot.benchmarks.train_step.subject import STEPS, StepSubject
from fastrot.benchmarks.train_step.time_table import TimeTable
from fastrot.config import Config, validate
from fastrot.errors import FastrotError, UsageError
from fastrot.models.precision import autocast_dtype, resolve_precision
from fastrot.system.machine import usable_cores
from fastrot.training.resolve import with_values

_RATE = 0.001  # a step costs the same at any learning rate; with this, losses remain comparable
_LEAST_WARM_UP = 5  # a CUDA graph is captured in the fourth step

Missed = dict[str, str]  # what could not run, and why
Profile = Callable[[StepPoint, StepSubject], TimeTable] | None


@dataclass(frozen=True)
class TrainStepBenchRequest:
    """Options of ``fastrot bench train-step``.

    Raises:
        UsageError: a value is wrong.
    """

    model: str = "resnet50"  # name of the backbone
    width: int = 64  # channels of its first stage
    stem: str = "imagenet"  # ``imagenet`` or ``small``
    steps: tuple[str, ...] = ("eager", "compile", "fused")  # keys of ``subject.STEPS``
    resolution: tuple[int, ...] = (224,)  # S, one or more
    batch: tuple[int, ...] = (64,)  # N, one or more
    precision: str = "auto"  # auto, fp32, bf16 or fp16
    device: str = "auto"  # auto, cpu or cuda
    rounds: int = 5  # number of rounds; each times every implementation once
    seconds: float = 2.0  # how long each implementation runs in a round
    parity_steps: int = 20  # number of first steps whose losses are compared; they are not timed
    peak: float | None = None  # TFLOP/s for the roofline; None: measured, of a matrix product
    bandwidth: float | None = None  # TB/s for the roofline; None: measured, of a copy
    kernels: bool = True  # profile one step of each, for the table of where the time goes
    trace: Path | None = None
    """File for the profiler's trace (Perfetto shows it); with several points, the name of each is
    inserted before the extension. Compressed if the name ends with ``.gz``."""
    threads: int | None = None  # number of torch threads; None: all usable cores
    progress: bool = True  # report progress on standard error

    def __post_init__(self) -> None:
        check_positive(peak=self.peak, bandwidth=self.bandwidth)
        if unknown := set(self.steps) - set(STEPS):
            raise UsageError(f"unknown steps {sorted(unknown)}; choose {', '.join(STEPS)}")
        if not self.steps:
            raise UsageError(f"--steps is empty; name at least one of {', '.join(STEPS)}")
        numbers: dict[str, tuple[float, ...]] = {
            "resolution": self.resolution,
            "batch": self.batch,
            "rounds": (self.rounds,),
            "seconds": (self.seconds,),
            "parity-steps": (self.parity_steps,),
        }
        for name, values in numbers.items():
            if not values or not all(math.isfinite(value) and value > 0 for value in values):
                raise UsageError(f"--{name}={list(values)} must be one or more positive numbers")

    @property
    def warm_up(self) -> int:
        """Return the number of steps that are not timed."""
        return max(self.parity_steps, _LEAST_WARM_UP)


def run_train_step(request: TrainStepBenchRequest) -> TrainStepReport:
    """Measure every implementation at every resolution and batch size.

    Raises:
        UsageError: the device or the trace file cannot be used, or nothing could be measured.
        KeyboardInterrupt: Ctrl-C before the first size was done; later, the results are kept.
    """
    steps = list(dict.fromkeys(request.steps))
    trace = request.trace
    check_outputs(trace)
    where = usable_device(request.device)
    console = Console(stderr=True) if request.progress else None
    points: list[StepPoint] = []
    left_out: Missed = {}
    sizes = [(side, count) for side in request.resolution for count in request.batch]
    countdown = Countdown(len(sizes) * len(steps) * (request.rounds + 2), console=console)
    configs = [_config(request, side, count, where) for side, count in sizes]
    train = configs[0].train

    def profile(point: StepPoint, subject: StepSubject) -> TimeTable:
        only = len(sizes) * len(steps) == 1
        return subject.table(trace if only or trace is None else _named(trace, point))

    dtype = autocast_dtype(train.precision) or torch.float32
    with limited(train.threads or 1), _as_in_training(where):
        speed = measure_speed(where, dtype)
        _free(where)
        speed = MachineSpeed(
            speed.peak if request.peak is None else request.peak * 1e12,
            speed.bandwidth if request.bandwidth is None else request.bandwidth * 1e12,
        )
        for config in configs:
            size = _Size(config, where, speed, countdown, request)
            try:
                found, missed = size.measure(steps, profile if request.kernels else None)
            except KeyboardInterrupt:
                if not points:
                    raise
                left_out[INTERRUPTED] = f"stopped at {size.name}"
                break
            points, left_out = points + found, left_out | missed
    if not points:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise UsageError(f"no implementation could run here: {reasons}")
    return TrainStepReport(
        points=points,
        left_out=left_out,
        speed=speed,
        settings={"model": request.model, "width": request.width, "stem": request.stem,
                  "precision": train.precision, "device": where.type, "rounds": request.rounds,
                  "seconds": request.seconds, "parity_steps": request.warm_up,
                  "threads": train.threads, "data": "random"},
        record=machine_record(),
    )  # fmt: skip


class _Size:
    """All implementations at one resolution and batch size."""

    def __init__(
        self,
        config: Config,
        device: torch.device,
        speed: MachineSpeed,
        countdown: Countdown,
        request: TrainStepBenchRequest,
    ) -> None:
        self._config, self._device, self._countdown = config, device, countdown
        self._rounds, self._seconds = request.rounds, request.seconds
        self._warm_up = request.warm_up
        self._side, self._count = config.data.resolution, config.train.global_batch
        self._control: list[float] | None = None
        self.name = f"{self._side} px, batch {self._count}"
        layers = layers_of(config.model, self._side)
        value_bytes = 4 if config.train.precision == "fp32" else 2
        self._flops = step_flops(layers)
        views = 4 * self._count
        self._measured, self._reference = (
            bounds(layers, peak=peak, bandwidth=bandwidth, batch=views, value_bytes=value_bytes)
            for peak, bandwidth in (
                (speed.peak, speed.bandwidth),
                (REFERENCE["peak"], REFERENCE["bandwidth"]),
            )
        )

    def measure(self, steps: Sequence[str], profile: Profile) -> tuple[list[StepPoint], Missed]:
        """Return the measured points, and what could not run, with the reasons.

        All implementations are built and then timed in rounds. If they do not fit into memory
        together, they are built and timed one after the other.
        """
        if len(steps) > 1:
            try:
                return self._run(steps, profile)
            except torch.OutOfMemoryError:
                self._countdown.message(f"{self.name}: not enough memory for all at once")
            _free(self._device)
        points: list[StepPoint] = []
        left_out: Missed = {}
        for name in steps:
            try:
                made, missed = self._run([name], profile)
            except torch.OutOfMemoryError as error:
                made, missed = [], {f"{name}, {self.name}": f"out of memory: {_first(error)}"}
                self._countdown.skip(self._rounds + 2)
            points, left_out = points + made, left_out | missed
            _free(self._device)
        return points, left_out

    def _run(self, steps: Sequence[str], profile: Profile) -> tuple[list[StepPoint], Missed]:
        built: dict[str, tuple[StepPoint, StepSubject]] = {}
        left_out: Missed = {}
        for name in steps:
            try:
                if len(steps) > 1 and self._control is None:
                    self._control = self._moved("eager" if "eager" in steps else name)
                built[name] = self._build(name)
            except torch.OutOfMemoryError:
                raise
            except (FastrotError, RuntimeError) as error:
                left_out[f"{name}, {self.name}"] = _first(error)
                self._countdown.skip(self._rounds + 2)
            if name not in built:
                _free(self._device)  # memory that a partly built one held
        for number in range(self._rounds):
            for name in rotated(list(built), number):
                self._time(*built[name], number)
        for name, (point, subject) in built.items():
            point.together = len(steps) > 1
            if profile is not None:
                point.table = profile(point, subject)
            subject.release()
            _free(self._device)
            self._countdown.step(f"{self.name}, {name}: {point.verdict()}")
        return [point for point, _ in built.values()], left_out

    def _moved(self, name: str) -> list[float]:
        """Return losses from weights a rounding error apart, which show the effect of chance."""
        self._countdown.message(f"{self.name}, {name}: control with slightly rounded weights")
        subject = StepSubject(name, self._config, self._device, moved=True)
        losses = subject.warm(self._warm_up)
        subject.release()
        _free(self._device)
        return losses

    def _build(self, name: str) -> tuple[StepPoint, StepSubject]:
        more = " after compiling for a minute or more" if name == "compile" else ""
        self._countdown.message(f"{self.name}, {name}: {self._warm_up} first steps{more}")
        subject = StepSubject(name, self._config, self._device)
        losses = subject.warm(self._warm_up)
        self._countdown.step(f"{self.name}, {name}: warmed up, loss {losses[-1]:.4f}")
        point = StepPoint(
            step=name,
            batchnorm=subject.backend.batchnorm,
            cuda_graph=subject.backend.graph,
            resolution=self._side,
            batch=self._count,
            views=subject.views,
            flops=self._flops,
            losses=losses,
            control=self._control or losses,
            memory=subject.memory,
            measured=self._measured,
            reference=self._reference,
        )
        return point, subject

    def _time(self, point: StepPoint, subject: StepSubject, number: int) -> None:
        each = statistics.median(durations(subject, 2, self._device))
        count = max(2, math.ceil(self._seconds / each))
        point.rounds.append(durations(subject, count, self._device))
        rate = point.views * count / sum(point.rounds[-1])
        self._countdown.step(f"{self.name}, round {number + 1}, {point.step}: {rate:,.0f} views/s")


def _named(trace: Path, point: StepPoint) -> Path:
    """Return ``trace-fused-224px-64.json.gz``, for example, for ``trace.json.gz``."""
    stem, dot, ending = trace.name.partition(".")
    label = f"{point.step}-{point.resolution}px-{point.batch}"
    return trace.with_name(f"{stem}-{label}{dot}{ending}")


def _config(request: TrainStepBenchRequest, side: int, count: int, device: torch.device) -> Config:
    tree = {
        "model": {"name": request.model, "width": request.width, "stem": request.stem},
        "data": {"resolution": side},
        "train": {
            "precision": request.precision,
            "threads": request.threads,
            "global_batch": count,
        },
        "optim": {"learning_rate": _RATE},
    }
    config = validate(tree, "bench train-step")
    precision = resolve_precision(config.train.precision, device, training=True)
    threads = config.train.threads or usable_cores()
    return with_values(config, {"train.precision": precision, "train.threads": threads})


@contextmanager
def _as_in_training(device: torch.device) -> Iterator[None]:
    """Set what ``fastrot train`` sets for the whole process, as it determines which kernels run."""
    benchmark = torch.backends.cudnn.benchmark
    precision = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = benchmark
        torch.set_float32_matmul_precision(precision)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _first(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return next(iter(str(error).splitlines()), type(error).__name__)
