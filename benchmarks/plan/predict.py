"""Prediction of a run on several GPUs, from the step of one GPU and the links between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from fastrot.benchmarks.plan.collectives import Collective, Fabric, all_gather, all_reduce
from fastrot.benchmarks.plan.step_times import How, StepTimes
from fastrot.config import Config, ModelConfig
from fastrot.distributed.world import World
from fastrot.errors import UsageError
from fastrot.models.backbones import build_model
from fastrot.training.resolve import plan_batch, with_values

_VALUE_BYTES = 4  # per gradient and per statistic: autocast keeps both in float32
_BACKWARD = 2 / 3  # fraction of a step: two of three matrix products per layer
_LEAST_SURE: tuple[How, ...] = ("bound", "extrapolated", "interpolated", "measured")
_FLAG_BYTES = 4  # in every step the ranks agree that loss and gradients are finite
_FLAGS = {True: 1, False: 3}  # on a CPU they also decide together, and report the samples they saw


@dataclass(frozen=True)
class PlannedNetwork:
    """Sizes that determine a network's traffic: bytes of gradients, channels per batch norm."""

    gradient_bytes: int
    norms: tuple[int, ...]


def planned_network(config: ModelConfig) -> PlannedNetwork:
    """Return the sizes of a rotation network, without computing anything."""
    with torch.device("meta"):
        model = build_model(config, seed=0)
    return PlannedNetwork(
        _VALUE_BYTES * sum(parameter.numel() for parameter in model.parameters()),
        tuple(m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d)),
    )


@dataclass(frozen=True)
class PlanInputs:
    """Everything that a prediction depends on."""

    config: Config
    per_gpu: int | None  # images per step of each GPU; None: all share the global batch
    images: int  # in the dataset
    image_bytes: float  # mean stored bytes per image
    steps: Mapping[int, StepTimes]  # by side of the crops; several only if crops grow
    network: PlannedNetwork
    fabric: Fabric
    overlap: float  # fraction of the all-reduce that the backward pass hides, in [0, 1]
    price: float | None = None  # per GPU-hour


@dataclass(frozen=True)
class Prediction:
    """One row of the table, in seconds, bytes and source images; a step is an optimizer step.

    If crops grow, times are means over all steps, and memory is the maximum.
    """

    gpus: int
    nodes: int
    global_batch: int
    per_gpu: int  # images per step and GPU
    passes: int  # micro-batches per step and GPU (gradient accumulation)
    how: How  # how the computing time is known
    compute: float  # computing time of a step of one GPU
    exposed: float  # time that a step waits for gradients, statistics and flags
    sync_bn: float  # part of it that is for the statistics of batch norms
    step: float
    bound: str  # ``compute`` or ``network`` (more than half of the step)
    algorithm: str  # of the gradients' all-reduce
    all_reduce: float  # time of the gradients' all-reduce, hidden or not
    steps_per_epoch: int
    total_steps: int
    views_per_s: float  # of all GPUs together
    efficiency: float  # fraction of computing in the step, in (0, 1]
    hours: float  # of all training steps
    gpu_hours: float
    cost: float | None  # None: no price was given
    epoch_bytes: float  # read by all nodes per epoch
    read_bytes: float  # read by all nodes in the whole run
    node_read_per_s: float  # bytes/s that a node must read
    node_images_per_s: float  # images/s that a node must load
    gpu_sent: float  # bytes per step and GPU, over any link
    network_sent: float  # bytes per step between nodes
    network_total: float  # bytes between nodes in the whole run
    memory: float | None  # per GPU; None: not measured
    fixed_memory: int  # part of it for parameters, gradients and momentum


def crop_sizes(config: Config) -> dict[int, float]:
    """Return the fraction of the epochs that use each side of the crops; usually there is one."""
    starts = config.data.progressive or ((0, config.data.resolution),)
    epochs = config.train.epochs
    ends = [*(epoch for epoch, _ in starts[1:]), epochs]
    shares: dict[int, float] = {}
    for (start, side), end in zip(starts, ends, strict=True):
        if start < epochs:
            shares[side] = shares.get(side, 0.0) + (min(end, epochs) - start) / epochs
    return shares


def predict(inputs: PlanInputs, gpus: int) -> Prediction:
    """Predict one run.

    Raises:
        UsageError: the batch cannot be divided, the data has less than a batch, or nothing was
            measured near the batch of a GPU.
    """
    config = inputs.config
    if inputs.per_gpu is not None:
        config = with_values(config, {"train.global_batch": inputs.per_gpu * gpus})
    batch = plan_batch(config, World(size=gpus))
    total = config.train.global_batch
    per_epoch = inputs.images // total
    if not per_epoch:
        raise UsageError(f"a global batch of {total:,} is more than the {inputs.images:,} images")
    schedule = max(1, round(config.train.epochs * per_epoch))
    steps = min(schedule, config.train.max_steps or schedule)

    crops = {side: inputs.steps[side].seconds(batch.per_pass) for side in inputs.steps}
    one_pass = sum(share * crops[side][0] for side, share in crop_sizes(config).items())
    compute = batch.accumulation * one_pass
    gradients, statistics, flags = _messages(inputs, gpus, batch.accumulation)
    hidden = inputs.overlap * min(gradients.seconds, _BACKWARD * one_pass)
    sync_bn = sum(each.seconds for each in statistics)
    exposed = gradients.seconds - hidden + sync_bn + sum(each.seconds for each in flags)
    step, bound = compute + exposed, "network" if exposed > compute else "compute"
    nodes = inputs.fabric.nodes(gpus)
    on_a_node = min(gpus, inputs.fabric.gpus_per_node) * total / gpus
    hours = steps * step / 3600
    messages = [gradients, *statistics, *flags]
    network_sent = nodes * sum(each.node_bytes for each in messages)
    peaks = [times.memory(batch.per_pass) for times in inputs.steps.values()]
    return Prediction(
        gpus=gpus, nodes=nodes, global_batch=total, per_gpu=total // gpus,
        passes=batch.accumulation,
        how=min((how for _, how in crops.values()), key=_LEAST_SURE.index),
        compute=compute, exposed=exposed, sync_bn=sync_bn, step=step, bound=bound,
        algorithm=gradients.algorithm, all_reduce=gradients.seconds,
        steps_per_epoch=per_epoch, total_steps=steps,
        views_per_s=(4 if config.pretext.views == "all" else 1) * total / step,
        efficiency=compute / step, hours=hours, gpu_hours=gpus * hours,
        cost=None if inputs.price is None else gpus * hours * inputs.price,
        epoch_bytes=per_epoch * total * inputs.image_bytes,
        read_bytes=steps * total * inputs.image_bytes,
        node_read_per_s=on_a_node * inputs.image_bytes / step,
        node_images_per_s=on_a_node / step,
        gpu_sent=sum(each.rank_bytes for each in messages),
        network_sent=network_sent, network_total=steps * network_sent,
        memory=None if None in peaks else max(peak for peak in peaks if peak is not None),
        fixed_memory=(3 if config.optim.momentum else 2) * inputs.network.gradient_bytes,
    )  # fmt: skip


def _messages(
    inputs: PlanInputs, gpus: int, passes: int
) -> tuple[Collective, list[Collective], list[Collective]]:
    """Return the collectives of a step: gradients, statistics of batch norms, flags."""
    fabric, norms = inputs.fabric, inputs.network.norms
    gradients = all_reduce(gpus, inputs.network.gradient_bytes, fabric)
    flags = _FLAGS[all(t.on_gpu for t in inputs.steps.values())] * [
        all_reduce(gpus, _FLAG_BYTES, fabric)
    ]
    if not inputs.config.model.sync_bn:
        return gradients, [], flags
    # Forward: mean and variance per channel, and a count; backward: two sums per channel.
    statistics = [all_gather(gpus, _VALUE_BYTES * (2 * c + 1), fabric) for c in norms]
    statistics += [all_reduce(gpus, _VALUE_BYTES * 2 * c, fabric) for c in norms]
    return gradients, passes * statistics, flags
