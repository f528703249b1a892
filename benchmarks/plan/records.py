"""What was measured: steps of one rank, links, loaders, read from results files and sweeps."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastrot.benchmarks
from fastrot.benchmarks.plan.collectives import Link
from fastrot.benchmarks.sweep.record import CellRecord, read_cell, read_cells
from fastrot.config import Config, load_config
from fastrot.errors import BadDataError, UsageError

RESULTS = Path(fastrot.benchmarks.__file__).parent / "results"
"""Where the records of a checkout are."""


@dataclass(frozen=True)
class StepRecord:
    """A step of one rank alone.

    Attributes:
        source: file that it is from.
        hardware: of the rank: the GPU, or the processor and torch's threads on it.
        on_gpu: whether it is a GPU.
        commit: of fastrot.
        model: name, width and stem of the network.
        resolution: side of the views.
        views: of an image.
        precision: fp32, bf16 or fp16.
        step: eager, compile, fused or apex.
        cuda_graph: whether the whole step was one CUDA graph.
        batch: source images a step.
        seconds: of a step, the median over its rounds.
        memory: bytes at most; None: not measured.
        backward_share: of the seconds, from the profiler; None: not measured.
    """

    source: str
    hardware: str
    on_gpu: bool
    commit: str
    model: tuple[str, int, str]
    resolution: int
    views: int
    precision: str
    step: str
    cuda_graph: bool
    batch: int
    seconds: float
    memory: int | None = None
    backward_share: float | None = None


@dataclass(frozen=True)
class LinkRecord:
    """A link of ``fastrot bench allreduce``: between the ranks of a node, or between nodes."""

    source: str
    hardware: str
    ranks: int
    nodes: int
    backend: str
    link: Link


@dataclass(frozen=True)
class LoaderRecord:
    """A loader alone: source images/s of one machine."""

    source: str
    hardware: str
    loader: str
    resolution: int
    images_per_s: float


Record = StepRecord | LinkRecord | LoaderRecord


def read_records(paths: Sequence[Path]) -> list[Record]:
    """Read results files, files of one object, cells and folders of sweeps.

    What is none of the three kinds is passed over.

    Raises:
        UsageError: there is no such file.
        BadDataError: it is neither JSON nor lines of it.
    """
    found: list[Record] = []
    for path in paths:
        if path.is_dir():
            for cell in read_cells(path):
                found += _from_cell(cell, path.name)
            continue
        for tree in _objects(path):
            if "sweep" in tree and "measured" in tree:
                found += _from_cell(read_cell(path), path.name)
            else:
                found += _from_tree(tree, path.name)
    return found


def shipped_paths() -> list[Path]:
    """Results files of steps that come with a checkout; none in an installed wheel."""
    return sorted(RESULTS.glob("train*.jsonl"))


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--record {path}: {error.strerror or error}; check the path") from None
    try:
        try:
            trees = [json.loads(text)]
        except ValueError:
            trees = [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise BadDataError(
            f"{path}: neither a JSON object nor lines of them ({error}); --record takes what "
            "fastrot bench wrote with --json or --append, and folders of sweeps"
        ) from None
    for tree in trees:
        if not isinstance(tree, dict):
            raise BadDataError(f"{path}: holds no records, but {type(tree).__name__}")
        if "points" in tree and tree.get("bench") == "train-step":  # written with --json
            for point in tree["points"]:
                yield {**tree, "model": tree["settings"]["model"], **point}
        else:
            yield tree


def _from_tree(tree: Mapping[str, Any], source: str) -> Iterator[Record]:
    try:
        match tree.get("bench"):
            case "train-step":
                yield _train_step(tree, source)
            case "train" if tree.get("loader") == "synthetic":
                with suppress(UsageError):  # of a recipe that is not here
                    yield _train(tree, source)
            case "allreduce":
                yield LinkRecord(
                    source, _machine(tree["record"]), tree["ranks"], tree["nodes"],
                    tree["backend"], Link(1e-6 * tree["latency_us"], 1e9 * tree["gb_per_s"]),
                )  # fmt: skip
            case "loader" if tree["settings"].get("size"):
                yield LoaderRecord(
                    source, _machine(tree["record"], processor=True), str(tree["point"]),
                    int(tree["settings"]["size"]), float(tree["images_per_second"]["median"]),
                )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadDataError(
            f"{source}: a record of bench {tree.get('bench')} lacks what is needed "
            f"({type(error).__name__}: {error}); measure it again"
        ) from error


def _train_step(tree: Mapping[str, Any], source: str) -> StepRecord:
    settings = tree["settings"]
    phases: dict[str, float] = {}
    for each in tree.get("kernels") or ():
        phases[each["phase"]] = phases.get(each["phase"], 0.0) + each["ms"]
    whole = sum(phases.values())
    return StepRecord(
        source=source,
        hardware=_machine(tree["record"], threads=settings.get("threads")),
        on_gpu=bool(tree["record"].get("gpus")),
        commit=str(tree["record"].get("commit")),
        model=(tree["model"], settings["width"], settings["stem"]),
        resolution=tree["resolution"],
        views=tree["views"] // tree["batch"],
        precision=tree["precision"],
        step=tree["step"],
        cuda_graph=bool(tree.get("cuda_graph")),
        batch=tree["batch"],
        seconds=tree["views"] / tree["views_per_s"],
        memory=tree.get("peak_memory_bytes"),
        backward_share=phases.get("backward", 0.0) / whole if whole else None,
    )


def _train(tree: Mapping[str, Any], source: str) -> StepRecord:
    """A turn of the trainer without loading, whose recipe is still there under its name."""
    settings = tree["settings"]
    config = load_config(str(settings["recipe"]).removesuffix(".yaml"), list(settings["set"]))
    on_gpu = bool(tree["record"].get("gpus"))
    return _of_config(
        config,
        source=source,
        record=tree["record"],
        on_gpu=on_gpu,
        step=tree["step"],
        seconds=tree["batch"] / tree["images_per_second"]["median"],
        memory=None,
    )


def _from_cell(cell: CellRecord, source: str) -> Iterator[Record]:
    measured = cell.measured
    if measured is None:
        return
    config = Config.model_validate(cell.config)
    on_gpu = bool(cell.record.get("gpus"))
    if cell.kind == "loader" and measured.images_per_s:
        yield LoaderRecord(
            source, _machine(cell.record, processor=True), config.data.loader,
            config.data.resolution, statistics.median(measured.images_per_s),
        )  # fmt: skip
    if cell.kind != "train" or measured.ranks != 1:
        return
    rate = measured.compute_images_per_s
    if rate is None and measured.images_per_s:
        rate = statistics.median(measured.images_per_s)
    if rate:
        yield _of_config(
            config,
            source=source,
            record=cell.record,
            on_gpu=on_gpu,
            step=config.train.step,
            seconds=config.train.global_batch / rate,
            memory=measured.memory_bytes,
        )


def _of_config(
    config: Config,
    *,
    source: str,
    record: Mapping[str, Any],
    on_gpu: bool,
    step: str,
    seconds: float,
    memory: int | None,
) -> StepRecord:
    train = config.train
    precision = train.precision
    if precision == "auto":
        precision = "bf16" if on_gpu else "fp32"
    if step == "auto":
        step = "fused" if on_gpu else "eager"
    graph = step != "eager" if train.cuda_graph is None else train.cuda_graph
    return StepRecord(
        source=source,
        hardware=_machine(record, threads=train.threads or record.get("cores")),
        on_gpu=on_gpu,
        commit=str(record.get("commit")),
        model=(config.model.name, config.model.width, config.model.stem),
        resolution=config.data.resolution,
        views=4 if config.pretext.views == "all" else 1,
        precision=precision,
        step=step,
        cuda_graph=on_gpu and graph,
        batch=train.global_batch,
        seconds=seconds,
        memory=memory,
    )


def _machine(
    record: Mapping[str, Any], *, threads: int | None = None, processor: bool = False
) -> str:
    """What tells hardware apart: the GPU; or the processor, and how many threads computed."""
    gpus = record.get("gpus") or []
    if gpus and not processor:
        return str(gpus[0])
    name = str(record["processor"])
    return name if threads is None else f"{name}, {threads} thread{'s' if threads > 1 else ''}"
