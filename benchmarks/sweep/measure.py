"""One rank of a cell: runs the trainer for a while, then its loader alone and its step alone."""

from __future__ import annotations

import itertools
import resource
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from fastrot.benchmarks.common.machine_speed import measure_speed, percentile
from fastrot.benchmarks.sweep.clock import LoaderClock, StepClock
from fastrot.benchmarks.sweep.record import CellJob, Measured
from fastrot.config import Config, validate
from fastrot.data.loader import Batch, Loader, LoaderSpec, build_loader
from fastrot.distributed.world import World, joined
from fastrot.errors import PreemptedError
from fastrot.models.backbones import TURNS
from fastrot.models.precision import autocast_dtype
from fastrot.system.stop_request import StopRequest
from fastrot.training.data import RunData, open_data, train_crop
from fastrot.training.loop import Loop
from fastrot.training.resolve import ResolvedRun, choose_platform, resolve, with_values
from fastrot.training.run import prepare_torch
from fastrot.training.step import TrainStep
from fastrot.training.trainer import Trainer

_ENDLESS_EPOCHS = 1e6
_MOST_EPOCHS = 10**6  # more than a loader alone ever reaches


def measure(job: CellJob, scratch: Path) -> tuple[Measured, Config]:
    """Measure a cell; all its ranks call this and get the same result.

    Args:
        job: the cell to measure.
        scratch: folder for files of the run; its creator removes it afterwards.

    Returns:
        The measurements, and the configuration with every ``auto`` resolved.

    Raises:
        FastrotError: the cell cannot run here.
    """
    config = validate(dict(job.config), f"cell {job.key}")
    config = with_values(config, {"train.epochs": _ENDLESS_EPOCHS})
    platform = choose_platform(config)
    world, device = platform.world, platform.device
    with joined(world, device, deadline=config.train.deadline_seconds), ExitStack() as stack:
        data = open_data(config, scratch, world, device, _say)
        run = resolve(config, platform, data, _say)
        prepare_torch(run)
        if job.settings.kind == "loader":
            loader = stack.enter_context(closing(_loader(run, data)))
            return _loader_alone(job, run.config, loader, world, device), run.config
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        parts = Trainer(run, data, scratch, stack=stack, say=_say)
        return _trainer(job, parts, world, device), run.config


def _loader(run: ResolvedRun, data: RunData) -> Loader:
    """Return the loader of training images, as in a run."""
    config = run.config
    spec = LoaderSpec(
        dataset=data.train,
        sampler=run.order,
        crop=train_crop(config),
        seed=config.train.seed,
        device=run.device,
        workers=config.data.workers or 0,
        on_bad_sample=config.data.on_bad_sample,
        exact=config.data.exact_decode,
        views=config.pretext.views,
    )
    return build_loader(config.data.loader, spec)


def _say(text: str) -> None:
    print(text, flush=True)


class _Losses:
    """A reporter that keeps the losses of the measured steps."""

    def __init__(self, warm_up: int) -> None:
        self._last = warm_up
        self._sum, self._steps = 0.0, 0

    def update(self, *, step: int, metrics: Mapping[str, float]) -> None:
        """Add the loss of an interval; one that began in the warm-up counts from its end."""
        if step > self._last:
            self._sum += metrics["loss"] * (step - self._last)
            self._steps += step - self._last
            self._last = step

    def validating(self, *, step: int, batch: int, batches: int) -> None:
        """Do nothing: there is no validation."""

    def validated(self, *, step: int, metrics: Mapping[str, float]) -> None:
        """Do nothing: there is no validation."""

    def message(self, text: str) -> None:
        """Print a line."""
        _say(text)

    @property
    def mean(self) -> float | None:
        """Return the mean over the measured steps; None if there are none."""
        return self._sum / self._steps if self._steps else None


def _trainer(job: CellJob, parts: Trainer, world: World, device: torch.device) -> Measured:
    from fastrot.benchmarks.common.roofline import layers_of, step_flops  # takes a second to load

    config = parts.config
    stop = StopRequest()  # never entered, so only the clock of the main rank sets it, no signal
    loader = LoaderClock(parts.loader)
    clock = StepClock(parts.step, loader, world, stop, warm_up=job.settings.warm_up_steps,
                      repeats=job.settings.repeats, seconds=job.settings.seconds)  # fmt: skip
    losses = _Losses(job.settings.warm_up_steps)
    schedule = replace(
        parts.schedule(), validation_steps=None, sample_log="none", checkpoint_seconds=1e9
    )
    loop = Loop(schedule, cast(TrainStep, clock), cast(Loader, loader), world=world, run=None,
                report=losses, snapshot=parts.snapshot, validate=None)  # fmt: skip
    try:
        loop.run(stop)
    except PreemptedError:  # the loop ends in this way when a stop is requested
        pass
    del loop  # and the batches that it holds
    repeats = clock.repeats()
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device)
    else:
        memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    every = list(itertools.chain(*(repeat.steps for repeat in repeats)))
    batch = config.train.global_batch
    compute = _step_alone(
        parts, clock.last, statistics.median(every), job.settings.seconds, world, device
    )
    alone = _loader_rates(parts.loader, 1, job.settings.seconds, device, epoch=1)
    speed = measure_speed(device, autocast_dtype(config.train.precision) or _dtype(config))
    return Measured(
        ranks=world.size,
        nodes=job.nodes,
        global_batch=batch,
        views=parts.task.views_per_image,
        images_per_s=tuple(batch * len(each.steps) / sum(each.steps) for each in repeats),
        steps_ms={f"p{n}": 1e3 * percentile(every, n / 100) for n in (50, 95, 99)},
        data_wait=tuple(each.waited / sum(each.steps) for each in repeats),
        first_batch_s=loader.first,
        loader_images_per_s=_total(world, alone[0]),
        compute_images_per_s=compute,
        flops_per_view=float(step_flops(layers_of(config.model, config.data.resolution))),
        peak_flops=speed.peak,
        memory_bytes=int(_worst(world, [float(memory)])[0]),
        loss=losses.mean,
        busy=None,
    )


def _loader_alone(
    job: CellJob, config: Config, loader: Loader, world: World, device: torch.device
) -> Measured:
    clock, settings = LoaderClock(loader), job.settings
    batches: list[float] = []
    rates = _loader_rates(cast(Loader, clock), settings.repeats, settings.seconds, device, epoch=0,
                          warm_up=settings.warm_up_steps, batches=batches)  # fmt: skip
    totals = tuple(_total(world, rate) for rate in rates)
    memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Measured(
        ranks=world.size,
        nodes=job.nodes,
        global_batch=config.train.global_batch,
        views=TURNS if config.pretext.views == "all" else 1,
        images_per_s=totals,
        steps_ms={f"p{n}": 1e3 * percentile(batches, n / 100) for n in (50, 95, 99)},
        data_wait=(1.0,) * len(totals),  # nothing else is done
        first_batch_s=clock.first,
        loader_images_per_s=statistics.median(totals),
        compute_images_per_s=None,
        flops_per_view=None,
        peak_flops=None,
        memory_bytes=int(_worst(world, [float(memory)])[0]),
        loss=None,
        busy=None,
    )


def _loader_rates(
    loader: Loader,
    repeats: int,
    seconds: float,
    device: torch.device,
    *,
    epoch: int,
    warm_up: int = 3,
    batches: list[float] | None = None,
) -> list[float]:
    """Return source images/s of this rank in each repeat, after the batches prepared ahead."""
    stream = _endless(loader, epoch)
    for _ in range(warm_up):
        next(stream)
    rates = []
    for _ in range(repeats):
        images, began = 0, time.perf_counter()
        last = began
        while last - began < seconds:
            images += len(next(stream).index)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            now = time.perf_counter()
            if batches is not None:
                batches.append(now - last)
            last = now
        rates.append(images / (last - began))
    return rates


def _endless(loader: Loader, epoch: int) -> Iterator[Batch]:
    for each in range(epoch, _MOST_EPOCHS):
        loader.set_epoch(each)
        yield from loader


def _step_alone(
    parts: Trainer,
    batches: Sequence[Batch],
    step_seconds: float,
    seconds: float,
    world: World,
    device: torch.device,
) -> float:
    """Return source images/s over all ranks, with batches that are already loaded.

    All ranks take the same number of steps, because they wait for each other in each.
    """
    count = int(world.copy_from_main(torch.tensor([max(3.0, seconds / step_seconds)])))
    parts.step(batches)
    _settled(device)
    world.sum(torch.zeros(1))
    began = time.perf_counter()
    for _ in range(count):
        parts.step(batches)
    _settled(device)
    elapsed = _worst(world, [time.perf_counter() - began])[0]
    return count * parts.config.train.global_batch / elapsed


def _settled(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _worst(world: World, values: Sequence[float]) -> list[float]:
    """Return the maximum of each value over the ranks."""
    worst: list[float] = world.max(torch.tensor(values, dtype=torch.float64)).tolist()
    return worst


def _total(world: World, value: float) -> float:
    """Return the sum over the ranks, which all work at the same time."""
    return float(world.sum(torch.tensor([value], dtype=torch.float64)))


def _dtype(config: Config) -> torch.dtype:
    return torch.float64 if config.train.precision == "fp64" else torch.float32
