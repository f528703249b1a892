"""The datasets of a run, and how their samples are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from fastrot.config import Config
from fastrot.data.beton.dataset import BetonDataset
from fastrot.data.classes import lookalike_notes
from fastrot.data.dataset import Dataset, count_line
from fastrot.data.open import open_dataset
from fastrot.data.sampling.block_shuffle import block_length
from fastrot.data.sampling.crops import Crop
from fastrot.data.sampling.sampler import Sampler
from fastrot.distributed.world import World
from fastrot.system.console import Say

EMBEDDED = "embedded:digits"
"""The name in a configuration for the data that comes with fastrot."""


@dataclass(frozen=True)
class RunData:
    """The opened datasets of a run.

    Attributes:
        train: training samples.
        val: held-out samples, or None.
    """

    train: Dataset
    val: Dataset | None


def open_data(config: Config, out: Path, world: World, device: torch.device, say: Say) -> RunData:
    """Open the datasets that a configuration names; embedded ones are written to disk first.

    Args:
        config: settings of the run, with ``data.train`` set.
        out: run folder; the embedded data goes to ``out/data``.
        world: the ranks, which all call this.
        device: device of this rank.
        say: prints one line to the user.

    Raises:
        FastrotError: a path is wrong, or a file is damaged.
    """
    paths = {"train": config.data.train, "val": config.data.val}
    if EMBEDDED in paths.values():
        from fastrot.data.digits import write_digits

        if world.is_main:
            write_digits(out / "data")
        world.sum(torch.zeros(1, device=device))  # the other ranks find the files written
        digits = dict(zip(paths, write_digits(out / "data"), strict=True))
        paths |= {part: str(digits[part]) for part, name in paths.items() if name == EMBEDDED}
    assert paths["train"] is not None
    checksums, follow = config.data.checksums, config.data.follow_symlinks
    train = open_dataset(paths["train"], checksums=checksums, follow_symlinks=follow)
    val = None
    if paths["val"] is not None:
        val = open_dataset(paths["val"], checksums=checksums, follow_symlinks=follow)
    parts = {samples.path: samples for samples in (train, val) if samples is not None}
    for samples in parts.values():
        if isinstance(samples, BetonDataset) and not samples.has_checksums:
            say(
                f"{samples.path}: no manifest, so a changed byte inside a readable image goes "
                "unnoticed; fastrot prepare writes a manifest"
            )
        say(count_line(samples))
        for note in lookalike_notes(samples):
            say(note)
        if samples.unlabelled:
            say(f"{samples.path}: read without labels: {samples.unlabelled}")
    return RunData(train, val)


def train_crop(config: Config) -> Crop:
    """Return how training crops are drawn."""
    data = config.data
    return Crop(
        data.crop,
        data.resolution,
        scale=data.scale,
        ratio=data.ratio,
        padding=data.padding,
        resize=data.val_resize,
        flip=data.flip,
    )


def val_crop(config: Config) -> Crop:
    """Return how validation crops are drawn: without randomness."""
    data = config.data
    return Crop(data.val_crop, data.resolution, resize=max(data.val_resize, data.resolution))


def train_order(
    config: Config, num_samples: int, world: World, *, accumulation: int, stored_bytes: int
) -> Sampler:
    """Return the order of the training samples for this rank.

    Args:
        config: settings of the run.
        num_samples: number of training samples.
        world: the ranks.
        accumulation: micro-batches per optimizer step.
        stored_bytes: size of all samples in bytes, which sets the block length (data.order=block).
    """
    return Sampler(
        num_samples,
        config.train.global_batch,
        seed=config.train.seed,
        mode=config.data.order,
        rank=world.rank,
        world=world.size,
        accumulation=accumulation,
        block=block_length(stored_bytes, num_samples),
    )
