"""Monitoring of the other ranks: which of them failed first, and how.

A collective that fails does not say which rank is gone. So each rank records in the store of the
rendezvous which process it is when it starts, and why it exits when it fails. Processes of this
machine are also looked up, so that one that was killed or stopped can be named.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fastrot.distributed.error_reporting import line_to_print, raised_by
from fastrot.errors import FastrotError, RankLostError
from fastrot.system.process_identity import ProcessIdentity

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

_LOOK_SECONDS = 0.5  # between two checks of the watchdog
_REPORT_SECONDS = 3.0  # a rank that fails may still be writing why
_LEAVE_SECONDS = 10.0  # for an orderly exit once another rank has failed
_FIRST_STEP_SECONDS = 1800.0  # compilation, and the choice of convolution algorithms
_MARGIN = 30.0  # beyond the deadline of a wait, which raises an error on its own if it can


@contextmanager
def lost_ranks_named(rank: int, size: int) -> Iterator[None]:
    """Turn a communication failure of the block into a RankLostError."""
    try:
        yield
    except RuntimeError as error:
        if size == 1 or not _is_communication_failure(error):
            raise
        raise RankLostError(
            f"rank {rank}: another rank is gone ({_short_message(error)})"
        ) from error


def _short_message(error: RuntimeError) -> str:
    """Return torch's message without its source location and its advice."""
    line = str(error).strip().partition("\n")[0]
    return re.sub(r"^\[[^\]]*\.(cc|cpp|h):\d+\] ", "", line).partition(". ")[0]


def _is_communication_failure(error: RuntimeError) -> bool:
    """Return whether torch's communication failed; gloo has no error type of its own for that."""
    text = str(error).lower()
    return type(error).__name__.startswith("Dist") or any(
        part in text for part in ("gloo", "nccl", "connection closed", "process group")
    )


class RankMonitor:
    """The ranks of a run, as seen from one of them; a single rank has nothing to monitor.

    Args:
        rank: rank of this process.
        size: number of ranks.
        store: store used for the rendezvous; None for a single rank.

    Attributes:
        record: called by the watchdog with the failure before it ends the process.
    """

    def __init__(self, rank: int, size: int, store: Store | None = None) -> None:
        self._rank, self._size = rank, size
        self._store = store
        self._processes: dict[int, ProcessIdentity] = {}
        self.record: Callable[[FastrotError], None] | None = None
        self._begun: Callable[[], None] | None = None
        self._deadline = math.inf  # until steps are expected
        self._alive_at = time.monotonic()
        self._reported = False

    @property
    def store(self) -> Store:
        """Return the store of the rendezvous."""
        assert self._store is not None
        return self._store

    def rendezvous(self, seconds: float) -> None:
        """Register this process, and wait until all other ranks have registered.

        Raises:
            RankLostError: some did not register within ``seconds``; the message names them.
        """
        me = ProcessIdentity.of_this_process()
        self.store.set(f"here/{self._rank}", json.dumps(asdict(me)))
        missing = [rank for rank in range(self._size) if rank != self._rank]
        end = time.monotonic() + seconds
        while missing:
            missing = [rank for rank in missing if not self._has_arrived(rank)]
            if missing and time.monotonic() > end:
                ranks = ", ".join(map(str, missing))
                raise RankLostError(
                    f"rank {self._rank} waited {seconds:.0f} s for ranks {ranks} of {self._size}, "
                    "which did not appear; find out what ended them, or start as many as "
                    "WORLD_SIZE says"
                )
            if missing:
                time.sleep(0.05)

    def _has_arrived(self, rank: int) -> bool:
        record = self._read(f"here/{rank}")
        if record is not None:
            self._processes[rank] = ProcessIdentity(**record)
        return record is not None

    def _read(self, key: str) -> dict[str, Any] | None:
        if not self.store.check([key]):
            return None
        record: dict[str, Any] = json.loads(self.store.get(key))
        return record

    def report_failure(self, error: BaseException) -> None:
        """Publish why this rank exits; only its first failure counts."""
        if self._store is None or self._reported:
            return
        self._reported = True
        code = getattr(error, "exit_code", 1)
        message = str(error) or type(error).__name__
        lost = isinstance(error, RankLostError)
        with suppress(RuntimeError):  # the store may be gone with the rank that hosted it
            self._store.set(
                f"left/{self._rank}",
                json.dumps({"exit_code": code, "message": message, "lost": lost}),
            )
            self._store.set(_ANY_FAILURE, "1")

    def report_done(self) -> None:
        """Publish that this rank has finished, since it may end before others do."""
        if self._store is not None:
            self._reported = True
            with suppress(RuntimeError):
                self._store.set(f"done/{self._rank}", "1")

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Make a RankLostError of the block say who failed and how, with that rank's exit code."""
        try:
            with lost_ranks_named(self._rank, self._size):
                yield
        except RankLostError as error:
            if self._store is None or error.explained:
                raise
            explained = self._explain(error)
            self.report_failure(explained)
            raise explained from error
        except BaseException as error:
            if self._store is not None and isinstance(error, FastrotError) and not self._reported:
                error.rank = self._rank
            self.report_failure(error)
            raise

    def _explain(self, error: RankLostError) -> RankLostError:
        end = time.monotonic() + _REPORT_SECONDS
        while (found := self.first_failure()) is None and time.monotonic() < end:
            time.sleep(0.05)
        if found is None:
            found = RankLostError(f"{error}; all ranks of this machine are still running")
        found.explained = True
        return found

    def first_failure(self) -> RankLostError | None:
        """Return the failure of another rank that explains the others, if there is one.

        A rank's own failure takes precedence over one that another rank caused.
        """
        second_hand = None
        for rank in self._others():
            try:
                record = self._read(f"left/{rank}")
            except RuntimeError:
                continue
            if record is None:
                continue
            if not record["lost"]:
                message = f"rank {rank}: {record['message']}"
                return self._failure(rank, message, record["exit_code"])
            second_hand = second_hand or record["message"]
        for rank, process in self._processes.items():
            if how := self._find_trouble(rank, process):
                return self._failure(
                    rank,
                    f"rank {rank} (process {process.pid}) {how}; run the same command again "
                    "(train: with --resume): it continues from what was saved last",
                    RankLostError.exit_code,
                )
        return RankLostError(second_hand) if second_hand else None

    def _failure(self, first_failure: int, message: str, exit_code: int) -> RankLostError:
        error = RankLostError(message)
        error.exit_code = exit_code
        return raised_by(error, first_failure, self._rank)

    def _others(self) -> list[int]:
        return [rank for rank in range(self._size) if rank != self._rank]

    # --- the watchdog ------------------------------------------------------------------------

    def expect_steps(self, deadline: float, begun: Callable[[], None]) -> None:
        """Require from now on that each step but the first takes less than ``deadline`` seconds.

        Args:
            deadline: longest allowed step in seconds.
            begun: called after the first step.
        """
        self._begun = begun
        self._deadline = deadline + _MARGIN
        self._alive_at = time.monotonic() + _FIRST_STEP_SECONDS

    def alive(self, step: int = 0) -> None:
        """Record progress of this rank: a validation batch, a checkpoint, or (``step``) a step."""
        self._alive_at = time.monotonic()
        if step and self._begun is not None:
            self._begun()
            self._begun = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """End this process if it hangs, or keeps running after another rank has failed.

        Neither a lost GPU nor a stopped rank raises an error in a thread that waits for it.
        """
        over = threading.Event()
        thread = threading.Thread(target=self._watch, args=(over,), name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _watch(self, over: threading.Event) -> None:
        failed_at = None
        while not over.wait(_LOOK_SECONDS):
            silence = time.monotonic() - self._alive_at
            if silence > self._deadline:
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                self._exit(
                    self.first_failure()
                    or RankLostError(
                        f"rank {self._rank} did not progress for {silence:.0f} s; the stacks of "
                        "its threads are above; checkpoints are intact"
                    )
                )
            if failed_at is None and self._has_anybody_failed():
                failed_at = time.monotonic()
            if failed_at is not None and time.monotonic() - failed_at > _LEAVE_SECONDS:
                self._exit(self.first_failure() or RankLostError("another rank is gone"))

    def _has_anybody_failed(self) -> bool:
        with suppress(RuntimeError):
            if self.store.check([_ANY_FAILURE]):
                return True
        return any(self._find_trouble(*each) == _GONE for each in self._processes.items())

    def _find_trouble(self, rank: int, process: ProcessIdentity) -> str:
        """Return what is wrong with another rank's process; empty if nothing is known to be."""
        how = _state(process) if process.is_local else ""
        if how == _GONE:
            with suppress(RuntimeError):
                if self.store.check([f"done/{rank}"]):
                    return ""
        return how

    def _exit(self, error: FastrotError) -> None:
        if self.record is not None:
            with suppress(Exception):
                self.record(error)
        self.report_failure(error)
        if line := line_to_print(error):
            print(line, file=sys.stderr, flush=True)
        os._exit(error.exit_code)  # the main thread waits for something that will not happen


_ANY_FAILURE = "left/any"  # one key to check, whatever the number of ranks
_GONE = "was killed or ended"


def _state(process: ProcessIdentity) -> str:
    """Return what is wrong with a process of this machine; empty if nothing is."""
    try:
        with open(f"/proc/{process.pid}/stat") as file:
            state = file.read().rpartition(")")[2].split()[0]
    except OSError:
        return _GONE
    if state in "ZX" or not process.is_running:
        return _GONE
    return "is stopped (by a signal, or a debugger)" if state in "Tt" else ""
