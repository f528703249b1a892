"""The contract of a loader: from samples on disk to uint8 batches on the device.

Every loader uses the same ids (``data/sampling/sampler.py``) and the same boxes, flips and turns
(``data/sampling/draw.py``), so any two yield the same images within a stated tolerance. One
parametrised contract test (tests/fastrot/data/test_loader.py) runs over all of them.

Shapes: N source images of this rank in a batch, V views per image, S side of a crop.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, NamedTuple, Protocol

import torch

from fastrot.data.dataset import BadSampleError, Dataset
from fastrot.data.sampling.crops import Crop
from fastrot.data.sampling.draw import Views
from fastrot.data.sampling.sampler import Sampler
from fastrot.errors import UsageError
from fastrot.kernels.dispatch import KernelUnavailableError, choose

READ_DEADLINE_SECONDS = 300.0


class IndexedBatch(Protocol):
    """A batch of any task, which says what samples it holds."""

    @property
    def index(self) -> torch.Tensor:
        """Return positions in the dataset, of shape (N,), int64, on the host."""
        ...


class Batches(Protocol):
    """The part of a loader that a training loop needs: the batches of an epoch, from any step."""

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Set the epoch, and the step within it, at which the next iteration starts."""
        ...

    def __iter__(self) -> Iterator[IndexedBatch]:
        """Yield the batches of the epoch in order."""
        ...


@dataclass(frozen=True)
class Batch:
    """One batch on the device (except ``index``); it stays valid after the next one is loaded.

    Attributes:
        images: of shape (N, S, S, 3), uint8, RGB, not yet flipped.
        labels: of shape (N,), int64, -1 for a missing label; or (N, K), int8, if an image can
            have several of K classes: 1 present, -1 absent, 0 ignored.
        index: positions in the dataset, of shape (N,), int64; always on the host, where random
            numbers are keyed by it and the sample log reads it without waiting for the device.
        flips: of shape (N,), bool: whether ``rotate_views`` is to mirror the image left to right.
        turns: quarter turns that ``rotate_views`` is to apply, of shape (N, V), uint8.
    """

    images: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor
    flips: torch.Tensor
    turns: torch.Tensor


@dataclass(frozen=True)
class LoaderSpec:
    """Everything a loader needs.

    Attributes:
        dataset: the dataset to read.
        sampler: the ids of each batch of this rank.
        crop: how a crop is drawn.
        seed: key of crops, flips, turns and replacements.
        device: where batches go.
        workers: number of decoding processes or threads.
        on_bad_sample: ``fail`` raises BadSampleError; ``skip`` uses
            ``crops.replacement(seed, id, attempt, n)`` instead and calls ``on_bad``.
        on_bad: called in the main process once for every bad sample that was replaced.
        exact: decode at full resolution; otherwise the native loader may decode at less.
        views: the turns of each image: ``all`` four, or ``one`` at random.
    """

    dataset: Dataset
    sampler: Sampler
    crop: Crop
    seed: int
    device: torch.device
    workers: int
    on_bad_sample: Literal["fail", "skip"] = "fail"
    on_bad: Callable[[BadSampleError], None] | None = None
    exact: bool = False
    views: Views = "all"


class Loader(Protocol):
    """An iterable over the batches of one epoch.

    Attributes:
        batch_size: source images of this rank in a full batch.
        num_samples: n, the number of samples in the dataset.
        reads: how the dataset is read and why, in one line; empty if there is no choice.
    """

    batch_size: int
    num_samples: int
    reads: str

    def __len__(self) -> int:
        """Return the number of batches per epoch (steps x accumulation), equal on all ranks."""
        ...

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Set the epoch, and the step within it, at which the next iteration starts."""
        ...

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the current epoch in order, from ``start_step`` on.

        An exception in a worker is raised here at the next ``next()``; no wait is longer than
        READ_DEADLINE_SECONDS.
        """
        ...

    def close(self) -> None:
        """Stop the workers and free the buffers; safe to call twice."""
        ...


class _Engine(NamedTuple):
    module: str
    loader: str
    package: str | None = None
    install: str = ""


_ENGINES = {
    "native": _Engine("fastrot.data.loaders.native", "NativeLoader"),
    "reference": _Engine("fastrot.data.loaders.reference", "ReferenceLoader"),
    "ffcv": _Engine(
        "fastrot.data.loaders.ffcv", "FfcvLoader", "ffcv", "pip install 'fastrot[ffcv]'"
    ),
    "dali": _Engine(
        "fastrot.data.loaders.dali", "DaliLoader", "nvidia.dali", "pip install 'fastrot[dali]'"
    ),
    "synthetic": _Engine("fastrot.data.loaders.synthetic", "SyntheticLoader"),
}

LOADERS = tuple(_ENGINES)
"""Names of the loaders, without ``auto``."""

# DALI and FFCV take seconds to import and compile. A run that decodes fewer images than this is
# assumed to finish before that pays off, and images of 64 px or less to be too cheap to decode for
# any gain. Not measured.
_SMALL_RUN_IMAGES = 20_000
_SMALL_SIDE = 64


def build_loader(name: str, spec: LoaderSpec, *, images: int | None = None) -> Loader:
    """Build a loader.

    Args:
        name: ``auto``, ``native``, ``reference``, ``ffcv``, ``dali`` or ``synthetic``.
        spec: everything it needs.
        images: as for ``choose_loader``.

    Raises:
        UsageError: the name is unknown, or a package is missing; the message has the command.
        MismatchError: this loader does not support what the specification asks for.
        BadDataError: the dataset is damaged.
    """
    if name == "auto":
        name, _ = choose_loader(spec, images=images)
    if name not in _ENGINES:
        raise UsageError(f"loader {name!r} is unknown; choose {', '.join(('auto', *_ENGINES))}")
    engine = _ENGINES[name]
    if name == "native" and (problem := _native_problem()):
        raise UsageError(f"loader 'native' cannot run: {problem}")
    if not _installed(engine):
        raise UsageError(f"loader {name!r} needs the package {engine.package}: {engine.install}")
    loader: Loader = getattr(importlib.import_module(engine.module), engine.loader)(spec)
    return loader


def choose_loader(spec: LoaderSpec, *, images: int | None = None) -> tuple[str, str]:
    """Return the loader that ``auto`` stands for, and a line with the reason.

    ``native`` is the fastest and starts at once. If its extension is missing, the choice is the
    fastest of the others that is installed and supports the crop, or ``reference`` if their
    start-up would not pay off: with fewer than 20,000 images in the whole run, or crops of at
    most 64 px.

    Args:
        spec: what the loader is to read.
        images: number of images this rank decodes in the whole run; None: those of one epoch.
    """
    problem = _native_problem()
    if problem is None:
        return "native", "the fastest that gives these crops"
    name, why = _choose_other(spec, images)
    return name, f"{why}; not native: {problem}"


def _native_problem() -> str | None:
    """Return why the native loader cannot run, or None if it can."""
    try:
        choose("crop_decode")
    except KernelUnavailableError as error:
        return str(error)
    return None


def _choose_other(spec: LoaderSpec, images: int | None) -> tuple[str, str]:
    sampler = spec.sampler
    total = sampler.steps_per_epoch * sampler.global_batch // sampler.world
    total = total if images is None else images
    if spec.crop.size <= _SMALL_SIDE:
        return "reference", f"at {_SMALL_SIDE} px and less the others gain little"
    if total < _SMALL_RUN_IMAGES:
        return "reference", f"{total} images are read before a faster loader has started"
    is_beton = spec.dataset.path.suffix == ".beton"
    if is_beton and not spec.crop.leaves_image and _installed(_ENGINES["ffcv"]):
        return "ffcv", "the fastest for a .beton file"
    if _installed(_ENGINES["dali"]):
        why = "FFCV is not installed"
        if not is_beton:
            why = "FFCV reads no image folders"
        elif spec.crop.leaves_image:
            why = "FFCV cannot draw crops that leave the image"
        return "dali", f"the fastest here ({why})"
    return "reference", "neither FFCV nor DALI is installed"


def _installed(engine: _Engine) -> bool:
    if engine.package is None:
        return True
    try:
        return find_spec(engine.package) is not None
    except ModuleNotFoundError:  # the parent package of a dotted name is missing
        return False
