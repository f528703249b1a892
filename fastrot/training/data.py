"""The data sets of a run, and how their samples are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from fastrot.config import Config
from fastrot.data.beton.dataset import BetonDataset
from fastrot.data.dataset import Dataset
from fastrot.data.loader import LoaderSpec, choose_loader
from fastrot.data.open import open_dataset
from fastrot.data.sampling.block_shuffle import block_length
from fastrot.data.sampling.crops import Crop
from fastrot.data.sampling.sampler import Sampler
from fastrot.distributed.world import World
from fastrot.system.console import Say
from fastrot.training.resolve import BatchPlan, plan_batch, with_values

EMBEDDED = "embedded:digits"


@dataclass(frozen=True)
class RunData:
    """Opened data sets, with the configuration that names them by path.

    Attributes:
        config: with a loader in place of ``auto``.
        train: training samples.
        val: held-out samples, or None.
        order: training order of this rank.
        batch: how the global batch is cut up.
    """

    config: Config
    train: Dataset
    val: Dataset | None
    order: Sampler
    batch: BatchPlan


def open_data(config: Config, out: Path, world: World, device: torch.device, say: Say) -> RunData:
    """Open the data sets and settle the loader.

    Raises:
        FastrotError: a path is wrong, a file damaged, a batch does not fit.
    """
    paths = {"train": config.data.train, "val": config.data.val}
    if EMBEDDED in paths.values():
        from fastrot.data.digits import write_digits

        if world.is_main:
            write_digits(out / "data")
        world.sum(torch.zeros(1, device=device))  # the others find them written
        digits = dict(zip(paths, write_digits(out / "data"), strict=True))
        paths |= {part: str(digits[part]) for part, name in paths.items() if name == EMBEDDED}
    assert paths["train"] is not None
    train = open_dataset(paths["train"], checksums=config.data.checksums)
    val = None
    if paths["val"] is not None:
        val = open_dataset(paths["val"], checksums=config.data.checksums)
    for samples in (train, val):
        if isinstance(samples, BetonDataset) and not samples.has_checksums:
            say(
                f"{samples.path}: no manifest, so a changed byte inside a readable image goes "
                "unnoticed; fastrot prepare writes one"
            )
    batch = plan_batch(config, world)
    order = train_order(config, len(train), world, batch, stored_bytes=train.stored_bytes)
    if batch.accumulation > 1:
        views = batch.per_pass * (4 if config.pretext.views == "all" else 1)
        say(
            f"accumulating {batch.accumulation} passes a step: batch norm sees bn_batch={views} "
            "views of a rank at a time, not the whole step"
        )
    if config.data.loader == "auto":
        spec = LoaderSpec(train, order, train_crop(config), 0, device, 0)
        images = int(config.train.epochs * order.steps_per_epoch * order.global_batch)
        name, why = choose_loader(spec, images=images // world.size)
        say(f"loader: {name} ({why})")
        config = with_values(config, {"data.loader": name})
    return RunData(config, train, val, order, batch)


def train_crop(config: Config) -> Crop:
    """How training crops are drawn."""
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
    """How validation crops are drawn: nothing random."""
    data = config.data
    return Crop(data.val_crop, data.resolution, resize=max(data.val_resize, data.resolution))


def train_order(
    config: Config, num_samples: int, world: World, batch: BatchPlan, *, stored_bytes: int
) -> Sampler:
    """The order of the training samples for this rank.

    Args:
        config: resolved.
        num_samples: n.
        world: the ranks.
        batch: how the global batch is cut up.
        stored_bytes: of all samples, which say how many are neighbours (data.order=block).
    """
    return Sampler(
        num_samples,
        config.train.global_batch,
        seed=config.train.seed,
        mode=config.data.order,
        rank=world.rank,
        world=world.size,
        accumulation=batch.accumulation,
        block=block_length(stored_bytes, num_samples),
    )
