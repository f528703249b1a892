"""One protocol in one command: missing features, the evaluator, ``result.json``."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

from fastrot.data.labels import check_same_classes, count_classes
from fastrot.data.open import open_dataset
from fastrot.data.sources.find import size_note
from fastrot.distributed.world import World, joined, pick_device, read_world
from fastrot.errors import UsageError
from fastrot.evaluation.extract import architecture, divide_overrides, extract_for
from fastrot.evaluation.knn import evaluate_knn
from fastrot.evaluation.linear.cached import evaluate_linear
from fastrot.evaluation.linear.online import evaluate_linear_live, live_identity
from fastrot.evaluation.partial_results import Journal
from fastrot.evaluation.protocol import (
    TEST_TRANSFORM,
    EvalConfig,
    Mode,
    load_protocol,
    protocol_names,
)
from fastrot.evaluation.result import Result, Score
from fastrot.evaluation.svm.lowshot import evaluate_lowshot
from fastrot.evaluation.svm.voc07 import evaluate_svm
from fastrot.features.cache import FeatureCache
from fastrot.system.console import Say
from fastrot.system.files import write_atomic
from fastrot.system.fingerprint import differing_fields, fingerprint_digest, plain
from fastrot.system.machine import environment_record
from fastrot.system.yaml_config import Override
from fastrot.weights.load import Backbone, load_backbone

_EVALUATORS = {
    "svm": evaluate_svm,
    "lowshot": evaluate_lowshot,
    "linear": evaluate_linear,
    "knn": evaluate_knn,
}
_SPLITS = {
    "voc07": ("trainval", "test"),
    "imagenet": ("train", "val"),
    "places205": ("train", "val"),
    "inat18": ("train", "val"),
}


@dataclass(frozen=True)
class EvalRequest:
    """What is to be measured.

    Attributes:
        protocol: name, or YAML file.
        checkpoint: run, checkpoint folder or weight file.
        train: training data, labelled.
        test: test data of the same classes.
        out: folder for caches and results; it is created.
        mode: how training rows are made; only linear probes have a choice.
        overrides: ``section.key=value`` of the protocol, ``model.key=value`` of a weight file.
        channel_order: ``bgr`` for weights trained on BGR images.
        model: architecture of a weight file; None: guessed.
        random_init: measure the random initialisation instead of the weights.
        beside_random: measure the random initialisation, too.
        cached_layers: what a cache holds, at least the protocol's layers; None: just these.
        progress: show bars.
    """

    protocol: str
    checkpoint: Path
    train: Path
    test: Path
    out: Path
    mode: Mode = TEST_TRANSFORM
    overrides: Sequence[Override] = ()
    channel_order: str = "rgb"
    model: str | None = None
    random_init: bool = False
    beside_random: bool = False
    cached_layers: tuple[str, ...] | None = None
    progress: bool = True

    @property
    def config(self) -> EvalConfig:
        """The resolved protocol.

        Raises:
            UsageError: an unknown protocol, or a setting that breaks a rule.
        """
        return load_protocol(self.protocol, divide_overrides(self.overrides)[1])


def measure(what: EvalRequest, say: Say = lambda _: None) -> tuple[Result, Path] | None:
    """Run a protocol; what an earlier, killed start has finished is not done again.

    Under torchrun all ranks extract; then the first one evaluates, and the others leave.

    Returns:
        The result, and the folder that has it as ``result.json``; None on other ranks.

    Raises:
        FastrotError: with the exit code of the failure.
    """
    config, mode = what.config, what.mode
    if config.kind != "linear" and mode != TEST_TRANSFORM:
        raise UsageError(
            f"mode {mode.name!r}: {config.protocol} has no choice, its features are of the test "
            "transform; leave --mode out"
        )
    if mode.crops is None and read_world().size > 1:
        raise UsageError("mode 'augmented' trains on one process; leave torchrun out")
    _check(what, config)
    began, ranks = time.monotonic(), read_world().size
    shared: dict[str, float] = {}
    if ranks > 1:
        _extract_on_all_ranks(what, config, say if read_world().is_main else _silent)
        shared[f"this start, features on {ranks} ranks"] = time.monotonic() - began
        if not read_world().is_main:
            return None
    backbone = _backbone(what)
    scores, folder, settings, seconds = _run(what, config, backbone, say)
    random = None
    if what.beside_random and not what.random_init:
        say(f"{config.protocol}: the same of the random initialisation")
        other = replace(what, random_init=True)
        random, _, _, more = _run(other, config, _backbone(other), say)
        seconds |= {f"random {part}": value for part, value in more.items()}
    shipped = config.protocol in protocol_names()
    own = load_protocol(config.protocol) if shipped else config
    result = Result(
        protocol=config.protocol,
        label=mode.label,
        scores=scores,
        random=random,
        settings=config.model_dump(mode="json"),
        changed=differing_fields(_relevant(own), _relevant(config)),
        weights={"source": backbone.source, "digest": backbone.digest},
        data={"train": str(what.train), "test": str(what.test)},
        caches=settings,
        seconds={**seconds, **shared, "this start": time.monotonic() - began},
        record=environment_record(),
        notes=_notes(what, config),
    )
    text = json.dumps(result.to_json(), indent=1, default=str)
    write_atomic(folder / "result.json", text.encode() + b"\n")
    return result, folder


def _extract_on_all_ranks(what: EvalRequest, config: EvalConfig, say: Say) -> None:
    """All features that will be needed, within one process group."""
    world = read_world()
    steps = [what, replace(what, random_init=True)] if what.beside_random else [what]
    with joined(world, pick_device("auto", world)):
        for step in steps:
            backbone = _backbone(step)
            for data, crops in ((what.train, what.mode.crops or 0), (what.test, 0)):
                _extracted(step, config, backbone, data, crops, world, say)


def _silent(_: str) -> None:
    """Say nothing."""


def _run(
    what: EvalRequest, config: EvalConfig, backbone: Backbone, say: Say
) -> tuple[list[Score], Path, dict[str, Any], dict[str, float]]:
    """Scores, their folder, what the features depend on, and wall times."""
    name = config.protocol
    if what.mode != TEST_TRANSFORM:
        name += f"-{what.mode.name}"
    folder = what.out / f"{name}{'-random' if what.random_init else ''}"
    settings = {"protocol": name, **_relevant(config)}
    began = time.monotonic()
    if what.mode.crops is None:
        train, test = open_dataset(what.train), open_dataset(what.test)
        depends = live_identity(backbone, train, test, config)
        journal = _journal(folder, {"settings": settings, "live": depends})
        scores = evaluate_linear_live(
            backbone,
            train,
            test,
            config,
            journal,
            say,
            test_cache=_cache_folder(what, config, what.test, 0),
            progress=what.progress,
        )
        return scores, folder, depends, _seconds(journal, evaluation=time.monotonic() - began)
    caches = {
        part: _extracted(what, config, backbone, data, crops, World(), say)
        for part, data, crops in (("train", what.train, what.mode.crops), ("test", what.test, 0))
    }
    extracted = time.monotonic() - began
    depends = {part: cache.identity for part, cache in caches.items()}
    journal = _journal(folder, {"settings": settings, "caches": depends})
    scores = _EVALUATORS[config.kind](caches["train"], caches["test"], config, journal, say)
    spent = time.monotonic() - began - extracted
    return scores, folder, depends, _seconds(journal, features=extracted, evaluation=spent)


def _seconds(journal: Journal, **parts: float) -> dict[str, float]:
    """Of the start that finished the evaluation, not of one that only reads what it found."""
    saved = journal.get("seconds")
    if saved is None:
        journal.put("seconds", parts)
        return parts
    return {part: float(seconds) for part, seconds in saved.items()}


def _journal(folder: Path, identity: dict[str, Any]) -> Journal:
    """Finished parts of what is defined so; another definition has a folder of its own."""
    return Journal(folder / f"parts-{fingerprint_digest(plain(identity))[:8]}", identity)


def _check(what: EvalRequest, config: EvalConfig) -> None:
    """Refuse what cannot be measured before anything is extracted."""
    train, test = open_dataset(what.train), open_dataset(what.test)
    if config.kind in ("linear", "knn"):
        count_classes(train, test, (len(train), len(test)))
    else:
        check_same_classes(train, test)
    if config.kind == "knn" and max(config.knn.k) > len(train):
        raise UsageError(
            f"knn.k={max(config.knn.k)} is more than the {len(train):,} images of {what.train}; "
            f"set knn.k to values up to {len(train)}"
        )


def _extracted(
    what: EvalRequest,
    config: EvalConfig,
    backbone: Backbone,
    data: Path,
    crops: int,
    world: World,
    say: Say,
) -> FeatureCache:
    say(f"{config.protocol}: features of {data}")
    return extract_for(
        config,
        backbone,
        data,
        _cache_folder(what, config, data, crops),
        layers=_cached_layers(what, config),
        crops=crops,
        progress=what.progress and world.is_main,
        world=world,
    )


def _cached_layers(what: EvalRequest, config: EvalConfig) -> tuple[str, ...]:
    # Live probes extract the test images themselves, and just the layers that they score.
    live = what.mode.crops is None
    return config.features.layers if live else what.cached_layers or config.features.layers


def _cache_folder(what: EvalRequest, config: EvalConfig, data: Path, crops: int) -> Path:
    """Named so that protocols that need the same features share them."""
    features = config.features
    place = xxhash.xxh32_hexdigest(os.path.abspath(data).encode())[:4]
    parts = [
        data.name.removesuffix(".beton").replace(":", "-"),
        place,
        f"{features.transform}{features.resolution or ''}"
        + (f"of{features.resize}" if features.resize else ""),
        *([f"{crops}crops"] if crops else []),
        "+".join(_cached_layers(what, config)),
        *(["random"] if what.random_init else []),
    ]
    return what.out / "cache" / "-".join(parts)


def _backbone(what: EvalRequest) -> Backbone:
    return load_backbone(
        what.checkpoint,
        model=architecture(what.model, divide_overrides(what.overrides)[0]),
        channel_order=what.channel_order,
        random_init=what.random_init,
    )


def _relevant(config: EvalConfig) -> dict[str, Any]:
    """The settings that its evaluator reads."""
    sections = {"features", config.kind, *(["svm"] if config.kind == "lowshot" else [])}
    settings = config.model_dump(mode="json")
    return {name: value for name, value in settings.items() if name in sections}


def _notes(what: EvalRequest, config: EvalConfig) -> list[str]:
    notes = []
    for data, split in zip((what.train, what.test), _SPLITS.get(config.data, ()), strict=False):
        note = size_note(config.data, split, len(open_dataset(data)))
        notes += [] if note is None else [f"{data}: {note}"]
    return notes
