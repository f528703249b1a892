"""A run on so many GPUs: from the step of one of them and the links between them.

A run whose crops grow is cut into phases of one crop size; each is predicted by itself, and the
rows are put together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fastrot.benchmarks.plan.collectives import Collective, Fabric, all_gather, all_reduce
from fastrot.benchmarks.plan.gradients import GRADIENT_BYTES, PlannedNetwork
from fastrot.benchmarks.plan.overlap import BackwardLayer, Timeline, bucket_of, simulate
from fastrot.benchmarks.plan.step_times import How, StepTimes
from fastrot.config import Config
from fastrot.distributed.world import World
from fastrot.errors import UsageError
from fastrot.training.resolve import plan_batch, with_values

_LEAST_SURE: tuple[How, ...] = ("bound", "extrapolated", "interpolated", "measured")
_FLAG_BYTES = 4  # every step the ranks agree that loss and gradients are finite
_FLAGS = {True: 1, False: 3}  # on a CPU they also decide together, and tell which samples they saw


@dataclass(frozen=True)
class PlanInputs:
    """Everything that a prediction depends on.

    Attributes:
        config: of the run.
        per_gpu: source images a step of each GPU: the global batch grows with the GPUs (weak
            scaling). None: the configuration's global batch is shared (strong scaling).
        images: of the data set.
        image_bytes: mean stored bytes of one.
        steps: times of one GPU.
        network: what is trained.
        fabric: what joins the GPUs.
        overlap: whether gradients are sent while the backward pass computes.
        loader_rate: source images/s that a node can load; None: not given.
        price: of a GPU-hour; None: not given.
    """

    config: Config
    per_gpu: int | None
    images: int
    image_bytes: float
    steps: StepTimes
    network: PlannedNetwork
    fabric: Fabric
    overlap: bool
    loader_rate: float | None = None
    price: float | None = None


@dataclass(frozen=True)
class Prediction:
    """One row of the table. Seconds, bytes, source images; a step is an optimizer step.

    Attributes:
        gpus: of the run.
        nodes: that hold them.
        global_batch: a step.
        per_gpu: a step of one GPU.
        passes: forward passes a step of one GPU (gradient accumulation).
        how: where the computing time is from.
        compute: seconds of a step that one GPU computes.
        exposed: seconds that it waits for gradients, statistics and flag.
        sync_bn: of them for the statistics of batch norms.
        step: seconds of a step.
        bound: ``compute``, ``network`` (more than half of the step) or ``loader``.
        algorithm: of the all-reduce of the largest bucket.
        all_reduce: seconds of all buckets, exposed or not.
        buckets: of gradients.
        steps_per_epoch: optimizer steps.
        total_steps: optimizer steps.
        views_per_s: over all GPUs.
        efficiency: share of the step that is computing, in (0, 1].
        hours: of the training steps.
        gpu_hours: the same times the GPUs.
        cost: of them; None: no price was given.
        epoch_bytes: read an epoch by all nodes.
        read_bytes: in all.
        node_read_per_s: bytes/s that a node must read.
        node_images_per_s: source images/s that a node must load.
        gpu_sent: bytes that a GPU sends a step, over whichever link.
        network_sent: bytes that all nodes together send to each other a step.
        network_total: the same of the whole run.
        memory: bytes of a GPU; None: not measured.
        fixed_memory: of parameters, gradients and momentum, part of it.
    """

    gpus: int
    nodes: int
    global_batch: int
    per_gpu: int
    passes: int
    how: How
    compute: float
    exposed: float
    sync_bn: float
    step: float
    bound: str
    algorithm: str
    all_reduce: float
    buckets: int
    steps_per_epoch: int
    total_steps: int
    views_per_s: float
    efficiency: float
    hours: float
    gpu_hours: float
    cost: float | None
    epoch_bytes: float
    read_bytes: float
    node_read_per_s: float
    node_images_per_s: float
    gpu_sent: float
    network_sent: float
    network_total: float
    memory: float | None
    fixed_memory: int


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


@dataclass(frozen=True)
class _Communication:
    """Of one step."""

    exposed: float
    sync_bn: float
    timeline: Timeline
    reductions: tuple[Collective, ...]
    gpu_sent: float
    node_sent: float


def predict(inputs: PlanInputs, gpus: int) -> Prediction:
    """Predict one run.

    Args:
        inputs: what is known.
        gpus: how many.

    Raises:
        UsageError: the batch cannot be shared, the data hold no batch, or nothing was measured
            near the batch of a GPU.
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

    one = inputs.steps.seconds(batch.per_pass)
    compute = batch.accumulation * one.seconds
    said = _communicate(inputs, gpus, one.seconds, batch.accumulation)
    step = compute + said.exposed
    bound = "network" if said.exposed > compute else "compute"
    nodes = inputs.fabric.nodes(gpus)
    on_a_node = min(gpus, inputs.fabric.gpus_per_node) * total / gpus
    if inputs.loader_rate is not None and on_a_node / inputs.loader_rate > step:
        step, bound = on_a_node / inputs.loader_rate, "loader"

    hours = steps * step / 3600
    views = 4 if config.pretext.views == "all" else 1
    memory = inputs.steps.memory(batch.per_pass)
    momentum = 1 if config.optim.momentum else 0
    return Prediction(
        gpus=gpus,
        nodes=nodes,
        global_batch=total,
        per_gpu=total // gpus,
        passes=batch.accumulation,
        how=one.how,
        compute=compute,
        exposed=said.exposed,
        sync_bn=said.sync_bn,
        step=step,
        bound=bound,
        algorithm=max(said.reductions, key=lambda each: each.rank_bytes).algorithm,
        all_reduce=sum(each.seconds for each in said.reductions),
        buckets=len(said.reductions),
        steps_per_epoch=per_epoch,
        total_steps=steps,
        views_per_s=views * total / step,
        efficiency=compute / step,
        hours=hours,
        gpu_hours=gpus * hours,
        cost=None if inputs.price is None else gpus * hours * inputs.price,
        epoch_bytes=per_epoch * total * inputs.image_bytes,
        read_bytes=steps * total * inputs.image_bytes,
        node_read_per_s=on_a_node * inputs.image_bytes / step,
        node_images_per_s=on_a_node / step,
        gpu_sent=said.gpu_sent,
        network_sent=nodes * said.node_sent,
        network_total=steps * nodes * said.node_sent,
        memory=memory,
        fixed_memory=(2 + momentum) * inputs.network.gradient_bytes,
    )


def _communicate(inputs: PlanInputs, gpus: int, seconds: float, passes: int) -> _Communication:
    network, fabric = inputs.network, inputs.fabric
    share = inputs.steps.backward_share
    if share is None:
        share = network.backward_flops / (network.backward_flops + network.forward_flops)
    backward = list(reversed(network.layers))
    gathers: list[Collective] = []
    reduces: dict[int, Collective] = {}
    if inputs.config.model.sync_bn and gpus > 1:
        # Forward: mean, variance and count of each channel or rank; backward: two sums a channel.
        gathers = [all_gather(gpus, GRADIENT_BYTES * (2 * c + 1), fabric) for c in network.norms]
        reduces = {c: all_reduce(gpus, 2 * GRADIENT_BYTES * c, fabric) for c in set(network.norms)}

    sizes = [nbytes for layer in backward for nbytes in reversed(layer.gradients)]
    numbers = bucket_of(sizes)
    filled = [0] * (numbers[-1] + 1)
    for number, nbytes in zip(numbers, sizes, strict=True):
        filled[number] += nbytes
    last = {number: position for position, number in enumerate(numbers)}
    complete = {position: filled[number] for number, position in last.items()}

    layers, position = [], 0
    for layer in backward:
        end = position + len(layer.gradients)
        layers.append(
            BackwardLayer(
                seconds=seconds * share * layer.flops / network.backward_flops,
                waits=reduces[layer.channels].seconds if layer.channels and reduces else 0.0,
                buckets=tuple(complete[p] for p in range(position, end) if p in complete),
            )
        )
        position = end
    timeline = simulate(
        layers, lambda nbytes: all_reduce(gpus, nbytes, fabric).seconds, overlap=inputs.overlap
    )
    flags = _FLAGS[inputs.steps.on_gpu] * [all_reduce(gpus, _FLAG_BYTES, fabric)]
    statistics = [*gathers, *(reduces[c] for c in network.norms if reduces)]
    forward = passes * sum(each.seconds for each in gathers)
    earlier = (passes - 1) * sum(layer.waits for layer in layers)
    reductions = tuple(all_reduce(gpus, nbytes, fabric) for nbytes in filled)
    messages = [*reductions, *flags, *(passes * statistics)]
    return _Communication(
        exposed=forward + earlier + timeline.exposed + sum(flag.seconds for flag in flags),
        sync_bn=forward + earlier + timeline.waiting,
        timeline=timeline,
        reductions=reductions,
        gpu_sent=sum(each.rank_bytes for each in messages),
        node_sent=sum(each.node_bytes for each in messages),
    )


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
