"""``fastrot train``: resolve the request, lock the run folder, build the trainer, run the loop."""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastrot.distributed.error_reporting import raised_by_all
from fastrot.distributed.rank_monitor import RankMonitor
from fastrot.distributed.world import World, joined, shorten_waits
from fastrot.errors import StorageError
from fastrot.runs.checkpoint import Checkpoint, newest_checkpoint
from fastrot.runs.folder import RunFolder, read_run_id, read_status
from fastrot.runs.reporter import RunReporter, TrainResult
from fastrot.system.console import Say
from fastrot.system.jsonl import read_json_lines
from fastrot.system.stop_request import StopRequest
from fastrot.training.data import open_data
from fastrot.training.failures import (
    record_failure,
    recorded,
    translate_device_failure,
    translate_oom,
)
from fastrot.training.loop import Loop
from fastrot.training.request import TrainRequest, requested_config
from fastrot.training.resolve import SHARED_CORES, ResolvedRun, choose_platform, resolve
from fastrot.training.schedule import Schedule
from fastrot.training.trainer import Trainer


def train(request: TrainRequest, reporter: RunReporter) -> TrainResult:
    """Begin a training run, or resume it, and return its result.

    Raises:
        FastrotError: training failed; ``status.json`` records the exit code.
    """
    out, say = request.out, reporter.message
    notes: list[str] = []  # printed once everything fits together: a failure prints one line only
    config = requested_config(request, notes.append)
    deadline = config.train.deadline_seconds
    platform = choose_platform(config)
    world, device = platform.world, platform.device
    with (
        StopRequest() as stop,
        joined(world, device, deadline=deadline) as monitor,
        ExitStack() as stack,
    ):
        folder = _own_folder(request, world, monitor, stack)
        if folder is not None and folder.killed:
            say(folder.killed)
        checkpoint = _find_checkpoint(out, folder, world, say)
        anew = _shared_anew(request, checkpoint, world, say)
        if folder is not None and checkpoint is None:
            folder.write_status("running", step=0, epoch=0)
        data = open_data(config, out, world, device, notes.append)
        run = resolve(config, platform, data, notes.append, anew=anew)
        for note in notes:
            say(note)
        prepare_torch(run)
        trainer = Trainer(run, data, out, stack=stack, say=say)
        if checkpoint is not None:
            trainer.restore(checkpoint)
        schedule, start_step = trainer.schedule(), checkpoint.step if checkpoint else 0
        _begin(run, schedule, start_step, folder, reporter)
        loop = Loop(
            schedule,
            trainer.step,
            trainer.loader,
            world=world,
            run=folder,
            report=reporter,
            snapshot=trainer.snapshot,
            validate=trainer.validate if trainer.validates else None,
            notices=trainer.bad_samples,
            alive=monitor.alive,
        )
        monitor.expect_steps(deadline, begun=lambda: shorten_waits(world, deadline))
        loop.run(stop, start_step, resumed=checkpoint is not None)
        return TrainResult(out, max(start_step, schedule.total_steps), _last_validation(out))


def _own_folder(
    request: TrainRequest, world: World, monitor: RankMonitor, stack: ExitStack
) -> RunFolder | None:
    """Lock the run folder on the main rank; from then on every failure is recorded and explained.

    Returns:
        The folder, held until the stack is left; None on other ranks, which do not write to it.
    """
    folder = None
    if world.is_main:
        folder = stack.enter_context(RunFolder(request.out, resume=request.resume))
        monitor.record = partial(record_failure, folder)
        stack.enter_context(recorded(folder))
    stack.enter_context(monitor.explained())
    stack.enter_context(translate_oom())
    stack.enter_context(translate_device_failure())
    world.sum(torch.zeros(1))  # the folder is locked before the other ranks look into it
    return folder


def _find_checkpoint(
    out: Path, folder: RunFolder | None, world: World, say: Say
) -> Checkpoint | None:
    """Return the checkpoint to resume from, which all ranks must see; None in a new run.

    Raises:
        StorageError: the run had begun and its checkpoints are gone, or ranks see different ones.
    """
    run_id = folder.run_id if folder else read_run_id(out)
    checkpoint = newest_checkpoint(out / "checkpoints", run_id)
    if checkpoint is None and read_status(out).get("step", 0):
        raise StorageError(
            f"{out}: its status says step {read_status(out)['step']}, but there is no "
            "checkpoint; restore the checkpoints, or start a new run with another --out"
        )
    steps = world.gather(torch.tensor(checkpoint.step if checkpoint else 0)).tolist()
    if len(set(steps)) > 1:
        error = StorageError(
            f"ranks find different newest checkpoints (steps {steps}, in the order of the ranks); "
            "their file systems do not agree: mount the run folder again, or wait"
        )
        raise raised_by_all(error, world.rank)
    if checkpoint is not None:
        say(f"resuming from the checkpoint at step {checkpoint.step}")
    return checkpoint


def _shared_anew(
    request: TrainRequest, checkpoint: Checkpoint | None, world: World, say: Say
) -> tuple[str, ...]:
    """Return which core shares to choose again: if the ranks changed, all that are not named."""
    if checkpoint is None or checkpoint.state["world_size"] in (None, world.size):
        return ()
    say(
        f"{world.size} ranks now, {checkpoint.state['world_size']} before: each step has the same "
        "samples, but sums them in another order"
    )
    return request.unnamed(*SHARED_CORES)


def prepare_torch(run: ResolvedRun) -> None:
    """Set threads, determinism and arithmetic of this process as the run requires."""
    train = run.config.train
    torch.set_num_threads(train.threads or 1)
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS refuses
    if train.deterministic != torch.are_deterministic_algorithms_enabled():
        # Only if it changes: setting it loads torch's compiler, which takes seconds.
        torch.use_deterministic_algorithms(train.deterministic)
    if run.device.type == "cuda":
        torch.backends.cudnn.benchmark = not train.deterministic
        torch.set_float32_matmul_precision("high")


def _begin(
    run: ResolvedRun,
    schedule: Schedule,
    start_step: int,
    folder: RunFolder | None,
    reporter: RunReporter,
) -> None:
    """Record the configuration and report what is starting."""
    if start_step >= schedule.total_steps:
        reporter.message(
            f"the run is complete: {start_step} of {schedule.total_steps} steps are done; to "
            "continue, raise train.epochs or train.max_steps"
        )
    if folder is None:
        return
    folder.write_config(run.config.to_yaml())
    folder.write_status("running", step=start_step, epoch=start_step / schedule.steps_per_epoch)
    reporter.begin(
        run=folder,
        config=run.config,
        images=run.order.num_samples,
        total_steps=schedule.total_steps,
        steps_per_epoch=schedule.steps_per_epoch,
        step=start_step,
    )


def _last_validation(out: Path) -> dict[str, Any] | None:
    """Return the last logged validation, so that a run resumed at its end has a result, too."""
    last = None
    for record in read_json_lines(out / "metrics.jsonl"):
        if record.get("kind") == "validation":
            last = record
    return last
