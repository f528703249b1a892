"""Records of single-rank steps, links and overlaps, from results files and sweeps."""

from __future__ import annotations

import json
import math
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
"""Folder with the records of a checkout."""


@dataclass(frozen=True)
class StepRecord:
    """A step of one rank alone."""

    source: str  # name of its file
    hardware: str  # the GPU, or the processor and the number of torch threads
    on_gpu: bool
    commit: str
    model: tuple[str, int, str]  # name, width and stem
    resolution: int  # side of the views
    views: int  # per image
    precision: str  # fp32, bf16 or fp16
    step: str  # eager, compile, fused or apex
    batch: int  # source images
    seconds: float  # median over the rounds
    memory: int | None = None  # peak in bytes; None: not measured


@dataclass(frozen=True)
class LinkRecord:
    """A link measured by ``fastrot bench allreduce``, between ranks of a node or between nodes."""

    source: str
    hardware: str
    ranks: int
    nodes: int
    backend: str
    link: Link


@dataclass(frozen=True)
class OverlapRecord:
    """The hidden fraction of the all-reduce, in [0, 1], by ``fastrot bench plan-check``."""

    source: str
    hardware: str
    overlap: float


Record = StepRecord | LinkRecord | OverlapRecord


def read_records(paths: Sequence[Path]) -> list[Record]:
    """Read results files, files of one object, cells and folders of sweeps.

    Records of other kinds are skipped.

    Raises:
        UsageError: a file does not exist.
        BadDataError: a file holds neither JSON nor lines of JSON.
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
    """Return the results files of steps and overlaps in a checkout; a wheel has none."""
    return sorted([*RESULTS.glob("train*.jsonl"), *RESULTS.glob("plan*.jsonl")])


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        try:
            trees = [json.loads(text)]
        except ValueError:
            trees = [json.loads(line) for line in text.splitlines() if line.strip()]
    except OSError as error:
        raise UsageError(f"--record {path}: {error.strerror or error}; check the path") from None
    except (ValueError, RecursionError) as error:
        raise BadDataError(
            f"{path}: neither a JSON object nor lines of them ({error}); --record takes files that "
            "fastrot bench wrote with --json or --append, and folders of sweeps"
        ) from None
    if not trees:
        raise BadDataError(f"{path}: is empty; measure it again")
    for tree in trees:
        if not isinstance(tree, dict) or not {"bench", "sweep"} & tree.keys():
            raise BadDataError(f"{path}: holds an object that is no record of fastrot bench")
        if "points" in tree and tree.get("bench") in ("train-step", "plan-check"):  # from --json
            points, settings = tree["points"], tree.get("settings")
            if not (
                isinstance(settings, dict)
                and isinstance(points, list)
                and all(isinstance(point, dict) for point in points)
            ):
                raise BadDataError(f"{path}: settings and points must be objects; measure it again")
            for point in points:
                yield {**tree, "model": settings.get("model"), **point}
        else:
            yield tree


def _from_tree(tree: Mapping[str, Any], source: str) -> list[Record]:
    """Return the records in a JSON object; an empty list if it is from another benchmark."""
    try:
        found = list(_parsed(tree, source))
        for record in found:
            _check(record)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise BadDataError(
            f"{source}: a record of bench {tree.get('bench')} lacks a field or holds a wrong value "
            f"({error if isinstance(error, ValueError) else type(error).__name__ + f': {error}'}); "
            "measure it again"
        ) from error
    return found


def _check(record: Record) -> None:
    """Raise ValueError if a value is impossible."""
    match record:
        case StepRecord():
            _within("seconds per step", record.seconds, above=0)
            for name in ("resolution", "views", "batch"):
                _within(name, getattr(record, name), least=1)
            if record.memory is not None:
                _within("memory", record.memory, least=0)
        case LinkRecord():
            _within("ranks", record.ranks, least=1)
            _within("nodes", record.nodes, least=1)
            _within("latency", record.link.latency, least=0)
            _within("bandwidth", record.link.bandwidth, above=0)
        case OverlapRecord():
            _within("overlap", record.overlap, least=0, most=1)


def _within(
    name: str, value: float, *, least: float = 0, above: float = -1, most: float = math.inf
) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {value!r}, not a number")
    if not (least <= value <= most and above < value < math.inf):
        raise ValueError(f"{name} is {value}")


def _parsed(tree: Mapping[str, Any], source: str) -> Iterator[Record]:
    match tree.get("bench"):
        case "train-step":
            yield _train_step(tree, source)
        case "train" if tree.get("loader") == "synthetic":
            with suppress(UsageError):  # its recipe is not here
                yield _train(tree, source)
        case "allreduce":
            yield LinkRecord(
                source, _machine(tree["record"]), tree["ranks"], tree["nodes"],
                tree["backend"], Link(1e-6 * tree["latency_us"], 1e9 * tree["gb_per_s"]),
            )  # fmt: skip
        case "plan-check":
            yield OverlapRecord(source, _machine(tree["record"]), _overlap(tree))


def _train_step(tree: Mapping[str, Any], source: str) -> StepRecord:
    settings = tree["settings"]
    return _step(
        source, tree["record"], settings.get("threads"),
        model=(tree["model"], settings["width"], settings["stem"]),
        resolution=tree["resolution"], views=tree["views"] // tree["batch"],
        precision=tree["precision"], step=tree["step"], batch=tree["batch"],
        seconds=tree["views"] / tree["views_per_s"], memory=tree.get("peak_memory_bytes"),
    )  # fmt: skip


def _train(tree: Mapping[str, Any], source: str) -> StepRecord:
    """Return the trainer's step without loading, if a recipe of this name still exists."""
    settings = tree["settings"]
    config = load_config(str(settings["recipe"]).removesuffix(".yaml"), list(settings["set"]))
    rate = tree["images_per_second"]["median"]
    return _of_config(config, source, tree["record"], rate=rate, step=tree["step"])


def _overlap(tree: Mapping[str, Any]) -> float:
    """Return the measured overlap; without one, derive it, as the prediction then assumed none."""
    if "overlap" in tree:
        return float(tree["overlap"])
    alone, predicted, measured = (
        float(tree[f"{name}_ms"]["median"]) for name in ("alone", "predicted", "measured")
    )
    return min(max((predicted - measured) / (predicted - alone), 0.0), 1.0)


def _from_cell(cell: CellRecord, source: str) -> Iterator[Record]:
    """Yield the step of a trainer of one rank, without loading if that was measured."""
    measured = cell.measured
    if measured is None or cell.kind != "train" or measured.ranks != 1:
        return
    rate = measured.compute_images_per_s or statistics.median(measured.images_per_s or [0.0])
    if rate:
        config = Config.model_validate(cell.config)
        yield _of_config(config, source, cell.record, rate=rate, memory=measured.memory_bytes)


def _of_config(
    config: Config,
    source: str,
    record: Mapping[str, Any],
    *,
    rate: float,
    step: str | None = None,
    memory: int | None = None,
) -> StepRecord:
    """Return the step of a run at ``rate`` source images/s; ``step``: what auto resolved to."""
    train, model, on_gpu = config.train, config.model, bool(record.get("gpus"))
    automatic = ("bf16", "fused") if on_gpu else ("fp32", "eager")
    precision, backend = (
        value if each == "auto" else each
        for each, value in zip((train.precision, step or train.step), automatic, strict=True)
    )
    return _step(
        source, record, train.threads or record.get("cores"),
        model=(model.name, model.width, model.stem), resolution=config.data.resolution,
        views=4 if config.pretext.views == "all" else 1, precision=precision, step=backend,
        batch=train.global_batch, seconds=train.global_batch / rate, memory=memory,
    )  # fmt: skip


def _step(
    source: str, record: Mapping[str, Any], threads: int | None, **measured: Any
) -> StepRecord:
    return StepRecord(
        source=source, hardware=_machine(record, threads=threads),
        on_gpu=bool(record.get("gpus")), commit=str(record.get("commit")), **measured,
    )  # fmt: skip


def _machine(record: Mapping[str, Any], *, threads: int | None = None) -> str:
    """Return a name that identifies hardware: the GPU, or the processor and its threads."""
    if gpus := record.get("gpus"):
        return gpus if isinstance(gpus, str) else str(gpus[0])
    name = str(record["processor"])
    return name if threads is None else f"{name}, {threads} thread{'s' if threads > 1 else ''}"
