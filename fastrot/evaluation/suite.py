"""All protocols that the given data allows, in the order of the published page.

Features of the same images and transform are extracted once and shared by all protocols; those
that train a whole model take longest and come last. A protocol whose data does not fit (a class
with too few images) is left out and reported; any other failure ends the suite, and the same
command resumes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from rich.console import Console

from fastrot.errors import StorageError, TooFewImagesError, UsageError
from fastrot.evaluation.dense.run import LABEL, open_dense, run_dense
from fastrot.evaluation.linear.training import mode_gap
from fastrot.evaluation.protocol import Mode
from fastrot.evaluation.result import Result
from fastrot.evaluation.run import EvalRequest, ProtocolRun, open_data, run_protocol
from fastrot.evaluation.svm.draws import possible_shots
from fastrot.evaluation.tables import (
    show_rows,
    shown_rows,
    suite_csv,
    suite_markdown,
    suite_notes,
    suite_rows,
)
from fastrot.system.console import Say, print_lines
from fastrot.system.files import make_folder, write_atomic
from fastrot.system.fingerprint import fingerprint_digest

DENSE_PROTOCOLS: Mapping[str, str] = {
    "voc0712-det": "voc0712",
    "coco-det": "coco",
    "voc12aug-seg": "voc12aug",
    "cityscapes-seg": "cityscapes",
}
"""Those that train a whole model on annotated images."""

PROTOCOLS: Mapping[str, str] = {
    "voc07-svm": "voc07",
    "voc07-lowshot": "voc07",
    "in1k-linear-mhead": "imagenet",
    "in1k-linear-avgpool": "imagenet",
    "places205-linear": "places205",
    "inat18-linear": "inat18",
    "in1k-knn": "imagenet",
    "linear": "any",
    "knn": "any",
    **DENSE_PROTOCOLS,
}
"""The kind of data of each protocol, in the order of the published page."""


class _Step(NamedTuple):
    """One protocol in one mode; ``run`` takes a ``Say`` and returns the result and its folder."""

    protocol: str
    label: str
    run: Callable[[Say], tuple[Result, Path] | None]


@dataclass(frozen=True)
class SuiteReport:
    """The results of a suite, as ``fastrot eval suite`` prints them.

    Attributes:
        results: one per protocol and mode, in the order of the published page.
        left_out: why a protocol was not run, by its name.
        gaps: augmented minus cached in points, by protocol, then ``layer metric``.
        folder: folder with ``suite.json``, ``suite.md`` and ``suite.csv`` of the latest suite; its
            folders ``suite-KEY`` hold those of every suite.
    """

    results: Sequence[Result]
    left_out: Mapping[str, str]
    gaps: Mapping[str, Mapping[str, float]]
    folder: Path
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``suite.json``."""
        return {
            "rows": [row._asdict() for row in suite_rows(self.results)],
            "gaps": {name: dict(gap) for name, gap in self.gaps.items()},
            "left_out": dict(self.left_out),
            "results": [result.to_json() for result in self.results],
        }

    def show(self, console: Console) -> None:
        """Print measured beside published numbers, then what to know before comparing."""
        show_rows(console, shown_rows(suite_rows(self.results)))
        lines = [
            f"{protocol}, augmented minus cached: {name} {value:+.2f} points"
            for protocol, gap in self.gaps.items()
            for name, value in gap.items()
        ]
        lines += [f"not run: {name}: {why}" for name, why in self.left_out.items()]
        lines += suite_notes(self.results)
        lines += [f"{self.folder / name}" for name in ("suite.json", "suite.md", "suite.csv")]
        print_lines(console, lines)


def run_suite(
    request: EvalRequest, modes: Sequence[Mode], say: Say = lambda _: None
) -> SuiteReport:
    """Run every protocol whose data is given.

    Args:
        request: its ``sets`` by kind, values of ``PROTOCOLS``, and its training and test data for
            protocols without published numbers; its overrides apply to every protocol.
        modes: modes of the linear probes; each is run, and the gap between them is reported.
        say: called with each line for the user.

    Raises:
        UsageError: there is no data, or its kind is unknown.
        TooFewImagesError: no protocol could be run.
        FastrotError: with the exit code of the failure; the same command resumes.
    """
    data = dict(request.sets)
    if request.train is not None and request.test is not None:
        data["any"] = (request.train, request.test)
    kinds = list(dict.fromkeys(PROTOCOLS.values()))
    if unknown := [kind for kind in data if kind not in kinds]:
        raise UsageError(f"unknown kind of data {unknown[0]!r}; choose {', '.join(kinds)}")
    if not data:
        raise UsageError(
            "eval suite needs data: --voc07 TRAIN TEST, --imagenet, --places205, --inat18, "
            "--voc0712, --coco, --voc12aug, --cityscapes, or --train DATA --test DATA for data "
            "without published numbers"
        )
    results: list[Result] = []
    left_out: dict[str, str] = {}
    gaps: dict[str, dict[str, float]] = {}
    steps = [
        _Step(run.config.protocol, run.mode.label, partial(run_protocol, run))
        for run in _runs(request, data, modes, left_out)
    ]
    steps += _dense_steps(request, data)
    for number, step in enumerate(steps, 1):
        protocol, name = step.protocol, f"{step.protocol} ({step.label})"
        say(f"[{number}/{len(steps)}] {name}")
        try:
            measured = step.run(say)
        except TooFewImagesError as error:
            left_out[name] = str(error)
            say(f"{name}: left out: {error}")
            continue
        assert measured is not None, "a suite runs in one process"
        result = measured[0]
        results.append(result)
        gap = _gap(result, results)
        gaps |= {protocol: gap} if gap else {}
    if not results:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise TooFewImagesError(f"no protocol can be run on this data: {reasons}")
    suite = SuiteReport(results, left_out, gaps, request.folder)
    _save(suite)
    return suite


def _save(suite: SuiteReport) -> None:
    """Write the tables into a folder for these measurements, and as those of the latest suite."""
    text = json.dumps(suite.to_json(), indent=1, default=str)
    tables = {
        "suite.json": text.encode() + b"\n",
        "suite.md": suite_markdown(suite.results, suite.left_out, suite.gaps).encode(),
        "suite.csv": suite_csv(suite.results).encode(),
    }
    folder = suite.folder
    key = fingerprint_digest({"measurements": [result.key for result in suite.results]})
    try:
        latest = {name: (folder / name).read_bytes() for name in tables if (folder / name).exists()}
        kept = [file.read_bytes() for file in folder.glob("suite-*/suite.json")]
        if latest.get("suite.json") and latest["suite.json"] not in kept:  # of an earlier version
            digest = xxhash.xxh32_hexdigest(latest["suite.json"])
            _write(folder / f"suite-earlier-{digest}", latest)
        _write(folder / f"suite-{key[:8]}", tables)
        _write(folder, tables)
    except OSError as error:
        raise StorageError(
            f"{folder}: the suite's tables cannot be written ({error.strerror or error})"
        ) from None


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    make_folder(folder)
    for name, data in files.items():
        write_atomic(folder / name, data)


def _runs(
    request: EvalRequest,
    data: Mapping[str, tuple[Path, Path]],
    modes: Sequence[Mode],
    left_out: dict[str, str],
) -> list[ProtocolRun]:
    """Return the protocols that the data allows, opening each dataset once for all of them."""
    features = {kind: pair for kind, pair in data.items() if kind not in DENSE_PROTOCOLS.values()}
    paths = (path for pair in features.values() for path in pair)
    opened = open_data(*paths, follow_symlinks=request.follow_symlinks)
    runs = []
    for name, kind in PROTOCOLS.items():
        if kind not in features:
            continue
        train, test = (opened[path] for path in features[kind])
        config = request.load_protocol(name)
        if config.kind == "lowshot" and config.lowshot.targets is None:
            labels, shots = train.samples.labels, config.lowshot.shots
            there = possible_shots(labels.astype(np.int8), shots) if labels.ndim == 2 else shots
            if not there:
                left_out[name] = f"{train.path}: a class has fewer than {min(shots)} images"
                continue
            fitting = config.lowshot.model_copy(update={"shots": there})
            config = config.model_copy(update={"lowshot": fitting})
        run = ProtocolRun(
            request=request,
            config=config,
            train=train,
            test=test,
            beside_random=request.beside_random is not False,
        )
        if config.kind == "linear":
            runs += [replace(run, mode=mode) for mode in modes]
        else:
            runs.append(run)
    return _sharing(runs)


def _dense_steps(request: EvalRequest, data: Mapping[str, tuple[Path, Path]]) -> Iterator[_Step]:
    """Yield the protocols that train a model; all of their data has been opened by then."""
    request = replace(request, beside_random=request.beside_random is not False)
    given = {name: data[kind] for name, kind in DENSE_PROTOCOLS.items() if kind in data}
    configs = {name: request.load_protocol(name) for name in given}
    opened = {name: open_dense(request, configs[name], *pair) for name, pair in given.items()}
    for name, pair in given.items():
        run = partial(run_dense, request, configs[name], pair, opened[name])
        yield _Step(name, LABEL, run)


def _sharing(runs: Sequence[ProtocolRun]) -> list[ProtocolRun]:
    """Let runs that see the same images through the same transform share a cache of all layers."""
    needed: dict[tuple[Any, ...], set[str]] = {}
    for run in runs:
        for key in _sights(run):
            needed.setdefault(key, set()).update(run.config.features.layers)
    stages = ("stem", "layer1", "layer2", "layer3", "layer4", "pool")

    def layers(run: ProtocolRun) -> tuple[str, ...]:
        # Those of the training images' cache, which is by far the larger one.
        wanted = needed[_sights(run)[0]]
        return tuple(name for name in stages if name in wanted) or run.config.features.layers

    return [replace(run, cached_layers=layers(run)) for run in runs]


def _sights(run: ProtocolRun) -> list[tuple[Any, ...]]:
    """Return what a run's caches depend on besides the weights, training data first."""
    features, crops = run.config.features, run.mode.crops
    how = (features.transform, features.resolution, features.resize, features.precision)
    return [(run.train.path, crops, *how), (run.test.path, 0, *how)]


def _gap(result: Result, before: Sequence[Result]) -> dict[str, float]:
    """Return augmented minus cached in points, or nothing unless both have been measured."""
    same = [r for r in before if r.protocol == result.protocol and r is not result]
    pair = {r.label == "augmented": r for r in [*same, result]}
    if len(pair) < 2:
        return {}
    return {
        name: round(value, 4)
        for name, value in mode_gap(pair[True].scores, pair[False].scores).items()
    }
