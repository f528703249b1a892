"""Records and inputs that the tests of the plan share."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastrot.benchmarks.plan.collectives import Fabric, Link
from fastrot.benchmarks.plan.predict import PlanInputs, PlannedNetwork, planned_network
from fastrot.benchmarks.plan.records import StepRecord
from fastrot.benchmarks.plan.step_times import choose_steps
from fastrot.config import ModelConfig, load_config

RECIPE = "resnet50_8xb16-steplr-70e"
CLUSTER = Fabric(Link(3e-6, 200e9), Link(10e-6, 25e9), 8)
MILLISECONDS = {16: 12.0, 32: 18.0, 128: 60.0}
"""Of a made-up GPU, by batch."""


@cache
def _network(config: ModelConfig) -> PlannedNetwork:
    return planned_network(config)


def step_record(batch: int = 16, milliseconds: float = 12.0, **changes: Any) -> StepRecord:
    """A step of the published recipe on a made-up GPU."""
    values: dict[str, Any] = {
        "source": "made.jsonl", "hardware": "GPU A", "on_gpu": True, "commit": "abc",
        "model": ("resnet50", 64, "imagenet"), "resolution": 224, "views": 4, "precision": "bf16",
        "step": "fused", "batch": batch, "seconds": milliseconds / 1e3,
        "memory": 2 * 10**9 + 10**8 * batch,
    }  # fmt: skip
    return StepRecord(**(values | changes))


def records() -> list[StepRecord]:
    """Three batches of it."""
    return [step_record(batch, ms) for batch, ms in MILLISECONDS.items()]


def inputs(*overrides: str, **changes: Any) -> PlanInputs:
    """The published recipe on that GPU."""
    config = load_config(RECIPE, list(overrides))
    values: dict[str, Any] = {
        "config": config, "per_gpu": 64, "images": 1_281_167, "image_bytes": 1e5,
        "steps": {224: choose_steps(records(), config, batches=[64])},
        "network": _network(config.model), "fabric": CLUSTER, "overlap": 0.8,
    }  # fmt: skip
    return PlanInputs(**(values | changes))
