"""One implementation of the training step, built as in ``fastrot train``, on random data."""

from __future__ import annotations

import resource
from contextlib import suppress
from itertools import cycle
from pathlib import Path

import numpy as np
import torch

from fastrot.benchmarks.train_step.time_table import TimeTable, time_table
from fastrot.config import Config
from fastrot.data.loader import Batch
from fastrot.data.sampling.draw import draw_turns
from fastrot.distributed.world import World
from fastrot.models.backbones import build_model
from fastrot.models.precision import autocast_dtype
from fastrot.training.optim import build_optimizer, keep_rate_on_device
from fastrot.training.resolve import with_values
from fastrot.training.rotation import RotationTask
from fastrot.training.step import TrainStep
from fastrot.training.step_backend import choose_backend, wrap_model

STEPS = {
    "eager": {"train.step": "eager"},
    "compile": {"train.step": "compile"},
    "fused": {"train.step": "fused"},
    "apex": {"train.step": "fused", "train.batchnorm": "apex"},
}
"""Settings of each implementation; ``apex`` is the fused step with NVIDIA apex's batch norm."""

_BATCHES = 2  # used alternately


class StepSubject:
    """Trains on random images on the device; every call is one optimizer step.

    Args:
        name: key of ``STEPS``.
        config: resolved; ``train.global_batch`` source images of ``data.resolution`` per step.
        device: device to train on.
        moved: start from weights that differ by about a rounding error in this precision.

    Attributes:
        name: name of the implementation.
        views: views per step.
        backend: result of ``choose_backend``.
        memory: peak in bytes since it was built, valid after ``warm``: on a GPU its allocations,
            on a CPU the resident size of the process.

    Raises:
        FastrotError: this implementation cannot run here.
    """

    def __init__(
        self, name: str, config: Config, device: torch.device, *, moved: bool = False
    ) -> None:
        config = with_values(config, STEPS[name])
        self.name, self._device = name, device
        self.memory = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
        self.backend = choose_backend(config, World(), device)
        if self.backend.step == "compile":
            # Forget other models: after eight of them torch would silently stop compiling.
            torch.compiler.reset()
        self._dtype = autocast_dtype(config.train.precision)
        self._model = build_model(config.model, seed=config.train.seed)
        if moved:
            _move(self._model, _rounding(self._dtype, device))
        self._model = self._model.to(device)
        if config.train.channels_last:
            self._model = self._model.to(memory_format=torch.channels_last)
        self._task = RotationTask(config, device, self._dtype, channels=self.backend.channels)
        self._optimizer = build_optimizer(self._model, config.optim)
        self._scaler = torch.amp.GradScaler(device.type) if self._half else None
        self._arranged = wrap_model(self._model, self.backend, world=World(), device=device,
                                 sync_bn=False, static_graph=True, say=_quiet)  # fmt: skip
        if self.backend.graph:
            keep_rate_on_device(self._optimizer, device)
        self._step = self._train_step(graph=self.backend.graph)
        self._batches = cycle(_random_batches(config, device))
        self.views = config.train.global_batch * self._task.views_per_image

    @property
    def _half(self) -> bool:
        return self._dtype == torch.float16

    def _train_step(self, *, graph: bool) -> TrainStep:
        return TrainStep(
            self._arranged,
            self._optimizer,
            self._task,
            device=self._device,
            scaler=self._scaler,
            graph=graph,
        )

    def __call__(self) -> None:
        """Train one step."""
        self._step([next(self._batches)])

    def warm(self, steps: int) -> list[float]:
        """Run the first steps, which include all one-off work; return their losses."""
        losses = []
        for _ in range(steps):
            self()
            losses.append(self._step.read().means["loss"])
        if self._device.type == "cuda":
            self.memory = torch.cuda.max_memory_allocated(self._device) - self._before
        else:
            self.memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return losses

    def table(self, trace: Path | None) -> TimeTable:
        """Return where the time goes; a CUDA graph is profiled as the same step without a graph.

        If memory does not suffice for that, the graph itself is profiled, without stages.
        """
        model = None if self.backend.step == "compile" else self._model
        if not self.backend.graph:
            return time_table(self, device=self._device, model=model, trace=trace)
        plain = self._train_step(graph=False)
        batch = [next(self._batches)]
        with suppress(torch.OutOfMemoryError):
            plain(batch)
            return time_table(lambda: plain(batch), device=self._device, model=model, trace=trace)
        return time_table(self, device=self._device, model=None, trace=trace)

    def release(self) -> None:
        """Release the memory; the step cannot run afterwards."""
        del self._step, self._arranged, self._model, self._optimizer, self._batches


def _rounding(dtype: torch.dtype | None, device: torch.device) -> float:
    """Return the relative rounding of arithmetic; a GPU's float32 convolutions use TensorFloat."""
    if dtype is not None:
        return torch.finfo(dtype).eps / 2
    return 2.0**-12 if device.type == "cuda" else 2.0**-24


def _move(model: torch.nn.Module, share: float) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + share * torch.randn(parameter.shape, generator=generator))


def _quiet(_: str) -> None:
    return


def _random_batches(config: Config, device: torch.device) -> list[Batch]:
    """Return random batches, the same for every implementation."""
    count, side = config.train.global_batch, config.data.resolution
    generator = torch.Generator().manual_seed(config.train.seed)
    batches = []
    for number in range(_BATCHES):
        pixels = torch.randint(
            0, 256, (count, side, side, 3), dtype=torch.uint8, generator=generator
        )
        flips = torch.rand(count, generator=generator) < 0.5
        ids = np.arange(count) + number * count
        turns = draw_turns(config.pretext.views, config.train.seed, 0, ids)
        batches.append(
            Batch(
                images=pixels.to(device),
                labels=torch.full((count,), -1, device=device),
                index=torch.from_numpy(ids),
                flips=flips.to(device),
                turns=torch.from_numpy(turns).to(device),
            )
        )
    return batches
