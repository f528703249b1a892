"""Settings of the training of a dense model, in steps rather than epochs, as published."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fastrot.system.yaml_config import Section


class DenseConfig(Section):
    """How a detector or segmenter is trained (protocols of kind detection and segmentation)."""

    train_splits: Annotated[tuple[str, ...], Field(min_length=1)] = ("train",)
    """Parts of --train: of VOC detection with the year, as 2007-trainval; of others train, val."""
    test_split: str = "val"
    """Part of --test."""
    partial: bool = False
    """Also accept data that is not whole; the result notes it."""
    sbd: str | None = None
    """Folder of SBD, whose label maps the split trainaug of VOC 2012 needs."""
    steps: Annotated[int, Field(ge=1)] = 24_000
    """Optimizer steps."""
    batch: Annotated[int, Field(ge=1)] = 16
    """Images of a step, over all ranks."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.02
    """Peak learning rate, for the whole batch."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum coefficient."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Coefficient of the L2 penalty."""
    schedule: Literal["step", "poly"] = "step"
    """Shape of the learning rate. poly: (1 - step / steps) ** power."""
    milestones: tuple[int, ...] = (18_000, 22_000)
    """step: steps at which the rate is multiplied by gamma."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """step: factor at each milestone."""
    power: Annotated[float, Field(gt=0)] = 0.9
    """poly: exponent."""
    least_rate: Annotated[float, Field(ge=0)] = 0.0
    """poly: rate at the end."""
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    """Linear warm-up, in steps."""
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.001
    """Learning rate of step 0, as a fraction of the peak."""
    sync_bn: bool = True
    """Share batch-norm statistics between the ranks."""
    precision: Literal["auto", "fp32", "bf16", "fp64"] = "auto"
    """Autocast type. auto: bf16 on a GPU that has it, fp32 elsewhere. fp64: to check arithmetic."""
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    """Seed of everything random: new layers, order, sides, flips, sampled regions."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Threads that load images; null: chosen from the usable cores (half of them on a CPU)."""

    @model_validator(mode="after")
    def _increasing(self) -> DenseConfig:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"dense.milestones={list(self.milestones)} must increase")
        return self


def learning_rate(step: int, config: DenseConfig) -> float:
    """Return the learning rate of an optimizer step, counted from 0.

    Warm-up is linear from ``warmup_ratio`` to 1 and multiplies the scheduled rate, as in mmcv's
    ``LrUpdaterHook`` with ``warmup='linear'``.
    """
    peak, rate = config.learning_rate, config.least_rate
    if config.schedule == "poly":
        rate += (peak - rate) * float((1 - step / config.steps) ** config.power)
    else:
        rate = peak * float(config.gamma ** sum(step >= each for each in config.milestones))
    if step >= config.warmup_steps:
        return rate
    return rate * (config.warmup_ratio + (1 - config.warmup_ratio) * step / config.warmup_steps)
