"""One protocol in one command: missing features, the evaluator, a table, ``result.json``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fastrot.environment import environment_record
from fastrot.errors import UsageError
from fastrot.evaluation.journal import Journal
from fastrot.evaluation.protocol import EvalConfig, load_protocol
from fastrot.evaluation.published import lookup
from fastrot.evaluation.result import Result
from fastrot.evaluation.svm import evaluate_svm
from fastrot.extract import extract
from fastrot.identity import differing_fields
from fastrot.settings import Override
from fastrot.storage import write_atomic

Say = Callable[[str], None]

_EVALUATORS = {"svm": evaluate_svm}


@dataclass(frozen=True)
class EvalReport:
    """A result, and where it is.

    Attributes:
        result: what was measured.
        folder: with ``result.json``.
    """

    result: Result
    folder: Path
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        """What ``result.json`` holds."""
        return self.result.to_json()

    def show(self, console: Console) -> None:
        """Print measured beside published."""
        result = self.result
        table = Table(title=f"{result.protocol} ({result.label})", title_justify="left")
        for column in ("", "metric", "measured", "published"):
            table.add_column(column, justify="left" if column in ("", "metric") else "right")
        for score in result.scores:
            row = lookup(result.protocol, score.name, score.metric)
            published = "" if row is None else f"{row.value:.2f}"
            table.add_row(score.name, score.metric, f"{score.value:.2f}", published)
        console.print(table)
        lines = [f"weights: {result.weights['source']}"]
        lines += [f"not the protocol's own setting: {change}" for change in result.changed]
        lines += [f"{self.folder / 'result.json'}"]
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def run_protocol(
    protocol: str,
    checkpoint: Path,
    *,
    train: Path,
    test: Path,
    out: Path,
    overrides: Sequence[Override] = (),
    channel_order: str = "rgb",
    random_init: bool = False,
    model: str | None = None,
    progress: bool = True,
    say: Say = lambda _: None,
) -> EvalReport:
    """Run a protocol; what an earlier, killed start has finished is not done again.

    Args:
        protocol: name, or YAML file.
        checkpoint: run, checkpoint folder or weight file.
        train: training data, labelled.
        test: test data of the same classes.
        out: folder for caches and results; it is created.
        overrides: ``section.key=value`` of the protocol.
        channel_order: ``bgr`` for weights trained on BGR images.
        random_init: measure the random initialisation instead of the weights.
        model: architecture of a weight file; None: guessed.
        progress: show bars.
        say: one line to the user.

    Raises:
        FastrotError: with the exit code of the failure.
    """
    config = load_protocol(protocol, overrides)
    if config.kind not in _EVALUATORS:
        known = ", ".join(_EVALUATORS)
        raise UsageError(
            f"protocol {config.protocol!r} is of kind {config.kind!r}, and this version evaluates "
            f"{known} only; choose voc07-svm"
        )
    started = time.monotonic()
    name = f"{config.protocol}{'-random' if random_init else ''}"
    caches = {}
    for part, data in (("train", train), ("test", test)):
        say(f"features of {data}")
        caches[part] = extract(
            checkpoint,
            data,
            out / "cache" / f"{name}-{part}",
            protocol=protocol,
            random_init=random_init,
            channel_order=channel_order,
            model=model,
            overrides=overrides,
            progress=progress,
        ).cache
    extracted = time.monotonic() - started
    identity = {
        "settings": config.model_dump(mode="json"),
        "caches": {part: cache.identity for part, cache in caches.items()},
    }
    folder = out / name
    journal = Journal(folder, identity)
    scores = _EVALUATORS[config.kind](caches["train"], caches["test"], config, journal, say)
    source = "random initialisation" if random_init else str(checkpoint)
    result = Result(
        protocol=config.protocol,
        label="test transform",
        scores=scores,
        random=None,
        settings=identity["settings"],
        changed=_changed(config),
        weights={"source": source, "digest": caches["train"].identity["weights"]},
        data={"train": str(train), "test": str(test)},
        caches=identity["caches"],
        seconds={"features": extracted, "evaluation": time.monotonic() - started - extracted},
        record=environment_record(),
    )
    text = json.dumps(result.to_json(), indent=1, default=str)
    write_atomic(folder / "result.json", text.encode() + b"\n")
    return EvalReport(result, folder)


def _changed(config: EvalConfig) -> list[str]:
    """Settings that are not those of the shipped protocol of this name."""
    own = load_protocol(config.protocol).model_dump(mode="json")
    return differing_fields(own, config.model_dump(mode="json"))
