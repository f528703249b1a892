"""``fastrot plan``: gather what is known, predict each number of GPUs, state what it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastrot.benchmarks.common.harness import check_positive
from fastrot.benchmarks.plan.gradients import planned_network
from fastrot.benchmarks.plan.links import GivenLinks, fabric_of
from fastrot.benchmarks.plan.predict import PlanInputs, Prediction, phases, predict, together
from fastrot.benchmarks.plan.records import (
    LoaderRecord,
    Record,
    StepRecord,
    read_records,
    shipped_paths,
)
from fastrot.benchmarks.plan.report import PlanReport, loading_line, method_lines
from fastrot.benchmarks.plan.step_times import (
    NoRecordError,
    StepTimes,
    choose_steps,
    roofline_steps,
)
from fastrot.config import Config, load_config
from fastrot.data.open import open_dataset
from fastrot.data.sources.listing import SIZES
from fastrot.distributed.world import World
from fastrot.errors import UsageError
from fastrot.training.resolve import plan_batch

MOST_GPUS = 1024
_IMAGE_BYTES = 115_000.0
_IMAGE_BYTES_WHY = "mean of ImageNet's training images as published, not re-encoded: assumed"


@dataclass(frozen=True)
class PlanRequest:
    """What ``fastrot plan`` is asked to predict.

    Attributes:
        recipe: a YAML file or the name of a shipped recipe.
        gpus: numbers of GPUs, one row each.
        overrides: as for ``fastrot train --set``.
        records: results files and folders of sweeps; with no step in them, those of the
            checkout, too.
        hardware: part of the name of the hardware whose records are meant.
        roofline: take the bound for this GPU in place of a record.
        links: what they leave open is measured, if a record says so, or assumed.
        per_gpu: source images a step of each GPU, whatever their number.
        data: the images that will be read, for their number and bytes.
        images: how many there are, without ``data`` (default: ImageNet's training set).
        image_bytes: mean bytes of one, without ``data``.
        price: of a GPU-hour.

    Raises:
        UsageError: a value is wrong.
    """

    recipe: str
    gpus: tuple[int, ...] = (1, 2, 4, 8)
    overrides: tuple[str, ...] = ()
    records: tuple[Path, ...] = ()
    hardware: str | None = None
    roofline: str | None = None
    links: GivenLinks = field(default_factory=GivenLinks)
    per_gpu: int | None = None
    data: str | None = None
    images: int | None = None
    image_bytes: float | None = None
    price: float | None = None

    def __post_init__(self) -> None:
        check_positive(
            price=self.price,
            link=self.links.link,
            network=self.links.network,
            latency_us=self.links.latency,
            link_latency_us=self.links.link_latency,
            gpus_per_node=self.links.gpus_per_node,
            batch_per_gpu=self.per_gpu,
            images=self.images,
            image_bytes=self.image_bytes,
        )
        if wrong := [n for n in self.gpus if not 1 <= n <= MOST_GPUS]:
            raise UsageError(f"--gpus {wrong[0]} must be between 1 and {MOST_GPUS:,}")
        if self.data is not None and (self.images is not None or self.image_bytes is not None):
            raise UsageError(
                "--data says how many images there are and how large; leave out --images and "
                "--image-bytes"
            )


def plan(request: PlanRequest) -> PlanReport:
    """Predict a run for several numbers of GPUs.

    Raises:
        UsageError: the recipe is wrong, or there is no record that fits.
        BadDataError: a record or the data are damaged.
    """
    recipe, per_gpu = request.recipe, request.per_gpu
    config = load_config(recipe, list(request.overrides))
    known = read_records(request.records)
    if not any(isinstance(record, StepRecord) for record in known):
        known += read_records(shipped_paths())
    cut = phases(config)
    steps = [_steps(known, each, request) for each in cut]
    if len({each.hardware for each in steps}) > 1:
        raise NoRecordError(
            "records of the crop sizes are of several kinds of hardware: "
            f"{'; '.join(each.hardware for each in steps)}; name one with --hardware"
        )
    fabric, links = fabric_of(known, steps[0], request.links)
    loader = _loader(known, config) if request.records else None
    count, size, read = _data(request)
    inputs = [
        PlanInputs(
            config=each, per_gpu=per_gpu, images=count, image_bytes=size, steps=times,
            network=planned_network(each.model, each.data.resolution), fabric=fabric,
            overlap=times.on_gpu, loader_rate=None if loader is None else loader.images_per_s,
            price=request.price,
        )
        for each, times in zip(cut, steps, strict=True)
    ]  # fmt: skip
    rows: list[Prediction] = []
    refused: dict[int, str] = {}
    for world in dict.fromkeys(request.gpus):
        try:
            rows.append(together([predict(each, world) for each in inputs]))
        except UsageError as error:
            refused[world] = str(error)
    shared = (
        f"global batch {config.train.global_batch}"
        if per_gpu is None
        else f"{per_gpu} images a GPU, whatever their number"
    )
    return PlanReport(
        title=f"{Path(recipe).name}: {config.model.name}, {_sides(cut)} px, "
        f"{config.train.epochs:g} epochs of {count:,} images, {shared}",
        rows=rows,
        refused=refused,
        assumptions=[
            *dict.fromkeys(line for times in steps for line in times.describe()),
            *links,
            *method_lines(inputs[-1], rows),
            read,
            loading_line(loader),
            "not modelled: start, validation, checkpoints, jitter between ranks, other users of "
            "the network, and whatever sharing a node costs one GPU (clocks, memory of a CPU)",
        ],
        settings={"recipe": Path(recipe).name, "set": list(request.overrides),
                  "gpus": list(request.gpus), "price": request.price, "per_gpu": per_gpu,
                  "records": [path.name for path in request.records]},
        exit_code=0 if rows else UsageError.exit_code,
    )  # fmt: skip


def _steps(known: Sequence[Record], config: Config, request: PlanRequest) -> StepTimes:
    if request.roofline is not None:
        return roofline_steps(request.roofline, config)
    measured = [record for record in known if isinstance(record, StepRecord)]
    batches = _batches(config, request.gpus, request.per_gpu)
    return choose_steps(measured, config, hardware=request.hardware, batches=batches)


def _sides(cut: Sequence[Config]) -> str:
    return ", ".join(str(each.data.resolution) for each in cut)


def _batches(config: Config, gpus: Sequence[int], per_gpu: int | None) -> list[int]:
    """Source images of a pass of one GPU, for each number of GPUs that can share the batch."""
    if per_gpu is not None:
        return [per_gpu]
    total = config.train.global_batch
    worlds = [World(size=n) for n in gpus if total % n == 0]
    return sorted({plan_batch(config, world).per_pass for world in worlds}) or [total]


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


def _data(request: PlanRequest) -> tuple[int, float, str]:
    """Return the number of images, their mean bytes, and the line about them."""
    if request.data is not None:
        samples = open_dataset(request.data)
        size = samples.stored_bytes / len(samples)
        stored = f"stored in {Path(request.data).name}"
        return len(samples), size, f"bytes read: {size:,.0f} an image, {stored}"
    assumed = request.image_bytes is None
    size = _IMAGE_BYTES if request.image_bytes is None else request.image_bytes
    why = _IMAGE_BYTES_WHY if assumed else "given"
    count = SIZES["imagenet", "train"] if request.images is None else request.images
    return count, size, f"bytes read: {size:,.0f} an image ({why}), each once an epoch"
