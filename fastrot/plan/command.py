"""``fastrot plan``: gather what is known, predict each number of GPUs, state what it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastrot.benchmarks.harness import check_positive
from fastrot.config import Config, load_config
from fastrot.data.open import open_samples
from fastrot.data.sizes import SIZES
from fastrot.distributed import World
from fastrot.errors import UsageError
from fastrot.plan.allreduce import Fabric, Link
from fastrot.plan.network import planned_network
from fastrot.plan.predict import PlanInputs, Prediction, predict
from fastrot.plan.records import (
    LinkRecord,
    LoaderRecord,
    Record,
    StepRecord,
    read_records,
    shipped_paths,
)
from fastrot.plan.report import PlanReport
from fastrot.plan.roofline_steps import roofline_steps
from fastrot.plan.step_times import StepTimes, choose_steps
from fastrot.resolve import plan_batch

MOST_GPUS = 1024
_IMAGE_BYTES = 115_000.0
_IMAGE_BYTES_WHY = "mean of ImageNet's training images as published, not re-encoded: assumed"


@dataclass(frozen=True)
class Network:
    """Links as they were given; None: a default, which the plan calls an assumption.

    Attributes:
        gpus_per_node: ranks of a full node.
        link: GB/s between two GPUs of a node, in one direction.
        network: GB/s of a node to the others, all adapters together, in one direction.
        link_latency: microseconds of a hop inside of a node.
        latency: microseconds of a hop between nodes.
    """

    gpus_per_node: int = 8
    link: float | None = None
    network: float | None = None
    link_latency: float | None = None
    latency: float | None = None


_LINK, _NETWORK = Link(3e-6, 200e9), Link(10e-6, 25e9)
"""Cautious for GPUs joined by NVLink, and for nodes with 200 Gbit/s."""


def plan(
    recipe: str,
    *,
    gpus: Sequence[int],
    overrides: Sequence[str] = (),
    records: Sequence[Path] = (),
    hardware: str | None = None,
    roofline: str | None = None,
    network: Network | None = None,
    per_gpu: int | None = None,
    data: str | None = None,
    images: int | None = None,
    image_bytes: float | None = None,
    price: float | None = None,
) -> PlanReport:
    """Predict a run for several numbers of GPUs.

    Args:
        recipe: a YAML file or the name of a shipped recipe.
        gpus: one row each.
        overrides: as for ``fastrot train --set``.
        records: results files and folders of sweeps; with no step in them, those of the
            checkout, too.
        hardware: part of the name of the hardware whose records are meant.
        roofline: take the bound for this GPU in place of a record.
        network: links; what it leaves open is measured, if a record says so, or assumed.
        per_gpu: source images a step of each GPU, whatever their number.
        data: the images that will be read, for their number and bytes.
        images: how many there are, without ``data`` (default: ImageNet's training set).
        image_bytes: mean bytes of one, without ``data``.
        price: of a GPU for an hour.

    Raises:
        UsageError: an argument is wrong, or there is no record that fits.
        BadDataError: a record or the data are damaged.
    """
    network = network or Network()
    check_positive(
        price=price, link=network.link, network=network.network, latency_us=network.latency,
        link_latency_us=network.link_latency, gpus_per_node=network.gpus_per_node,
        batch_per_gpu=per_gpu, images=images, image_bytes=image_bytes,
    )  # fmt: skip
    if wrong := [n for n in gpus if not 1 <= n <= MOST_GPUS]:
        raise UsageError(f"--gpus {wrong[0]} must be between 1 and {MOST_GPUS:,}")
    config = load_config(recipe, list(overrides))
    known = read_records(records)
    if not any(isinstance(record, StepRecord) for record in known):
        known += read_records(shipped_paths())
    steps: StepTimes
    if roofline is not None:
        steps = roofline_steps(roofline, config)
    else:
        measured = [record for record in known if isinstance(record, StepRecord)]
        steps = choose_steps(
            measured, config, hardware=hardware, batches=_batches(config, gpus, per_gpu)
        )
    fabric, links = _fabric(known, steps, network)
    loader = _loader(known, config) if records else None
    count, size, read = _data(config, data, images, image_bytes)
    planned = planned_network(config.model, config.data.resolution)
    inputs = PlanInputs(
        config=config, per_gpu=per_gpu, images=count, image_bytes=size, steps=steps,
        network=planned, fabric=fabric, overlap=steps.on_gpu,
        loader_rate=None if loader is None else loader.images_per_s, price=price,
    )  # fmt: skip
    rows: list[Prediction] = []
    refused: dict[int, str] = {}
    for world in dict.fromkeys(gpus):
        try:
            rows.append(predict(inputs, world))
        except UsageError as error:
            refused[world] = str(error)
    shared = (
        f"global batch {config.train.global_batch}"
        if per_gpu is None
        else f"{per_gpu} images a GPU, whatever their number"
    )
    return PlanReport(
        title=f"{Path(recipe).name}: {config.model.name}, {config.data.resolution} px, "
        f"{config.train.epochs:g} epochs of {count:,} images, {shared}",
        rows=rows,
        refused=refused,
        assumptions=[
            *steps.describe(),
            *links,
            *_method(inputs, rows),
            read,
            _loading(loader),
            "not modelled: start, validation, checkpoints, jitter between ranks, other users of "
            "the network, and whatever sharing a node costs one GPU (clocks, memory of a CPU)",
        ],
        settings={"recipe": Path(recipe).name, "set": list(overrides), "gpus": list(gpus),
                  "price": price, "per_gpu": per_gpu, "records": [p.name for p in records]},
        exit_code=0 if rows else UsageError.exit_code,
    )  # fmt: skip


def _batches(config: Config, gpus: Sequence[int], per_gpu: int | None) -> list[int]:
    """Source images of a pass of one GPU, for each number of GPUs that can share the batch."""
    if per_gpu is not None:
        return [per_gpu]
    total = config.train.global_batch
    worlds = [World(size=n) for n in gpus if total % n == 0]
    return sorted({plan_batch(config, world).per_pass for world in worlds}) or [total]


def _fabric(
    records: Sequence[Record], steps: StepTimes, network: Network
) -> tuple[Fabric, list[str]]:
    """The links, and a line about each: what was given, else measured, else assumed."""
    measured: dict[bool, LinkRecord] = {}
    lines = []
    for record in records:
        if not isinstance(record, LinkRecord):
            continue
        if steps.hardware.startswith(record.hardware):
            measured[record.nodes > 1] = record
        else:
            lines.append(
                f"not used: the link of {record.source}, of other hardware: {record.hardware}"
            )
    inside, first = _link(
        "inside of a node", measured.get(False), _LINK, network.link, network.link_latency
    )
    between, second = _link(
        "of a node to the others", measured.get(True), _NETWORK, network.network, network.latency
    )
    return Fabric(inside, between, network.gpus_per_node), [first, second, *lines]


def _link(
    name: str,
    record: LinkRecord | None,
    default: Link,
    bandwidth: float | None,
    latency: float | None,
) -> tuple[Link, str]:
    source, link = "assumed", default
    if record is not None:
        link = record.link
        source = f"measured: {record.ranks} ranks, {record.backend}, {record.source}"
    chosen = Link(
        link.latency if latency is None else 1e-6 * latency,
        link.bandwidth if bandwidth is None else 1e9 * bandwidth,
    )
    speed, hop = (source if given is None else "given" for given in (bandwidth, latency))
    return chosen, (
        f"link {name}: {chosen.bandwidth / 1e9:.4g} GB/s ({speed}), "
        f"{1e6 * chosen.latency:.4g} us a hop ({hop})"
    )


def _loader(records: Sequence[Record], config: Config) -> LoaderRecord | None:
    """The fastest of our loaders at this resolution."""
    from fastrot.data.loader import LOADERS

    found = [
        record
        for record in records
        if isinstance(record, LoaderRecord)
        and record.resolution == config.data.resolution
        and record.loader in LOADERS
        and record.loader != "synthetic"
    ]
    return max(found, key=lambda record: record.images_per_s, default=None)


def _data(
    config: Config, data: str | None, images: int | None, image_bytes: float | None
) -> tuple[int, float, str]:
    """Number of images, mean bytes, and the line about them."""
    if data is not None:
        if images is not None or image_bytes is not None:
            raise UsageError("--data says how many images there are and how large; leave out "
                             "--images and --image-bytes")  # fmt: skip
        samples = open_samples(data)
        size = samples.stored_bytes / len(samples)
        return len(samples), size, f"bytes read: {size:,.0f} an image, stored in {Path(data).name}"
    size = _IMAGE_BYTES if image_bytes is None else image_bytes
    why = _IMAGE_BYTES_WHY if image_bytes is None else "given"
    count = SIZES["imagenet", "train"] if images is None else images
    return count, size, f"bytes read: {size:,.0f} an image ({why}), each once an epoch"


def _method(inputs: PlanInputs, rows: Sequence[Prediction]) -> list[str]:
    fabric, network = inputs.fabric, inputs.network
    share = inputs.steps.backward_share
    backward = f"{100 * share:.0f} % of the step, as profiled" if share is not None else (
        f"{100 * network.backward_flops / (network.forward_flops + network.backward_flops):.0f} % "
        "of the step, its share of the FLOPs"
    )  # fmt: skip
    lines = [
        "all-reduce: latency and bandwidth (alpha-beta); the fastest of ring, tree and two levels "
        f"({fabric.gpus_per_node} GPUs a node); gradients in fp32, "
        f"{network.gradient_bytes / 1e6:.1f} MB in DDP's buckets of 25 MiB, the first of 1 MiB",
        f"overlap: each bucket is sent when its last gradient is ready, along a backward pass of "
        f"{backward}, spread over layers by FLOPs"
        if inputs.overlap
        else "overlap: none; on a CPU the cores that compute also send",
    ]
    if inputs.config.model.sync_bn:
        lines.append(
            f"synchronised batch norm: {len(network.norms)} layers, each with an all-gather "
            "(ring) forward and an all-reduce backward that the computation waits for"
        )
    if inputs.overlap and any(row.gpus > 1 for row in rows):
        lines.append("sending takes no time from the GPU's computing (it takes a few of its SMs)")
    if inputs.steps.cuda_graph and any(row.gpus > 1 for row in rows):
        lines.append(
            "the record's step is one CUDA graph; that of several ranks is taken to be as fast"
        )
    if any(row.memory is not None for row in rows):
        row = next(row for row in rows if row.memory is not None)
        lines.append(
            f"memory: the record's peak, on the line through its batches; "
            f"{row.fixed_memory / 1e6:,.0f} MB of it parameters, gradients (DDP's buckets are "
            "these) and momentum; buffers of NCCL are not in it"
        )
    else:
        lines.append(
            f"memory: not measured (parameters, gradients and momentum alone: "
            f"{3 * network.gradient_bytes / 1e6:,.0f} MB)"
        )
    return lines


def _loading(loader: LoaderRecord | None) -> str:
    if loader is None:
        return (
            "loading: taken to keep up (no record of a loader is named): /s/node is what it must "
            "read; fastrot bench loader --append FILE measures it"
        )
    return (
        f"loading: {loader.loader}, {loader.images_per_s:,.0f} images/s a node, measured on "
        f"{loader.hardware} ({loader.source})"
    )
