"""``fastrot train``: resolve the request, own the run folder, hand the parts to the loop."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastrot.config import Config, load_config
from fastrot.distributed.failures import raised_by_all
from fastrot.distributed.rank_monitor import RankMonitor
from fastrot.distributed.world import World, joined, pick_device, read_world, shorten_waits
from fastrot.errors import (
    DeviceFailedError,
    FastrotError,
    MismatchError,
    OutOfMemoryError,
    StorageError,
    UsageError,
)
from fastrot.runs.checkpoint import newest_checkpoint
from fastrot.runs.folder import RunFolder, read_run_id, read_status
from fastrot.runs.reporter import RunReporter, TrainResult
from fastrot.system.jsonl import read_json_lines
from fastrot.system.stop_request import StopRequest
from fastrot.system.yaml_config import Override
from fastrot.training.data import open_data
from fastrot.training.loop import Loop
from fastrot.training.resolve import check_resumable, resolve, share_cores_anew, with_values
from fastrot.training.step_backend import StepBackend, choose_backend
from fastrot.training.trainer import Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainRequest:
    """What the user asked for.

    Attributes:
        config: recipe and overrides.
        recipe: the recipe that was named, or None: a resumed run must fit it.
        overrides: the overrides alone: a resumed run takes the rest from its own
            ``config.yaml``.
        out: run folder.
        resume: go on with the run in ``out``; a new run if there is none yet.
    """

    config: Config
    recipe: str | None
    overrides: tuple[Override, ...]
    out: Path
    resume: bool


def train(request: TrainRequest, reporter: RunReporter) -> TrainResult:
    """Train, or go on training.

    Raises:
        FastrotError: with the exit code of the failure; ``status.json`` records it.
    """
    world = read_world()
    config = request.config
    saved_config = request.out / "config.yaml"
    if request.resume and saved_config.is_file():
        saved = load_config(str(saved_config))
        config = load_config(str(saved_config), request.overrides)
        changes = check_resumable(saved, config)
        if request.recipe is not None:
            _check_recipe(saved, request)
            reporter.message(f"going on with the settings of {saved_config}; -c is only checked")
        for line in changes:
            reporter.message(f"changed since the run began: {line}")
    elif request.resume:
        if request.recipe is None and not request.overrides:  # a slip of the name, most likely
            raise UsageError(
                f"{request.out}: no run there to go on with; check --out, or name data or a "
                "recipe (-c digits for the embedded data) to begin one"
            )
        reporter.message(f"nothing to resume in {request.out}: a new run begins")
    if config.data.train is None:
        raise UsageError(
            "no training data; add --data FILE.beton (or --data FOLDER of images), "
            "or leave out -c to train on the embedded digits"
        )
    device = pick_device(config.train.device, world)
    config = resolve(config, world, device)
    backend = choose_backend(config, world, device)
    config = with_values(config, {"train.step": backend.step})
    prepare_torch(config, device)
    deadline = config.train.deadline_seconds
    with (
        StopRequest() as stop,
        joined(world, device, deadline=deadline) as monitor,
        ExitStack() as stack,
    ):
        run = None
        if world.is_main:
            run = stack.enter_context(RunFolder(request.out, resume=request.resume))
            monitor.record = partial(_record, run)
            stack.enter_context(_recorded(run))
        stack.enter_context(monitor.explained())
        stack.enter_context(translate_oom())
        stack.enter_context(translate_device_failure())
        world.sum(torch.zeros(1))  # the folder is ours before others look into it
        return _run(config, backend, request, run, world, device, reporter, stack, stop, monitor)


def _check_recipe(saved: Config, request: TrainRequest) -> None:
    try:
        check_resumable(saved, request.config)
    except MismatchError as error:
        raise MismatchError(
            f"-c {request.recipe} is not what the run in {request.out} began with ({error}); "
            "leave out -c: the run knows its settings"
        ) from None


def prepare_torch(config: Config, device: torch.device) -> None:
    """Threads, determinism and arithmetic of this process, as the configuration has them."""
    torch.set_num_threads(config.train.threads or 1)
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS refuses
    if config.train.deterministic != torch.are_deterministic_algorithms_enabled():
        # Not always: setting it, also to what it is, loads torch's compiler for seconds.
        torch.use_deterministic_algorithms(config.train.deterministic)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not config.train.deterministic
        torch.set_float32_matmul_precision("high")


def _run(
    config: Config,
    backend: StepBackend,
    request: TrainRequest,
    run: RunFolder | None,
    world: World,
    device: torch.device,
    reporter: RunReporter,
    stack: ExitStack,
    stop: StopRequest,
    monitor: RankMonitor,
) -> TrainResult:
    out = request.out
    run_id = run.run_id if run else read_run_id(out)
    checkpoint = newest_checkpoint(out / "checkpoints", run_id)
    if checkpoint is None and read_status(out).get("step", 0):
        raise StorageError(
            f"{out}: its status tells of step {read_status(out)['step']}, but there is no "
            "checkpoint; restore the checkpoints, or start a new run with another --out"
        )
    start_step = checkpoint.step if checkpoint else 0
    _check_agreed(world, start_step)
    if checkpoint is not None:
        reporter.message(f"going on from the checkpoint of step {start_step}")
    if checkpoint is not None and checkpoint.state["world_size"] != world.size:
        reporter.message(
            f"{world.size} ranks now, {checkpoint.state['world_size']} before: the same samples in "
            "each step, sums in another order"
        )
        config = share_cores_anew(config, request.overrides, world, device)
        torch.set_num_threads(config.train.threads or 1)
    if run is not None and checkpoint is None:
        run.write_status("running", step=0, epoch=0)
    data = open_data(config, out, world, device, reporter.message)
    reporter.message(backend.describe())
    if world.size > 1:
        share = data.batch.per_pass * data.batch.accumulation
        reporter.message(f"{world.size} ranks, each with {share} images of a step")
    parts = Trainer(
        data,
        backend,
        out,
        world=world,
        device=device,
        stack=stack,
        say=reporter.message,
    )
    if checkpoint is not None:
        parts.restore(checkpoint)
    schedule = parts.schedule()
    if start_step >= schedule.total_steps:
        reporter.message(
            f"the run is complete: {start_step} of {schedule.total_steps} steps are done; to go "
            "on, set more of train.epochs or train.max_steps"
        )
    if run is not None:
        run.write_config(data.config.to_yaml())
        run.write_status("running", step=start_step, epoch=start_step / schedule.steps_per_epoch)
        reporter.begin(
            run=run,
            config=data.config,
            total_steps=schedule.total_steps,
            steps_per_epoch=schedule.steps_per_epoch,
            step=start_step,
        )
    loop = Loop(
        schedule,
        parts.step,
        parts.loader,
        world=world,
        run=run,
        report=reporter,
        snapshot=parts.snapshot,
        validate=parts.validate if parts.validates else None,
        notices=parts.bad_samples,
        alive=monitor.alive,
    )
    deadline = config.train.deadline_seconds
    monitor.expect_steps(deadline, begun=lambda: shorten_waits(world, deadline))
    loop.run(stop, start_step, resumed=checkpoint is not None)
    return TrainResult(out, max(start_step, schedule.total_steps), _last_validation(out))


def _check_agreed(world: World, start_step: int) -> None:
    """Refuse to train where ranks would begin with different checkpoints.

    Raises:
        StorageError: they do; on all ranks.
    """
    steps = world.gather(torch.tensor(start_step)).tolist()
    if len(set(steps)) > 1:
        error = StorageError(
            f"ranks find different newest checkpoints (steps {steps}, in the order of the ranks); "
            "their file systems do not show them the same: mount the run folder anew, or wait"
        )
        raise raised_by_all(error, world.rank)


def _last_validation(out: Path) -> dict[str, Any] | None:
    """From the log, so that resuming a finished run reports what it had learnt."""
    last = None
    for record in read_json_lines(out / "metrics.jsonl"):
        if record.get("kind") == "validation":
            last = record
    return last


@contextmanager
def translate_oom() -> Iterator[None]:
    """Around training: where memory did not suffice, an OutOfMemoryError says what would."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # torch has no type of its own for a CPU that is out of memory; others are RuntimeErrors.
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and (
            "can't allocate memory" not in str(error)
        ):
            raise
        raise OutOfMemoryError(
            f"out of memory: {(str(error) or type(error).__name__).splitlines()[0]}; make a pass "
            "smaller with --set train.micro_batch=N (batch norm then sees N images at a time) or "
            "lower data.resolution; checkpoints are intact"
        ) from error


@contextmanager
def translate_device_failure() -> Iterator[None]:
    """Around training: a GPU that failed becomes a DeviceFailedError, which a restart may mend."""
    try:
        yield
    except RuntimeError as error:
        line = str(error).strip().partition("\n")[0]
        if not line.startswith(("CUDA error", "cuDNN error", "CUBLAS error")):
            raise
        raise DeviceFailedError(
            f"the GPU of this rank failed ({line}); look for Xid in the kernel's log (dmesg); "
            "checkpoints are intact, the same command with --resume goes on"
        ) from error


@contextmanager
def _recorded(run: RunFolder) -> Iterator[None]:
    """Leave the outcome in ``status.json`` whatever it is."""
    try:
        yield
    except FastrotError as error:
        _record(run, error)
        raise
    except BaseException as error:
        _record(run, FastrotError(f"{type(error).__name__}: {error}"))
        raise
    else:
        run.write_status("done", **_position(run), exit_code=0, message="training is complete")


def _record(run: RunFolder, error: FastrotError) -> None:
    try:
        run.write_status(
            "preempted" if error.exit_code == 75 else "failed",
            **_position(run),
            exit_code=error.exit_code,
            message=str(error),
        )
    except FastrotError as second:  # the first failure is the one to report
        log.warning("status not written: %s", second)


def _position(run: RunFolder) -> dict[str, Any]:
    status = read_status(run.path)
    return {"step": int(status.get("step", 0)), "epoch": float(status.get("epoch", 0.0))}
