"""Every ``auto`` of a run is resolved to a value here, once, and the run records it.

This takes two steps because of the run folder. What this rank computes with is chosen before the
folder is touched, so that a run that cannot start leaves no trace (``choose_platform``). The rest
depends on the contents of the folder: its data, and its checkpoint, which another number of ranks
may have written (``resolve``). From then on, only the resulting configuration is used.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fastrot.config import Config, validate
from fastrot.data.loader import LoaderSpec, choose_loader
from fastrot.data.sampling.sampler import Sampler
from fastrot.distributed.world import World, pick_device, read_world
from fastrot.errors import UsageError
from fastrot.models.precision import resolve_precision
from fastrot.system.console import Say
from fastrot.system.machine import decoding_workers, usable_cores
from fastrot.training.data import RunData, train_crop, train_order
from fastrot.training.memory import check_memory
from fastrot.training.step_backend import StepBackend, choose_backend

SHARED_CORES = ("train.threads", "data.workers")
"""Settings that divide the cores of a machine among its ranks."""

_SMALL_SIDE = 32


@dataclass(frozen=True)
class Platform:
    """What this rank computes with.

    Attributes:
        world: the ranks.
        device: device of this rank.
        precision: fp32, bf16, fp16 or fp64.
        backend: how a step is computed.
    """

    world: World
    device: torch.device
    precision: str
    backend: StepBackend


@dataclass(frozen=True)
class BatchPlan:
    """How the global batch is split.

    Attributes:
        per_pass: source images in one micro-batch of a rank.
        accumulation: micro-batches per optimizer step.
    """

    per_pass: int
    accumulation: int


@dataclass(frozen=True)
class ResolvedRun:
    """A run with nothing left to decide.

    Attributes:
        config: settings with a value for each ``auto`` that a resumed run keeps, as recorded in
            ``config.yaml``. ``train.batchnorm`` and ``train.cuda_graph`` stay as written, since
            another number of ranks may need other values (``backend`` holds the choice), and
            ``train.val_knn`` is a rule, which each validation applies to its data.
        backend: how a step is computed.
        batch: how the global batch is split.
        order: assigns the training samples to the batches of this rank.
        world: the ranks.
        device: device of this rank.
    """

    config: Config
    backend: StepBackend
    batch: BatchPlan
    order: Sampler
    world: World
    device: torch.device


def choose_platform(config: Config) -> Platform:
    """Choose device, precision and implementation of the step without touching the disk.

    Raises:
        MismatchError: there is no GPU for this rank.
        UsageError: the device cannot train as configured.
    """
    world = read_world()
    device = pick_device(config.train.device, world)
    precision = resolve_precision(config.train.precision, device, training=True)
    return Platform(world, device, precision, choose_backend(config, world, device))


def resolve(
    config: Config, platform: Platform, data: RunData, say: Say, *, anew: Collection[str] = ()
) -> ResolvedRun:
    """Resolve everything that the configuration leaves open, and report what was chosen.

    Args:
        config: settings as requested.
        platform: what this rank computes with.
        data: the opened datasets.
        say: prints one line to the user.
        anew: keys of ``SHARED_CORES`` to choose again although they have a value, because it was
            chosen for another number of ranks.

    Raises:
        UsageError: the global batch cannot be divided equally, or is larger than the data.
        OutOfMemoryError: training would take more memory than is available.
    """
    world, device, backend = platform.world, platform.device, platform.backend
    batch = plan_batch(config, world)
    order = train_order(
        config,
        len(data.train),
        world,
        accumulation=batch.accumulation,
        stored_bytes=data.train.stored_bytes,
    )
    if batch.accumulation > 1:
        views = batch.per_pass * (4 if config.pretext.views == "all" else 1)
        say(
            f"accumulating {batch.accumulation} micro-batches per step: batch norm sees "
            f"bn_batch={views} views of a rank at a time, not the whole step"
        )
    loader: str = config.data.loader
    if loader == "auto":
        spec = LoaderSpec(data.train, order, train_crop(config), 0, device, 0)
        images = int(config.train.epochs * order.steps_per_epoch * order.global_batch)
        loader, why = choose_loader(spec, images=images // world.size)
        say(f"loader: {loader} ({why})")
    say(backend.describe())
    if world.size > 1:
        share = batch.per_pass * batch.accumulation
        say(f"{world.size} ranks, each with {share} images per step")
    threads, workers = _share_cores(config, world, device, anew)
    settled = {
        "train.device": device.type,
        "train.precision": platform.precision,
        "train.step": backend.step,
        "train.threads": threads,
        "data.workers": workers,
        "data.loader": loader,
    }
    config = with_values(config, settled)
    check_memory(config, batch.per_pass, batch.accumulation, backend, world, say)
    return ResolvedRun(config, backend, batch, order, world, device)


def _share_cores(
    config: Config, world: World, device: torch.device, anew: Collection[str]
) -> tuple[int, int]:
    """Return torch threads and decoding workers of this rank, as set or from its share of cores."""
    threads = None if "train.threads" in anew else config.train.threads
    workers = None if "data.workers" in anew else config.data.workers
    on_gpu = device.type != "cpu"
    if workers is None:
        workers = decoding_workers(on_gpu=on_gpu, local_ranks=world.local_size)
        if not on_gpu and config.data.resolution <= _SMALL_SIDE:
            workers = 0  # decoding takes less time than handing over
    return threads or max(1, usable_cores() // world.local_size), workers


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """Return a copy with some dotted keys set."""
    tree = config.model_dump()
    for key, value in values.items():
        section, _, name = key.partition(".")
        tree[section][name] = value
    return validate(tree, "resolved configuration")


def plan_batch(config: Config, world: World) -> BatchPlan:
    """Split the global batch across ranks and, if ``micro_batch`` requires it, into micro-batches.

    Raises:
        UsageError: the global batch cannot be divided equally.
    """
    total, limit = config.train.global_batch, config.train.micro_batch
    if total % world.size:
        raise UsageError(
            f"train.global_batch={total} must be a multiple of the {world.size} ranks; set it to "
            f"{total // world.size * world.size or world.size}"
        )
    share = total // world.size
    passes = next(
        n for n in range(1, share + 1) if share % n == 0 and share // n <= (limit or share)
    )
    return BatchPlan(share // passes, passes)
