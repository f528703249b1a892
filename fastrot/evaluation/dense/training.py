"""Train a dense model: the loop, step, checkpoints and logs of pretraining, on another task.

Each rank takes its share of a batch, and gradients are averaged over the ranks. So several ranks
train what one does, up to rounding, if they share the statistics of batch norms (``sync_bn``) and
each mean of a loss has as many terms on every rank:

* A segmenter's losses are means over all pixels of its crops, also those that do not count, so
  they do. Dropout differs: each rank draws its own.
* A detector's losses are means over the anchors and regions that a rank samples, and over its
  regions with an object for masks. They do if images have one size and the same numbers of these,
  and no limit is reached, so that nothing is drawn. Otherwise each rank draws its own, and images
  with few regions weigh more, as usual where ranks average gradients.

On any number of ranks a resumed training ends with the bits of an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from fastrot import __version__
from fastrot.config import OptimConfig
from fastrot.data.sampling.sampler import Sampler
from fastrot.distributed.world import World
from fastrot.errors import UsageError
from fastrot.evaluation.dense.loader import DenseLoader, DenseSource
from fastrot.evaluation.dense.settings import DenseConfig, learning_rate
from fastrot.evaluation.dense.task import DenseTask, LossModel
from fastrot.models.precision import autocast_dtype, resolve_precision
from fastrot.runs.checkpoint import newest_checkpoint
from fastrot.runs.folder import RunFolder, read_run_id
from fastrot.runs.live_panel import Progress
from fastrot.system.console import Say
from fastrot.system.machine import decoding_workers
from fastrot.system.stop_request import StopRequest
from fastrot.training.loop import Loop, Snapshot
from fastrot.training.optim import build_optimizer, load_training_tensors, training_tensors
from fastrot.training.schedule import Schedule
from fastrot.training.step import TrainStep
from fastrot.training.step_backend import StepBackend, wrap_model

_CHECKPOINT_SECONDS = 600.0
_LOG_SECONDS = 5.0
_KEEP = 2


@dataclass(frozen=True)
class Where:
    """Where a dense model is trained.

    Attributes:
        world: the ranks.
        device: device of this rank.
        folder: run folder of the training; it may hold an unfinished one.
    """

    world: World
    device: torch.device
    folder: Path


class DenseReporter:
    """Shows the progress of a training of ``total`` steps from ``first`` on."""

    def __init__(self, total: int, first: int, say: Say, *, quiet: bool) -> None:
        console = Console(stderr=True, quiet=quiet)
        self.progress = Progress(total_steps=total, first_step=first, console=console)
        self.message = say

    def update(self, *, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of the last interval."""
        self.progress.update(step=step, metrics=metrics)

    def validating(self, *, step: int, batch: int, batches: int) -> None:
        """Do nothing: a dense model is measured after its training."""

    def validated(self, *, step: int, metrics: Mapping[str, float]) -> None:
        """Do nothing."""


def train_dense(
    model: nn.Module,
    losses: LossModel,
    source: DenseSource,
    config: DenseConfig,
    where: Where,
    say: Say,
    *,
    progress: bool = True,
) -> None:
    """Train a model in place, from the newest checkpoint in the folder if there is one.

    Args:
        model: backbone with pretrained weights and new layers, on the CPU.
        losses: computes the losses of a batch.
        source: annotated training images.
        config: length, batch and rates.
        where: ranks, device and folder.
        say: called with each line for the user.
        progress: show the progress.

    Raises:
        PreemptedError: a signal arrived; the same command resumes.
        NonFiniteError: a loss or gradient became NaN or infinite.
        StorageError: checkpoints cannot be written.
        UsageError: the batch does not divide into equal shares, or is larger than the data.
    """
    world, device = where.world, where.device
    precision = dense_precision(config, device)
    model.to(device).train()
    if precision == "fp64":
        model.double()
    model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, _optim(config))
    shared = config.sync_bn and world.size > 1 and device.type == "cpu"
    backend = StepBackend("eager", "fused" if shared else "torch", False, "")
    wrapped = wrap_model(
        model, backend, world=world, device=device, sync_bn=config.sync_bn,
        static_graph=False, say=say,
    )  # fmt: skip
    task = DenseTask(losses, device, autocast_dtype(precision), seed=config.seed, rank=world.rank)
    step = TrainStep(wrapped, optimizer, task, device=device, world=world)
    _check_batch(config.batch, len(source), world.size)
    order = Sampler(len(source), config.batch, seed=config.seed, rank=world.rank, world=world.size)
    schedule = _schedule(config, order)
    with StopRequest("the same command continues") as stop, ExitStack() as stack:
        folder = None
        if world.is_main:
            folder = stack.enter_context(RunFolder(where.folder, resume=True))
        world.sum(torch.zeros(1))  # the folder is there before the other ranks look into it
        run_id = folder.run_id if folder else read_run_id(where.folder)
        saved = newest_checkpoint(where.folder / "checkpoints", run_id)
        start = 0 if saved is None else saved.step
        if saved is not None:
            load_training_tensors(model, optimizer, saved.tensors)
        if start >= schedule.total_steps:
            return
        workers = config.workers or max(
            1, decoding_workers(on_gpu=device.type == "cuda", local_ranks=world.local_size)
        )
        loader = DenseLoader(source, order, workers=workers, device=device)
        stack.callback(loader.close)
        quiet = not (progress and world.is_main)
        reporter = DenseReporter(schedule.total_steps, start, say, quiet=quiet)
        stack.enter_context(reporter.progress)

        def snapshot() -> Snapshot:
            state: dict[str, Any] = {"fastrot": __version__, "torch": torch.__version__,
                                     "settings": config.model_dump(mode="json"),
                                     "world_size": world.size}  # fmt: skip
            return Snapshot(training_tensors(model, optimizer), state, {})

        loop = Loop(
            schedule, step, loader, world=world, run=folder, report=reporter,
            snapshot=snapshot, validate=None, again="the same command continues",
            calmer="lower dense.learning_rate or lengthen dense.warmup_steps",
        )  # fmt: skip
        loop.run(stop, start, resumed=saved is not None)


def dense_precision(config: DenseConfig, device: torch.device) -> str:
    """Return the precision that a dense model is trained in: fp32, bf16 or fp64.

    ``auto`` is fp32 on GPUs without bf16: fp16 would need a scaled loss.
    """
    precision = resolve_precision(config.precision, device, training=True)
    return "fp32" if precision == "fp16" else precision


def _check_batch(batch: int, images: int, ranks: int) -> None:
    if batch % ranks or batch > images:
        fits = max(ranks, min(batch, images) // ranks * ranks)
        raise UsageError(
            f"dense.batch={batch} must be a multiple of the {ranks} ranks and at most the "
            f"{images:,} training images; set it to {fits}"
        )


def _optim(config: DenseConfig) -> OptimConfig:
    return OptimConfig(
        learning_rate=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )


def _schedule(config: DenseConfig, order: Sampler) -> Schedule:
    return Schedule(
        total_steps=config.steps,
        steps_per_epoch=order.steps_per_epoch,
        accumulation=1,
        views_per_image=None,
        rate=lambda step: learning_rate(step, config),
        validation_steps=None,
        checkpoint_steps=None,
        checkpoint_seconds=_CHECKPOINT_SECONDS,
        log_seconds=_LOG_SECONDS,
        keep_checkpoints=_KEEP,
        sample_log="digest",
    )
