"""Features of a data set: one decode and one forward pass for all layers, straight to the disk.

Rows are in the order of the data set on any number of ranks. The work is cut into batches of
consecutive samples, and a batch is computed by one rank as it would be by another: the bits do
not depend on how many there are, nor on whether the extraction was killed in between. On a CPU
they depend on the number of threads of a rank (OMP_NUM_THREADS), by which convolutions are cut
up: with two instead of one, 1 of 41,984 values of layer4 was the neighbouring float16.

Shapes: N images of a batch, S side of a crop, D values of a layer.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastrot.data.dataset import BadSampleError, Dataset
from fastrot.data.loader import Batch, LoaderSpec, build_loader
from fastrot.data.sampling.crops import Crop
from fastrot.data.sampling.sampler import Sampler
from fastrot.distributed.world import World, pick_device
from fastrot.errors import BadDataError
from fastrot.features.cache import FeatureCache
from fastrot.features.forward import FeatureNetwork, pipelined
from fastrot.features.manifest import MANIFEST
from fastrot.features.pooling import layer_infos
from fastrot.features.spec import FeaturePlan, plan_features
from fastrot.features.writer import LOCK, FeatureWriter, remove_plan
from fastrot.system.console import Say
from fastrot.system.lock import RunLock
from fastrot.system.machine import usable_cores
from fastrot.system.progress import Meter
from fastrot.weights.load import Backbone

_GPU_BATCH = 256
_CPU_PIXELS = 2**21  # of a batch
_MEETING = 8
"""Batches after which the ranks wait for each other: were they to meet at the end alone, a rank
that is five per cent slower would miss the deadline of an hour's work."""


def extract_features(
    backbone: Backbone,
    samples: Dataset,
    out: Path,
    *,
    layers: Sequence[str],
    crop: Crop,
    crops: int = 0,
    seed: int = 0,
    loader: str = "auto",
    device: str = "auto",
    batch: int | None = None,
    workers: int | None = None,
    precision: str = "auto",
    world: World | None = None,
    progress: bool = True,
    say: Say | None = None,
) -> FeatureCache:
    """Extract the features of all samples, or go on with it, or return what is there.

    Args:
        backbone: left as it is, to the bit.
        samples: the data set.
        out: the cache's folder.
        layers: stages of the backbone, ``pool`` among them.
        crop: the test transform; with ``crops``: how a crop is drawn, or, if nothing about it
            is random, only its size: random resized crops with a flip in two.
        crops: K random crops of each sample, of epochs 0 to K - 1; 0: the test transform.
        seed: of the random crops.
        loader: ``auto`` (native, or reference where that cannot run) or one by name; native
            decodes exactly.
        device: ``auto``, ``cpu`` or ``cuda``.
        batch: images of a forward pass; None: by size and device. A resumed extraction keeps
            the one that it began with.
        workers: decoding threads or processes; None: by the cores.
        precision: ``fp32``, ``bf16``, ``fp16``, or ``auto``: fp32 on a CPU; bf16 on a GPU that
            has it, else fp16.
        world: the ranks, which have joined (``distributed.joined``); None: this process alone.
        progress: show it on standard error.
        say: one line to the user.

    Raises:
        UsageError: a layer or another argument is wrong.
        MismatchError: the folder holds features of something else; the fields are named.
        BadDataError: an image cannot be read; what was done before is kept. Or the data set has
            not one label for each sample.
        NonFiniteError: a feature is not finite as float16; layer and sample are named.
        StorageError: too little space, or writing failed.
    """
    world, say = world or World(), say or (lambda _: None)
    target = pick_device(device, world)
    plan = plan_features(backbone, samples, layers, crop, crops, seed, loader, target, precision)
    if (out / MANIFEST).exists():
        cache = FeatureCache.open(out, expect=plan.identity)
        if world.is_main:
            remove_plan(out)  # of a process that was killed at the very end
            say(f"{out}: all features are there")
        return cache
    with ExitStack() as stack:
        if world.is_main:
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(RunLock(out / LOCK, what=f"the extraction into {out}"))
            model = copy.deepcopy(backbone.model).eval()  # a caller's may be in training
            infos = layer_infos(model.stages, plan.crop.size)
            FeatureWriter.begin(
                out,
                identity=plan.identity,
                layers={name: infos[name] for name in plan.layers},
                samples=len(samples),
                crops=crops,
                batch=batch or pass_size(plan.crop.size, target),
            )
        _wait(world, target)
        writer = stack.enter_context(FeatureWriter(out))
        # All ranks look before any writes, so that their shares do not overlap.
        missing = [writer.missing(k) for k in range(max(1, crops))]
        _wait(world, target)
        record = _run(plan, backbone, samples, writer, missing, world, target, workers, progress)
        writer.sync()
        _wait(world, target)
        if world.is_main:
            writer.finish(samples.labels, samples.class_names, record)
        _wait(world, target)
    return FeatureCache.open(out, expect=plan.identity)


def _run(
    plan: FeaturePlan,
    backbone: Backbone,
    samples: Dataset,
    writer: FeatureWriter,
    missing: Sequence[NDArray[np.int64]],
    world: World,
    device: torch.device,
    workers: int | None,
    progress: bool,
) -> dict[str, Any]:
    """Compute and write this rank's share of what is missing; the record of it."""
    shares = [batches[world.rank :: world.size] for batches in missing]
    orders = [_Batches.of(writer, share) for share in shares]
    total = sum(order.images for order in orders)
    cores = max(1, usable_cores() // world.local_size)
    if workers is None:
        workers = cores if device.type == "cuda" else max(1, cores // 2)
    started = time.monotonic()
    with ExitStack() as stack:
        network = stack.enter_context(FeatureNetwork(backbone, plan, device))
        title = "extract" if world.size == 1 else f"extract (rank 0 of {world.size})"
        meter = None
        if progress and world.is_main and total:
            every = max(1, writer.crops) * writer.samples
            done = (every - sum(_Batches.of(writer, b).images for b in missing)) // world.size
            meter = stack.enter_context(Meter(title, total=done + total, done=done))
        for k, order in enumerate(orders):
            of_every_rank = len(missing[k]) // world.size
            if not order.images:
                continue
            spec = LoaderSpec(
                samples, order, plan.crop, plan.seed, device, workers=workers, exact=True
            )
            with ExitStack() as inner:
                reader = build_loader(plan.loader, spec)
                inner.callback(reader.close)
                reader.set_epoch(k)
                numbers = iter(shares[k].tolist())
                results = pipelined(network, _readable(reader, writer.path))
                for count, (first, features) in enumerate(results, 1):
                    number = next(numbers)
                    assert first == number * writer.batch
                    writer.write(number, k, features)
                    if meter is not None:
                        rows = next(iter(features.values()))
                        size = sum(array.nbytes for array in features.values())
                        meter.advance(images=len(rows), size=size)
                    if count % _MEETING == 0 and count <= of_every_rank:
                        _wait(world, device)
    seconds = time.monotonic() - started
    return {
        "source": backbone.source,
        "data": str(samples.path),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "loader": plan.loader,
        "ranks": world.size,
        "batch": writer.batch,
        "threads": torch.get_num_threads(),
        "workers": workers,
        "torch": torch.__version__,
        "images": sum(_Batches.of(writer, b).images for b in missing),
        "seconds": round(seconds, 3),
    }


@dataclass(frozen=True)
class _Batches(Sampler):
    """Chosen batches of consecutive samples, in order; one a step, for this rank alone."""

    numbers: tuple[int, ...] = ()

    @classmethod
    def of(cls, writer: FeatureWriter, numbers: NDArray[np.int64]) -> _Batches:
        return cls(
            writer.samples,
            writer.batch,
            mode="sequential",
            drop_last=False,
            numbers=tuple(numbers.tolist()),
        )

    @property
    def images(self) -> int:
        return sum(len(self.global_ids(0, step)) for step in range(len(self.numbers)))

    @property
    def steps_per_epoch(self) -> int:
        return len(self.numbers)

    def global_ids(self, epoch: int, step: int) -> NDArray[np.int64]:
        start = self.numbers[step] * self.global_batch
        return np.arange(start, min(start + self.global_batch, self.num_samples), dtype=np.int64)


def _readable(reader: Any, out: Path) -> Iterator[Batch]:
    """The batches of a loader; a bad image is named, and the advice is that of an extraction."""
    try:
        yield from reader
    except BadSampleError as error:
        raise BadDataError(
            f"bad sample {error.sample} ({error.name}): {error.reason}; mend or remove it; what "
            f"was extracted before it is kept in {out}"
        ) from None


def _wait(world: World, device: torch.device) -> None:
    if world.size > 1:
        world.sum(torch.zeros(1, device=device)).item()  # a GPU's ranks would only queue the sum


def pass_size(side: int, device: torch.device) -> int:
    """Images of ``side`` pixels in one forward pass."""
    if device.type == "cuda":
        return _GPU_BATCH
    return min(_GPU_BATCH, max(16, _CPU_PIXELS // side**2))
