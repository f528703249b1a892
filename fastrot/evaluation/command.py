"""``fastrot eval``: runs one protocol or the suite, as requested."""

from __future__ import annotations

from pathlib import Path

from fastrot.distributed.world import read_world
from fastrot.errors import UsageError
from fastrot.evaluation.dense.run import open_dense, run_dense
from fastrot.evaluation.protocol import (
    DENSE,
    TEST_TRANSFORM,
    EvalConfig,
    Mode,
    parse_mode,
    sections_read,
    unread,
)
from fastrot.evaluation.result import Result
from fastrot.evaluation.run import EvalRequest, ProtocolRun, open_data, run_protocol
from fastrot.evaluation.suite import SuiteReport, run_suite
from fastrot.evaluation.tables import EvalReport
from fastrot.runs.folder import how_killed
from fastrot.system.console import Say

SUITE = "suite"
DEFAULT_MODE = "cached-4"


def evaluate(request: EvalRequest, say: Say = lambda _: None) -> EvalReport | SuiteReport | None:
    """Run the requested protocol or the suite.

    Args:
        request: what to measure.
        say: called with each line for the user.

    Returns:
        The report; None on all ranks except the first, which only help to extract.

    Raises:
        FastrotError: with the exit code of the failure.
    """
    if killed := how_killed(request.checkpoint):
        say(f"{killed}; its newest checkpoint is measured; fastrot train --resume continues it")
    check(request, ranks=read_world().size)
    if request.protocol == SUITE:
        words = (request.mode or DEFAULT_MODE).split(",")
        return run_suite(request, [parse_mode(word.strip()) for word in words], say)
    train, test = request.train, request.test
    assert train is not None and test is not None
    config, mode = _with_mode(request)
    if (ignored := unread(request.overrides, sections_read(config.kind))) and read_world().is_main:
        say(f"{config.protocol} does not read {', '.join(ignored)}: without effect")
    if config.kind in DENSE:
        opened = open_dense(request, config, train, test)
        return _reported(run_dense(request, config, (train, test), opened, say))
    data = open_data(train, test, follow_symlinks=request.follow_symlinks)
    what = ProtocolRun(
        request=request,
        config=config,
        train=data[train],
        test=data[test],
        mode=mode,
        beside_random=bool(request.beside_random),
    )
    return _reported(run_protocol(what, say))


def _reported(measured: tuple[Result, Path] | None) -> EvalReport | None:
    return None if measured is None else EvalReport(*measured)


def check(request: EvalRequest, *, ranks: int) -> None:
    """Check what is requested, before anything is read or submitted.

    Args:
        request: what to measure.
        ranks: number of processes that measure it.

    Raises:
        UsageError: options contradict each other, or one of them breaks a rule.
    """
    if (request.train is None) != (request.test is None):
        raise UsageError("--train and --test go together; name both")
    if request.protocol == SUITE:
        if ranks > 1:
            raise UsageError(
                "eval suite runs in one process; first extract, and run the protocols that train "
                "a model, under torchrun or with --gpus: what is finished is not repeated"
            )
        return
    if request.sets:
        raise UsageError(f"--{next(iter(request.sets))} is for eval suite; use --train and --test")
    if request.train is None:
        raise UsageError("eval needs data: add --train DATA --test DATA")
    _with_mode(request)


def _with_mode(request: EvalRequest) -> tuple[EvalConfig, Mode]:
    """Return the protocol and the mode of its training rows."""
    if request.mode is not None and "," in request.mode:
        raise UsageError(f"--mode={request.mode!r}: only eval suite takes several; choose one")
    config = request.load_protocol(request.protocol)
    linear = config.kind == "linear"
    mode = parse_mode(request.mode or (DEFAULT_MODE if linear else TEST_TRANSFORM.name))
    if config.kind in DENSE and mode != TEST_TRANSFORM:
        raise UsageError(f"mode {mode.name!r} is for linear probes; omit --mode")
    if not linear and mode != TEST_TRANSFORM:
        raise UsageError(
            f"mode {mode.name!r}: {config.protocol} always uses features of the test transform; "
            "omit --mode"
        )
    return config, mode
