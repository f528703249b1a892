"""The training loop: it deals with steps, time, signals and checkpoints, but not with the task.

Everything that decides what is computed is a pure function of the step, so a run that was
killed anywhere and resumed gives results bit-identical to those of an uninterrupted one (same
machine, same thread count).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fastrot.data.loader import Batches, IndexedBatch
from fastrot.distributed.error_reporting import raised_by_all
from fastrot.distributed.step_sync import Decision, Notices, decide
from fastrot.distributed.world import World
from fastrot.errors import FastrotError, NonFiniteError, PreemptedError, StorageError
from fastrot.runs.checkpoint import prune_checkpoints, save_checkpoint
from fastrot.runs.folder import RunFolder
from fastrot.runs.reporter import Reporter
from fastrot.runs.sample_log import SampleLog
from fastrot.system.jsonl import JsonLines, read_json_lines
from fastrot.system.stop_request import StopRequest
from fastrot.training.optim import set_learning_rate
from fastrot.training.schedule import Schedule
from fastrot.training.step import TrainStep

_SYNC_STEPS = {"cpu": 1, "cuda": 10}  # on a GPU the host would have to wait each time
_SAVE_ATTEMPTS = 3


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds besides the step, requested when one is due.

    Attributes:
        tensors: model and optimizer.
        state: plain JSON values.
        exports: further safetensors files by name.
    """

    tensors: Mapping[str, torch.Tensor]
    state: Mapping[str, Any]
    exports: Mapping[str, Mapping[str, torch.Tensor]]


@dataclass
class _Interval:
    """Time and images since the last log line."""

    started: float = field(default_factory=time.monotonic)
    waited: float = 0.0
    images: int = 0


class Loop:
    """Runs steps from ``start_step`` to ``schedule.total_steps``.

    Args:
        schedule: when to log, validate, save and end.
        step: trains on the batches of one step.
        loader: training batches of this rank.
        world: the ranks.
        run: the run folder; only the main rank writes to it.
        report: receives the progress.
        snapshot: returns what to put into a checkpoint.
        validate: measures the model and returns metrics for the log. It calls its argument before
            each batch, as in ``validate.Between``.
        notices: what else the ranks tell each other; None: nothing.
        alive: called whenever the run has made progress.
        again: how to continue after a stop, for its message.
        calmer: how to keep the loss finite, for the message that it is not.

    Raises (from ``run``):
        PreemptedError: a signal arrived; the checkpoint is written.
        NonFiniteError: loss or gradient became NaN or infinite; no later update was kept.
        StorageError: checkpoints could not be written three times in a row, or at the end.
    """

    def __init__(
        self,
        schedule: Schedule,
        step: TrainStep,
        loader: Batches,
        *,
        world: World,
        run: RunFolder | None,
        report: Reporter,
        snapshot: Callable[[], Snapshot],
        validate: Callable[[Callable[[int, int], None]], Mapping[str, float]] | None,
        notices: Notices | None = None,
        alive: Callable[[int], None] = lambda step: None,
        again: str = "add --resume to the same command to continue",
        calmer: str = "lower optim.learning_rate or lengthen optim.warmup_epochs",
    ) -> None:
        self._schedule = schedule
        self._step = step
        self._loader = loader
        self._world = world
        self._run = run
        self._report = report
        self._snapshot = snapshot
        self._validate = validate
        self._notices = notices
        self._alive = alive
        self._again, self._calmer = again, calmer
        self._metrics = JsonLines(run.metrics, warn=report.message) if run else None
        lines = JsonLines(run.samples, warn=report.message) if run else None
        self._samples = SampleLog(lines, world, schedule.sample_log)
        self._sync_steps = _SYNC_STEPS[step.device.type]
        self._first_step = 0
        self._failed_saves = 0
        self._saved_at = time.monotonic()
        self._saved_step = -1
        self._interval = _Interval()

    def run(self, stop: StopRequest, start_step: int = 0, *, resumed: bool = False) -> None:
        """Train until the schedule ends or a stop is requested."""
        self._first_step = start_step
        if self._metrics is not None:
            self._metrics.cut_back(start_step)
        self._samples.cut_back(start_step)
        try:
            if resumed:
                self._saved_step = start_step
            else:
                self._save(start_step)
            stop.training = True
            if resumed:
                self._make_up_validation(start_step, stop)
            self._train(start_step, stop)
        finally:
            if self._metrics is not None:
                self._metrics.close()
            self._samples.close()

    def _make_up_validation(self, step: int, stop: StopRequest) -> None:
        """Validate now if a stop came between a step and its validation."""
        if self._validate is None or step == 0 or not self._schedule.validation_due(step):
            return
        done = False
        if self._run is not None:
            records = read_json_lines(self._run.metrics)
            done = any(r.get("kind") == "validation" and r["step"] == step for r in records)
        if not self._world.any(done):  # the main rank alone keeps the log
            self._measure(step, stop)

    def _train(self, start_step: int, stop: StopRequest) -> None:
        schedule = self._schedule
        batches: Iterator[IndexedBatch] | None = None
        self._interval = _Interval()
        for step in range(start_step, schedule.total_steps):
            epoch, index = divmod(step, schedule.steps_per_epoch)
            if batches is None or index == 0:
                self._loader.set_epoch(epoch, index)
                batches = iter(self._loader)
            drawn = self._draw(batches)
            set_learning_rate(self._step.optimizer, schedule.rate(step))
            self._step(drawn)
            done = step + 1
            self._alive(done)
            self._samples.note(done, epoch, drawn)
            if not self._is_sync_step(done):
                continue
            decision = self._decide(stop, done)
            if decision.log:
                self._log(done)
            if decision.stop:
                self._save(done, final=True)
                raise self._stopped(stop, "", done)
            if self._validate is not None and self._schedule.validation_due(done):
                # Save first: a validation takes long, and a resume makes up for a missed one.
                self._save(done)
                self._measure(done, stop)
                self._interval = _Interval()
            elif decision.save or self._schedule.save_due(done):
                self._save(done)
        self._log(schedule.total_steps)
        self._save(schedule.total_steps, final=True)

    def _draw(self, batches: Iterator[IndexedBatch]) -> list[IndexedBatch]:
        started = time.monotonic()
        drawn = [next(batches) for _ in range(self._schedule.accumulation)]
        self._interval.waited += time.monotonic() - started
        self._interval.images += sum(len(batch.index) for batch in drawn)
        return drawn

    def _measure(self, done: int, stop: StopRequest) -> None:
        """Validate; a stop need not wait for the end, since the step is saved."""
        assert self._validate is not None

        def between(batch: int, batches: int) -> None:
            self._alive(0)
            if batch % self._sync_steps == 0 and self._world.any(bool(stop)):
                raise self._stopped(stop, "during the validation ", done)
            self._report.validating(step=done, batch=batch, batches=batches)

        try:
            numbers = self._validate(between)
        except PreemptedError:
            self._save(done, final=True)  # in case saving failed before the validation
            raise
        self._record(done, {"kind": "validation", **numbers})
        pending = self._notices is not None and self._notices.pending()
        if self._world.any(pending) and self._notices is not None:
            self._notices.publish()

    def _is_sync_step(self, done: int) -> bool:
        """Return whether ranks decide together after this step: a pure function of the step."""
        return (
            self._world.size == 1
            or done % self._sync_steps == 0
            or done == self._schedule.total_steps
            or self._schedule.save_due(done)
            or (self._validate is not None and self._schedule.validation_due(done))
        )

    def _decide(self, stop: StopRequest, done: int) -> Decision:
        """Agree with the other ranks on what to do now."""
        now = time.monotonic()
        decision = decide(
            self._world,
            stop=bool(stop),
            log=now - self._interval.started >= self._schedule.log_seconds,
            save=now - self._saved_at >= self._schedule.checkpoint_seconds,
            publish=self._notices is not None and self._notices.pending(),
        )
        self._samples.write()
        if decision.publish and self._notices is not None:
            self._notices.publish()
        return decision

    def _log(self, done: int) -> None:
        """Read the device (the only place where the host waits for it) and report.

        All ranks do so after the same step: the numbers cover all of them.
        """
        interval, self._interval = self._interval, _Interval()
        if not interval.images:
            return
        totals = self._step.read()
        if totals.finite_steps < done - self._first_step:
            self._raise_non_finite(self._first_step + totals.finite_steps)
        now = time.monotonic()
        seconds = max(now - interval.started, 1e-9)
        waits = self._world.gather(torch.tensor(interval.waited)).tolist()
        images = interval.images * self._world.size / seconds
        views = self._schedule.views_per_image
        self._record(
            done,
            {
                "kind": "train",
                **totals.means,
                "learning_rate": self._schedule.rate(done - 1),
                "gradient_norm": totals.gradient_norm,
                "images_per_second": images,
                **({} if views is None else {"views_per_second": images * views}),
                "data_wait": sum(waits) / len(waits) / seconds,
                # All other ranks wait for the one that waits longest.
                **(
                    {
                        "data_wait_most": max(waits) / seconds,
                        "data_wait_rank": waits.index(max(waits)),
                    }
                    if len(waits) > 1
                    else {}
                ),
            },
        )

    def _record(self, done: int, metrics: Mapping[str, Any]) -> None:
        record = {"step": done, "epoch": done / self._schedule.steps_per_epoch, **metrics}
        if self._metrics is not None:
            self._metrics.append({**record, "time": time.time()})
        numbers = {k: v for k, v in record.items() if isinstance(v, int | float) and k != "step"}
        if metrics["kind"] == "validation":
            self._report.validated(step=done, metrics=numbers)
        else:
            self._report.update(step=done, metrics=numbers)

    def _raise_non_finite(self, step: int) -> None:
        epoch, index = divmod(step, self._schedule.steps_per_epoch)
        raise self._agreed(
            NonFiniteError(
                f"loss or gradient became NaN or infinite in step {step} (step {index} of epoch "
                f"{epoch}); that update and all later ones were discarded, the checkpoint "
                f"of step {self._saved_step} is intact; {self._calmer}, then start again"
            )
        )

    def _stopped(self, stop: StopRequest, where: str, done: int) -> FastrotError:
        return self._agreed(
            PreemptedError(
                f"stopped by {stop.signal_name or 'a signal to another rank'} {where}after step "
                f"{done} of {self._schedule.total_steps}; the checkpoint is written; {self._again}"
            )
        )

    def _agreed(self, error: FastrotError) -> FastrotError:
        return raised_by_all(error, self._world.rank)

    def _save(self, done: int, *, final: bool = False) -> None:
        if done == self._saved_step:
            return
        if done > self._first_step:
            self._log(done)  # never commit a state before reading its finite flag
        self._samples.flush_to_disk()
        error = self._write(done) if self._run is not None else None
        failed = self._world.any(error is not None)
        self._alive(0)
        self._saved_at = time.monotonic()
        self._interval = _Interval()
        if not failed:
            self._failed_saves = 0
            self._saved_step = done
            return
        error = error or StorageError("the main rank could not write its checkpoint")
        self._failed_saves += 1
        if final or self._failed_saves >= _SAVE_ATTEMPTS:
            raise self._agreed(error)
        self._report.message(f"warning: {error}; training continues")

    def _write(self, done: int) -> StorageError | None:
        """Write the checkpoint on the main rank; return the error if that fails."""
        assert self._run is not None and self._metrics is not None
        self._metrics.flush_to_disk()
        snapshot = self._snapshot()
        self._run.assert_held()
        try:
            save_checkpoint(
                self._run.checkpoints,
                done,
                snapshot.tensors,
                snapshot.state,
                run_id=self._run.run_id,
                exports=snapshot.exports,
            )
        except StorageError as error:
            return error
        keep = self._schedule.keep_checkpoints
        prune_checkpoints(self._run.checkpoints, keep, run_id=self._run.run_id, last=done)
        try:
            self._run.write_status(
                "running", step=done, epoch=done / self._schedule.steps_per_epoch
            )
        except StorageError as error:  # the checkpoint itself is there
            self._report.message(f"warning: {error}; training continues")
        return None
