"""Extraction of a dataset's features: one decode and one forward pass for all layers.

Rows follow the order of the dataset on any number of ranks. The work is split into batches of
consecutive samples, and every rank computes a batch identically: the bits do not depend on the
number of ranks, nor on whether the extraction was killed and resumed. On a CPU they depend on the
threads per rank (OMP_NUM_THREADS), among which convolutions are divided: with two instead of one,
1 of 41,984 values of layer4 was the neighbouring float16.

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
from fastrot.data.sampling.sampler import Sampler
from fastrot.distributed.world import World, pick_device
from fastrot.errors import BadDataError, UsageError
from fastrot.features.cache import FeatureCache
from fastrot.features.forward import FeatureNetwork, pipelined
from fastrot.features.manifest import MANIFEST
from fastrot.features.pooling import layer_infos
from fastrot.features.spec import FeatureSpec
from fastrot.features.writer import LOCK, FeatureWriter, remove_plan
from fastrot.system.lock import RunLock
from fastrot.system.machine import decoding_workers
from fastrot.system.progress import Meter
from fastrot.weights.load import Backbone

_GPU_BATCH = 256
_CPU_PIXELS = 2**21  # per batch
_SYNC_BATCHES = 8
"""Batches between two waits of the ranks for each other. If they waited only at the end, a rank
that is five per cent slower would exceed the time limit of a wait after an hour of work."""


@dataclass(frozen=True)
class ExtractOptions:
    """How features are computed; ``FeatureSpec`` defines what they are.

    Attributes:
        device: ``auto``, ``cpu`` or ``cuda``.
        batch: images per forward pass; None: chosen by size and device. A resumed extraction
            keeps the batch it began with.
        workers: decoding threads or processes; None: chosen by the number of cores.
        progress: show progress on standard error.
    """

    device: str = "auto"
    batch: int | None = None
    workers: int | None = None
    progress: bool = True


def extract_features(
    backbone: Backbone,
    samples: Dataset,
    out: Path,
    spec: FeatureSpec,
    options: ExtractOptions | None = None,
    *,
    world: World | None = None,
) -> FeatureCache:
    """Extract the features of all samples, resume an extraction, or open a finished cache.

    Args:
        backbone: the network; it is not modified.
        samples: the dataset.
        out: folder of the cache.
        spec: what to extract, settled for this backbone, these samples and the options' device.
        options: how to extract; None: chosen for this machine.
        world: the joined ranks (``distributed.world.joined``); None: only this process.

    Raises:
        UsageError: the specification was made for another backbone or other samples.
        MismatchError: the folder holds different features; the message names the fields.
        BadDataError: an image cannot be read; the work done before it is kept.
        NonFiniteError: a feature is not finite as float16; the message names layer and sample.
        StorageError: there is too little space, or writing failed.
    """
    world = world or World()
    options = options or ExtractOptions()
    if not spec.is_of(backbone, samples):
        raise UsageError(f"{out}: the specification was made for another backbone or other samples")
    target = pick_device(options.device, world)
    if (out / MANIFEST).exists():
        cache = FeatureCache.open(out, expect=spec.fingerprint)
        if world.is_main:
            remove_plan(out)  # left by a process that was killed at the very end
        return cache
    with ExitStack() as stack:
        if world.is_main:
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(RunLock(out / LOCK, what=f"the extraction into {out}"))
            model = copy.deepcopy(backbone.model).eval()  # the caller's may be in training mode
            infos = layer_infos(model.stages, spec.crop.size)
            FeatureWriter.begin(
                out,
                fingerprint=spec.fingerprint,
                layers={name: infos[name] for name in spec.layers},
                samples=len(samples),
                crops=spec.crops,
                batch=options.batch or pass_size(spec.crop.size, target),
            )
        _wait(world, target)
        writer = stack.enter_context(FeatureWriter(out))
        # All ranks look before any writes, so that their shares do not overlap.
        missing = [writer.missing(k) for k in range(max(1, spec.crops))]
        _wait(world, target)
        record = _run(spec, options, backbone, samples, writer, missing, world)
        writer.sync()
        _wait(world, target)
        if world.is_main:
            writer.finish(samples.labels, samples.class_names, record)
        _wait(world, target)
    return FeatureCache.open(out, expect=spec.fingerprint)


def _run(
    spec: FeatureSpec,
    options: ExtractOptions,
    backbone: Backbone,
    samples: Dataset,
    writer: FeatureWriter,
    missing: Sequence[NDArray[np.int64]],
    world: World,
) -> dict[str, Any]:
    """Compute and write this rank's share of the missing batches; return a record of the work."""
    device, workers = pick_device(options.device, world), options.workers
    shares = [batches[world.rank :: world.size] for batches in missing]
    orders = [_Batches.of(writer, share) for share in shares]
    total = sum(order.images for order in orders)
    if workers is None:
        on_gpu = device.type == "cuda"
        workers = decoding_workers(on_gpu=on_gpu, local_ranks=world.local_size)
    started = time.monotonic()
    with ExitStack() as stack:
        network = stack.enter_context(FeatureNetwork(backbone, spec, device))
        title = "extract" if world.size == 1 else f"extract (rank 0 of {world.size})"
        meter = None
        if options.progress and world.is_main and total:
            every = max(1, writer.crops) * writer.samples
            done = (every - sum(_Batches.of(writer, b).images for b in missing)) // world.size
            meter = stack.enter_context(Meter(title, total=done + total, done=done))
        for k, order in enumerate(orders):
            of_every_rank = len(missing[k]) // world.size
            if not order.images:
                continue
            source = LoaderSpec(
                samples, order, spec.crop, spec.seed, device, workers=workers, exact=True
            )
            with ExitStack() as inner:
                reader = build_loader(spec.loader, source)
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
                    if count % _SYNC_BATCHES == 0 and count <= of_every_rank:
                        _wait(world, device)
    seconds = time.monotonic() - started
    return {
        "source": backbone.source,
        "data": str(samples.path),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "loader": spec.loader,
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
    """Chosen batches of consecutive samples, in order; one per step, only for this rank."""

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
    """Yield the batches of a loader; name a bad image, with advice that fits an extraction."""
    try:
        yield from reader
    except BadSampleError as error:
        raise BadDataError(
            f"bad sample {error.sample} ({error.name}): {error.reason}; repair or remove it; "
            f"what was extracted before it is kept in {out}"
        ) from None


def _wait(world: World, device: torch.device) -> None:
    if world.size > 1:
        world.sum(
            torch.zeros(1, device=device)
        ).item()  # without item() a GPU would only queue the sum


def pass_size(side: int, device: torch.device) -> int:
    """Return the number of images of ``side`` pixels per forward pass."""
    if device.type == "cuda":
        return _GPU_BATCH
    return min(_GPU_BATCH, max(16, _CPU_PIXELS // side**2))
