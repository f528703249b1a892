"""A run whose crops grow (``data.progressive``): one prediction a size, put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fastrot.config import Config
from fastrot.plan.predict import Prediction
from fastrot.resolve import with_values

_LEAST_SURE = ("bound", "extrapolated", "interpolated", "measured")


def phases(config: Config) -> list[Config]:
    """The run cut into runs of one crop size, each with its epochs; mostly there is one."""
    starts = config.data.progressive or ((0, config.data.resolution),)
    ends = [*(epoch for epoch, _ in starts[1:]), config.train.epochs]
    return [
        with_values(
            config,
            {
                "data.resolution": side,
                "data.progressive": (),
                "train.epochs": min(end, config.train.epochs) - start,
            },
        )
        for (start, side), end in zip(starts, ends, strict=True)
        if start < config.train.epochs
    ]


def together(rows: Sequence[Prediction]) -> Prediction:
    """One row for phases that follow each other.

    Times of a step are means over all steps; memory is the largest; what bounds the steps, and the
    all-reduce, are those of the phase that takes longest.
    """
    if len(rows) == 1:
        return rows[0]
    steps = sum(row.total_steps for row in rows)

    def mean(name: str) -> float:
        return sum(row.total_steps * float(getattr(row, name)) for row in rows) / steps

    def total(name: str) -> float:
        return float(sum(getattr(row, name) for row in rows))

    longest = max(rows, key=lambda row: row.hours)
    step, compute = mean("step"), mean("compute")
    memory = [row.memory for row in rows if row.memory is not None]
    return replace(
        longest,
        how=min((row.how for row in rows), key=_LEAST_SURE.index),
        compute=compute,
        exposed=mean("exposed"),
        sync_bn=mean("sync_bn"),
        all_reduce=mean("all_reduce"),
        step=step,
        total_steps=steps,
        views_per_s=longest.views_per_s * longest.step / step,
        efficiency=compute / step,
        hours=total("hours"),
        gpu_hours=total("gpu_hours"),
        cost=None if longest.cost is None else total("cost"),
        read_bytes=total("read_bytes"),
        node_read_per_s=max(row.node_read_per_s for row in rows),
        node_images_per_s=max(row.node_images_per_s for row in rows),
        network_total=total("network_total"),
        memory=max(memory) if len(memory) == len(rows) else None,
    )
