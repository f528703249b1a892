"""One protocol in one command: extract missing features, evaluate, save the measurement."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from fastrot.data.classes import ClassMatch, check_negatives, match_classes, match_single_classes
from fastrot.data.dataset import Dataset
from fastrot.data.open import open_dataset
from fastrot.distributed.world import World, joined, pick_device, read_world
from fastrot.errors import UsageError
from fastrot.evaluation.cache_folders import cache_folder, cache_name, is_earlier_cache
from fastrot.evaluation.extract import BackboneRequest, protocol_spec, share_cores
from fastrot.evaluation.identity import (
    changed_settings,
    content_digest,
    folder_name,
    measurement_key,
    relevant_settings,
    weights_record,
)
from fastrot.evaluation.knn import evaluate_knn
from fastrot.evaluation.linear.cached import evaluate_linear
from fastrot.evaluation.linear.online import OnlineSpec, evaluate_linear_online
from fastrot.evaluation.measurements import (
    INDEX,
    modified,
    now,
    results_folder,
    save_measurement,
)
from fastrot.evaluation.notes import data_notes, size_notes
from fastrot.evaluation.partial_results import PartialResults
from fastrot.evaluation.protocol import (
    TEST_TRANSFORM,
    EvalConfig,
    Mode,
    load_protocol,
    protocol_names,
)
from fastrot.evaluation.result import Result
from fastrot.evaluation.svm.lowshot import evaluate_lowshot
from fastrot.evaluation.svm.voc07 import evaluate_svm
from fastrot.features.cache import FeatureCache
from fastrot.features.extract import ExtractOptions, extract_features
from fastrot.features.spec import FeatureSpec
from fastrot.solvers.libraries import require_library
from fastrot.solvers.svm_libraries import check_solver
from fastrot.system.console import Say
from fastrot.system.fingerprint import fingerprint_digest, plain
from fastrot.system.machine import environment_record
from fastrot.weights.load import Backbone

_EVALUATORS = {
    "svm": evaluate_svm,
    "lowshot": evaluate_lowshot,
    "linear": evaluate_linear,
    "knn": evaluate_knn,
}


@dataclass(frozen=True, kw_only=True)
class EvalRequest(BackboneRequest):
    """The request of ``fastrot eval``.

    Attributes:
        protocol: name, YAML file, or ``suite``.
        train: training data; a suite uses it for protocols without published numbers.
        test: test data of the same classes.
        sets: suite: training and test data of benchmarks with published numbers, by kind.
        mode: mode of linear probes; None: ``cached-4``. A suite takes several, with commas.
        beside_random: also measure the random initialisation; None: only in a suite.
        out: folder for caches and results; None: ``RUN/eval``, or for a weight file ``eval/NAME``
            beside it.
    """

    protocol: str
    train: Path | None = None
    test: Path | None = None
    sets: Mapping[str, tuple[Path, Path]] = field(default_factory=dict)
    mode: str | None = None
    beside_random: bool | None = None
    out: Path | None = None

    @property
    def folder(self) -> Path:
        """Return the folder for caches and results, which evaluations create."""
        return results_folder(self.checkpoint) if self.out is None else self.out


class NamedData(NamedTuple):
    """An open dataset.

    Attributes:
        path: path that the user gave, including the split.
        samples: the dataset.
    """

    path: Path
    samples: Dataset


def open_data(*paths: Path, follow_symlinks: bool = False) -> dict[Path, NamedData]:
    """Open each dataset once."""
    return {
        path: NamedData(path, open_dataset(path, follow_symlinks=follow_symlinks))
        for path in dict.fromkeys(paths)
    }


@dataclass(frozen=True, kw_only=True)
class ProtocolRun:
    """One protocol of a request, with its settings and its open data.

    Attributes:
        request: the request that it belongs to.
        config: settings of the protocol, with the request's overrides.
        train: training data, labelled.
        test: test data of the same classes.
        mode: how training rows are made; only linear probes have a choice.
        beside_random: also measure the random initialisation.
        cached_layers: layers to cache, at least the protocol's; None: only these.
    """

    request: EvalRequest
    config: EvalConfig
    train: NamedData
    test: NamedData
    mode: Mode = TEST_TRANSFORM
    beside_random: bool = False
    cached_layers: tuple[str, ...] | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """Return the layers that the run's caches hold."""
        # Online probes extract the test images themselves, and only the layers that they score.
        layers = self.config.features.layers
        return layers if self.is_online else self.cached_layers or layers

    @property
    def is_online(self) -> bool:
        """Return whether a probe trains on new crops in every epoch."""
        return self.mode.crops is None

    @property
    def caches(self) -> Path:
        """Return the folder of the run's feature caches."""
        return self.request.folder / "cache"

    @cached_property
    def contents(self) -> tuple[str, str]:
        """Return the digests of the training and test images."""
        return content_digest(self.train.samples), content_digest(self.test.samples)

    @property
    def at_random(self) -> ProtocolRun:
        """Return the same run for the random initialisation."""
        return replace(self, request=replace(self.request, random_init=True), beside_random=False)


def run_protocol(what: ProtocolRun, say: Say = lambda _: None) -> tuple[Result, Path] | None:
    """Run a protocol; work that an earlier, killed command finished is not repeated.

    Several ranks extract together; then the main one evaluates, and the others leave. A probe on
    online crops is trained by all of them.

    Returns:
        The result, and the folder of its ``result.json``; None on ranks other than the main one.

    Raises:
        FastrotError: with the exit code of the failure.
    """
    config, world = what.config, read_world()
    say = say if world.is_main else _silent
    match = _check(what)
    notes = data_notes(what.train, what.test, match)
    for note in notes:
        say(note)
    began = time.monotonic()
    shared: dict[str, float] = {}
    if world.size > 1 and not what.is_online:
        _extract_on_all_ranks(what, world, say)
        shared[f"this start, features on {world.size} ranks"] = time.monotonic() - began
        if not world.is_main:
            return None
        world = World()
    if world.size > 1:
        share_cores(world)
    with joined(world, pick_device("auto", world)):
        result, name = _measure(what, match, world, say)
        seconds = dict(result.seconds)
        if what.beside_random and not what.request.random_init:
            say(f"{config.protocol}: the same for the random initialisation")
            random, _ = _measure(what.at_random, match, world, say)
            seconds |= {f"random {part}": value for part, value in random.seconds.items()}
            result = replace(result, random=random.scores, random_time=random.time)
    if not world.is_main:
        return None
    result = replace(
        result,
        seconds={**seconds, **shared, "this start": time.monotonic() - began},
        notes=[*notes, *size_notes(config.data, what.train, what.test), *_solver_notes(result)],
    )
    folder = what.request.folder
    result, count = save_measurement(folder, name, result)
    if count > 1:
        say(f"{folder / INDEX}: lists {count} measurements")
    return result, folder / name


def _solver_notes(result: Result) -> list[str]:
    """Return a note for each solver that is not fastrot's own."""
    solvers = {str(score.detail.get("solver", "fastrot")) for score in result.scores}
    return [f"solved by {name}" for name in sorted(solvers - {"fastrot"})]


def _extract_on_all_ranks(what: ProtocolRun, world: World, say: Say) -> None:
    """Extract all features that will be needed, within one process group."""
    with joined(world, pick_device("auto", world)):
        for each in [what, what.at_random] if what.beside_random else [what]:
            backbone = each.request.load_backbone()
            _extracted(each, backbone, world, say)


def _silent(_: str) -> None:
    """Say nothing."""


def _measure(what: ProtocolRun, match: ClassMatch, world: World, say: Say) -> tuple[Result, str]:
    """Return the result of one backbone, and the name of its folder; repeat no finished part."""
    config, backbone = what.config, what.request.load_backbone()
    name = config.protocol
    if what.mode != TEST_TRANSFORM:
        name += f"-{what.mode.name}"
    settings = {"protocol": name, **relevant_settings(config)}
    classes: list[int] | None = None
    if match.numbers is not None:  # earlier versions assumed equal numbers in both datasets
        settings["classes"] = classes = match.numbers.tolist()
    began = time.monotonic()
    online: OnlineSpec | None = None
    if what.is_online:
        device = pick_device("auto", world)
        online = OnlineSpec.settle(backbone, what.train.samples, what.test.samples, config, device)
        features = online.fingerprint
    else:
        train, test = _extracted(what, backbone, world, say)
        features = {"train": train.fingerprint, "test": test.fingerprint}
    extracted = time.monotonic() - began
    random = what.request.random_init
    keys = [
        measurement_key(config, what.mode.label, features, classes, content)
        for content in (what.contents, None)
    ]
    own = folder_name(config, what.mode, what.test.path, random=random, key=keys[0])
    fingerprint = {"settings": settings, "caches" if online is None else "live": features}
    # Finished parts of earlier versions are adopted only beside their features: those versions did
    # not hash the images, so parts alone may belong to other data.
    earlier = what.request.folder / f"{name}{'-random' if random else ''}"
    cache = what.caches / _cache_name(what, what.test, 0)
    places = [earlier] if is_earlier_cache(cache, features["test"]) else []
    folders = [*places, what.request.folder / own] if world.is_main else []
    parts = _finished_parts(folders, fingerprint)
    if online is None:
        scores = _EVALUATORS[config.kind](train, test, config, parts, say)
        spent = {"features": extracted}
    else:
        scores = evaluate_linear_online(
            backbone,
            what.train.samples,
            what.test.samples,
            online,
            config,
            parts,
            say,
            options=ExtractOptions(progress=what.request.progress),
            test_cache=_cache_folder(what, what.test, 0, online.test),
            world=world,
        )
        spent, extracted = {}, 0.0
    spent["evaluation"] = time.monotonic() - began - extracted
    seconds, finished = _when(parts, spent)
    shipped = load_protocol(config.protocol) if config.protocol in protocol_names() else config
    result = Result(
        protocol=config.protocol,
        label=what.mode.label,
        scores=scores,
        random=None,
        settings=config.model_dump(mode="json"),
        changed=changed_settings(shipped, config),
        weights=weights_record(backbone, random=random),
        data={"train": str(what.train.path), "test": str(what.test.path)},
        caches=features,
        seconds=seconds,
        record=environment_record(),
        key=keys[0],
        earlier_key=keys[1],
        time=finished,
    )
    return result, own


def _when(parts: PartialResults, spent: dict[str, float]) -> tuple[dict[str, float], str]:
    """Return wall times and end time of the command that finished, not of one that only reads."""
    seconds, finished = parts.get("seconds"), parts.get("finished")
    if seconds is None:
        finished = {"time": now()}
        parts.put("finished", finished)
        parts.put("seconds", spent)
        return spent, finished["time"]
    if finished is None:  # by an earlier version
        finished = {"time": modified(parts.folder / "seconds.json") if parts.folder else now()}
    return {part: float(value) for part, value in seconds.items()}, str(finished["time"])


def _finished_parts(folders: Sequence[Path], fingerprint: dict[str, Any]) -> PartialResults:
    """Return the finished parts with this fingerprint: the first folder with them, or the last."""
    if not folders:
        return PartialResults(None, fingerprint)
    name = f"parts-{fingerprint_digest(plain(fingerprint))[:8]}"
    places = [folder / name for folder in folders]
    there = [place for place in places if (place / "identity.json").exists()]
    return PartialResults([*there, places[-1]][0], fingerprint)


def _check(what: ProtocolRun) -> ClassMatch:
    """Match the classes; refuse what cannot be measured before anything is extracted."""
    config, train, test = what.config, what.train.samples, what.test.samples
    if config.kind in ("svm", "lowshot"):
        check_solver(config.svm.solver, config.svm.positive_weight)
    elif config.kind == "linear":
        require_library(config.linear.solver, "linear.solver")
    if config.kind in ("linear", "knn"):
        match = match_single_classes(train, test, (len(train), len(test)))
    else:
        match = match_classes(train, test)
        for part, names in ((what.train, train.class_names), (what.test, test.class_names)):
            if part.samples.labels.ndim == 2:
                check_negatives(part.samples.labels, part.path, names)
    if config.kind == "knn" and max(config.knn.k) > len(train):
        raise UsageError(
            f"knn.k={max(config.knn.k)} is more than the {len(train):,} images of "
            f"{what.train.path}; choose up to {len(train)}: "
            f"--set 'knn.k=[{min(config.knn.k[0], len(train))}]'"
        )
    return match


def _extracted(
    what: ProtocolRun, backbone: Backbone, world: World, say: Say
) -> tuple[FeatureCache, FeatureCache]:
    """Return the features of the training and test data, extracting missing ones."""
    share_cores(world)
    device = pick_device("auto", world)
    options = ExtractOptions(progress=what.request.progress)
    caches = []
    for data, crops in ((what.train, what.mode.crops or 0), (what.test, 0)):
        say(f"{what.config.protocol}: features of {data.path}")
        spec = protocol_spec(
            what.config, backbone, data.samples, device, layers=what.layers, crops=crops
        )
        folder = _cache_folder(what, data, crops, spec)
        caches.append(extract_features(backbone, data.samples, folder, spec, options, world=world))
    return caches[0], caches[1]


def _cache_folder(what: ProtocolRun, data: NamedData, crops: int, spec: FeatureSpec) -> Path:
    content = what.contents[1 if data is what.test else 0]
    return cache_folder(what.caches, _cache_name(what, data, crops), spec.fingerprint, content)


def _cache_name(what: ProtocolRun, data: NamedData, crops: int) -> str:
    features, random = what.config.features, what.request.random_init
    return cache_name(data.path, features, what.layers, crops, random=random)
