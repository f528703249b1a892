"""``fastrot plan``: collects records, predicts each number of GPUs, and states the assumptions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastrot.benchmarks.common.harness import check_positive
from fastrot.benchmarks.plan.collectives import Fabric
from fastrot.benchmarks.plan.links import choose_link, choose_overlap
from fastrot.benchmarks.plan.predict import (
    PlanInputs,
    Prediction,
    crop_sizes,
    planned_network,
    predict,
)
from fastrot.benchmarks.plan.records import (
    Record,
    StepRecord,
    read_records,
    shipped_paths,
)
from fastrot.benchmarks.plan.report import PlanReport
from fastrot.benchmarks.plan.step_times import StepTimes, choose_steps, roofline_steps
from fastrot.config import Config, load_config
from fastrot.data.open import open_dataset
from fastrot.data.sources.listing import SIZES
from fastrot.errors import UsageError
from fastrot.training.resolve import with_values

MOST_GPUS = 1024
_IMAGE_BYTES = 115_000.0


@dataclass(frozen=True)
class PlanRequest:
    """Options of ``fastrot plan``; None: measured, assumed, or not requested.

    Raises:
        UsageError: a value is wrong.
    """

    recipe: str  # a YAML file or the name of a shipped recipe
    gpus: tuple[int, ...] = (1, 2, 4, 8)  # one row each
    overrides: tuple[str, ...] = ()  # as for ``fastrot train --set``
    records: tuple[Path, ...] = ()  # if they contain no step, those of the checkout count as well
    hardware: str | None = None  # part of its name in the records
    roofline: str | None = None  # use the bound for this GPU instead of a record
    gpus_per_node: int = 8
    link: float | None = None  # GB/s between two GPUs of a node, in one direction
    network: float | None = None  # GB/s from a node to the others, all adapters together
    link_latency_us: float | None = None  # per hop inside a node
    latency_us: float | None = None  # per hop between nodes
    overlap: float | None = None  # fraction of the all-reduce that is hidden, in [0, 1]
    per_gpu: int | None = None  # source images per step and GPU, for any number of GPUs
    data: str | None = None  # dataset that determines the number and size of images
    images: int | None = None  # number, without ``data`` (default: ImageNet's training set)
    image_bytes: float | None = None  # mean bytes per image, without ``data``
    price: float | None = None  # per GPU-hour

    def __post_init__(self) -> None:
        check_positive(
            price=self.price, link=self.link, network=self.network, latency_us=self.latency_us,
            link_latency_us=self.link_latency_us, gpus_per_node=self.gpus_per_node,
            batch_per_gpu=self.per_gpu, images=self.images, image_bytes=self.image_bytes,
        )  # fmt: skip
        if self.overlap is not None and not 0 <= self.overlap <= 1:
            raise UsageError(f"--overlap={self.overlap} must be between 0 and 1")
        if wrong := [n for n in self.gpus if not 1 <= n <= MOST_GPUS]:
            raise UsageError(f"--gpus {wrong[0]} must be between 1 and {MOST_GPUS:,}")
        if self.data is not None and (self.images is not None or self.image_bytes is not None):
            raise UsageError(
                "--data determines the number and size of images; omit --images and --image-bytes"
            )


def plan(request: PlanRequest) -> PlanReport:
    """Predict a run for several numbers of GPUs.

    Raises:
        UsageError: the recipe is wrong, or no record fits.
        BadDataError: a record or the data is damaged.
    """
    recipe, per_gpu = request.recipe, request.per_gpu
    config = load_config(recipe, list(request.overrides))
    known = read_records(request.records)
    if not any(isinstance(record, StepRecord) for record in known):
        known = [*read_records(shipped_paths()), *known]
    sides, hardware = list(crop_sizes(config)), request.hardware
    steps: dict[int, StepTimes] = {}
    for side in sides:
        steps[side] = first = _steps(known, config, side, request, hardware)
        hardware = first.hardware  # all sides must use the same
    inside, of_inside = choose_link(
        known, first.hardware, request.link, request.link_latency_us, between_nodes=False
    )
    between, of_between = choose_link(
        known, first.hardware, request.network, request.latency_us, between_nodes=True
    )
    overlap, of_overlap = choose_overlap(
        known, first.hardware, request.overlap, on_gpu=first.on_gpu
    )
    count, size, read = _data(request)
    inputs = PlanInputs(
        config=config, per_gpu=per_gpu, images=count, image_bytes=size, steps=steps,
        network=planned_network(config.model),
        fabric=Fabric(inside, between, request.gpus_per_node), overlap=overlap,
        price=request.price,
    )  # fmt: skip
    rows: list[Prediction] = []
    refused: dict[int, str] = {}
    for world in dict.fromkeys(request.gpus):
        try:
            rows.append(predict(inputs, world))
        except UsageError as error:
            refused[world] = str(error)
    shared = (
        f"global batch {config.train.global_batch}"
        if per_gpu is None
        else f"{per_gpu} images per GPU"
    )
    return PlanReport(
        title=f"{Path(recipe).name}: {config.model.name}, {', '.join(map(str, sides))} px, "
        f"{config.train.epochs:g} epochs of {count:,} images, {shared}",
        rows=rows,
        refused=refused,
        assumptions=[
            *dict.fromkeys(line for times in steps.values() for line in times.described),
            of_inside, of_between, of_overlap, *_method(inputs), read,
            "loading: assumed to keep up with what a node loads; fastrot bench loader measures it",
            "not modelled: start, validation, checkpoints, jitter between ranks, other users of "
            "the network, slowdown by other GPUs of the node (clocks, a CPU's memory), and "
            "that several ranks use no CUDA graph unless train.cuda_graph=true",
        ],
        settings={"recipe": Path(recipe).name, "set": list(request.overrides),
                  "gpus": list(request.gpus), "price": request.price, "per_gpu": per_gpu,
                  "records": [path.name for path in request.records]},
        exit_code=0 if rows else UsageError.exit_code,
    )  # fmt: skip


def _steps(
    known: Sequence[Record], config: Config, side: int, request: PlanRequest, hardware: str | None
) -> StepTimes:
    """Return step times of one GPU for crops of this side."""
    config = with_values(config, {"data.resolution": side, "data.progressive": ()})
    if request.roofline is not None:
        return roofline_steps(request.roofline, config)
    total, most = config.train.global_batch, config.train.micro_batch
    shares = {total // n for n in request.gpus if total % n == 0} or {total}
    batches = {request.per_gpu} if request.per_gpu else shares
    measured = [record for record in known if isinstance(record, StepRecord)]
    return choose_steps(
        measured,
        config,
        hardware=hardware,
        batches=sorted(min(each, most or each) for each in batches),
    )


def _data(request: PlanRequest) -> tuple[int, float, str]:
    """Return the number of images, their mean bytes, and a line about them."""
    if request.data is not None:
        samples = open_dataset(request.data)
        size = samples.stored_bytes / len(samples)
        stored = f"stored in {Path(request.data).name}"
        return len(samples), size, f"bytes read: {size:,.0f} per image, {stored}"
    size, why = request.image_bytes or _IMAGE_BYTES, "given"
    if request.image_bytes is None:
        why = "assumed: mean of ImageNet's training images as published, not re-encoded"
    count = request.images or SIZES["imagenet", "train"]
    return count, size, f"bytes read: {size:,.0f} per image ({why}), each once per epoch"


def _method(inputs: PlanInputs) -> list[str]:
    """Return the model's assumptions about communication and memory."""
    network, steps = inputs.network, inputs.steps.values()
    megabytes = network.gradient_bytes / 1e6
    lines = [
        "all-reduce: hops times latency plus bytes over bandwidth; the faster of ring and tree "
        f"({inputs.fabric.gpus_per_node} GPUs per node); gradients in fp32, {megabytes:.1f} MB"
    ]
    if inputs.config.model.sync_bn:
        lines.append(
            f"synchronised batch norm: {len(network.norms)} layers, each with an all-gather "
            "(ring) forward and an all-reduce backward that the computation waits for; on a CPU "
            "several ranks also use a slower kernel for it (model.sync_bn=false avoids both)"
        )
    measured = all(each.peaks for each in steps)
    peak = "the record's peak, scaled beyond its largest batch" if measured else "not measured"
    states, held = 2, "parameters and gradients"
    if inputs.config.optim.momentum:
        states, held = 3, "parameters, gradients and momentum buffers"
    lines.append(
        f"memory: {peak}; {held} take {states * megabytes:,.0f} MB; NCCL's buffers are not included"
    )
    return lines
