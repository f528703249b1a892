"""Settings that depend on the machine: every ``auto`` becomes a value that the run records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastrot.config import Config, validate
from fastrot.distributed.world import World
from fastrot.errors import MismatchError, UsageError
from fastrot.models.precision import _precision
from fastrot.system.machine import usable_cores
from fastrot.system.yaml_config import Override, override_key

# What may not change between a run and its resumption: the checkpoint would not fit, or the run
# would no longer be one run.
_FIXED = ("model.", "pretext.", "data.resolution", "data.progressive",
          "optim.name", "train.seed", "train.global_batch")  # fmt: skip
_SMALL_SIDE = 32


@dataclass(frozen=True)
class BatchPlan:
    """How the global batch is cut up.

    Attributes:
        per_pass: source images in one forward pass of a rank.
        accumulation: forward passes a step.
    """

    per_pass: int
    accumulation: int


def resolve(config: Config, world: World, device: torch.device) -> Config:
    """Replace precision, threads and workers that are left to fastrot by values.

    Raises:
        UsageError: the device cannot train with the precision.
    """
    cores = max(1, usable_cores() // world.local_size)
    workers = cores
    if device.type == "cpu":  # decoding and training share the cores
        workers = 0 if config.data.resolution <= _SMALL_SIDE else max(1, cores // 2)
    return with_values(
        config,
        {
            "train.device": device.type,
            "train.precision": _precision(config.train.precision, device),
            "train.threads": config.train.threads or cores,
            "data.workers": config.data.workers if config.data.workers is not None else workers,
        },
    )


def share_cores_anew(
    config: Config, overrides: Sequence[Override], world: World, device: torch.device
) -> Config:
    """Threads and workers for another number of ranks, where ``overrides`` does not name them."""
    named = {override_key(each) for each in overrides}
    free = {key: None for key in ("train.threads", "data.workers") if key not in named}
    return resolve(with_values(config, free), world, device)


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy with some dotted keys set."""
    tree = config.model_dump()
    for key, value in values.items():
        section, _, name = key.partition(".")
        tree[section][name] = value
    return validate(tree, "resolved configuration")


def plan_batch(config: Config, world: World) -> BatchPlan:
    """Cut the global batch over ranks and, where ``micro_batch`` asks for it, over passes.

    Raises:
        UsageError: the global batch cannot be shared equally.
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


def check_resumable(saved: Config, now: Config) -> list[str]:
    """Compare a run's configuration with the one it is to be resumed with.

    Returns:
        One line per key that differs and may.

    Raises:
        MismatchError: a key differs that the run depends on.
    """
    changed = []
    before, after = saved.model_dump(), now.model_dump()
    for section, values in after.items():
        for name, value in values.items():
            key, old = f"{section}.{name}", before[section][name]
            if value == old:
                continue
            if key.startswith(_FIXED):
                raise MismatchError(
                    f"cannot resume with {key}={value!r}: the run began with {old!r}; "
                    "leave it out, or start a new run with another --out"
                )
            changed.append(f"{key}: {old!r} -> {value!r}")
    return changed
