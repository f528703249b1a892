"""``fastrot eval``: from the words of the command line to one protocol or to the suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fastrot.distributed.world import read_world
from fastrot.errors import UsageError
from fastrot.evaluation.protocol import TEST_TRANSFORM, parse_mode
from fastrot.evaluation.run import EvalRequest, measure
from fastrot.evaluation.suite import SuiteReport, run_suite
from fastrot.evaluation.tables import EvalReport
from fastrot.system.console import Say
from fastrot.system.yaml_config import Override

SUITE = "suite"
DEFAULT_MODE = "cached-4"


def evaluate(
    protocol: str,
    checkpoint: Path,
    *,
    train: Path | None,
    test: Path | None,
    sets: Mapping[str, tuple[Path, Path]],
    mode: str | None = None,
    beside_random: bool | None = None,
    out: Path | None = None,
    channel_order: str = "rgb",
    model: str | None = None,
    random_init: bool = False,
    overrides: Sequence[Override] = (),
    progress: bool = True,
    say: Say = lambda _: None,
) -> EvalReport | SuiteReport | None:
    """Run what was asked for.

    Args:
        protocol: name, YAML file, or ``suite``.
        checkpoint: run, checkpoint folder or weight file.
        train: training data; a suite takes it for protocols without published numbers.
        test: test data of the same classes.
        sets: suite: training and test data of benchmarks with published numbers, by kind.
        mode: of linear probes; None: ``cached-4``. A suite takes several, with commas.
        beside_random: also measure the random initialisation; None: in a suite.
        out: folder for caches and results; None: ``RUN/eval``, or beside a weight file
            ``eval/NAME``.
        channel_order: ``bgr`` for weights trained on BGR images.
        model: architecture of a weight file; None: guessed.
        random_init: measure the random initialisation instead of the weights.
        overrides: ``section.key=value`` of the protocol, ``model.key=value`` of a weight file.
        progress: show bars.
        say: one line to the user.

    Returns:
        None on ranks other than the first, which only help to extract.

    Raises:
        FastrotError: with the exit code of the failure.
    """
    if (train is None) != (test is None):
        raise UsageError("--train and --test go together; name both")
    base = EvalRequest(
        protocol=protocol,
        checkpoint=checkpoint,
        train=train or Path(),
        test=test or Path(),
        out=out or _default_folder(checkpoint),
        overrides=tuple(overrides),
        channel_order=channel_order,
        model=model,
        random_init=random_init,
        beside_random=(protocol == SUITE) if beside_random is None else beside_random,
        progress=progress,
    )
    if protocol == SUITE:
        if read_world().size > 1:
            raise UsageError("eval suite runs in one process; extract under torchrun first")
        data = dict(sets)
        if train is not None and test is not None:
            data["any"] = (train, test)
        modes = tuple(parse_mode(text.strip()) for text in (mode or DEFAULT_MODE).split(","))
        return SuiteReport(run_suite(base, data, modes, say))
    if sets:
        raise UsageError(f"--{next(iter(sets))} is for eval suite; use --train and --test")
    if train is None:
        raise UsageError("eval needs data: add --train DATA --test DATA")
    base = _with_mode(base, mode)
    measured = measure(base, say)
    return None if measured is None else EvalReport(*measured)


def _default_folder(checkpoint: Path) -> Path:
    if checkpoint.is_dir():
        return checkpoint / "eval"
    return checkpoint.parent / "eval" / checkpoint.name.partition(".")[0]


def _with_mode(base: EvalRequest, mode: str | None) -> EvalRequest:
    if mode is not None and "," in mode:
        raise UsageError(f"--mode={mode!r}: only eval suite takes several; name one")
    linear = base.config.kind == "linear"
    default = DEFAULT_MODE if linear else TEST_TRANSFORM.name
    return replace(base, mode=parse_mode(mode or default))
