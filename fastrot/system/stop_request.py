"""A signal's request to stop: obeyed at once before the first step, later at the end of a step."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import Counter
from types import FrameType
from typing import Any

from fastrot.errors import PreemptedError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """A context in which a signal (INT, TERM, HUP, USR1, USR2) requests an orderly stop.

    Until ``training`` is set, the request is obeyed at once: nothing has been learnt that could be
    lost. From then on the handler only sets a flag, which the loop checks after each step. A second
    signal of the same kind ends the process without saving, even if the first has not been handled
    yet because the main thread waits for a disk or a device.

    Args:
        again: how to continue after a stop before the first step, for its message.

    Attributes:
        signal_name: name of the received signal, or None.
        training: whether the loop checks the flag.
    """

    def __init__(self, again: str = "the same command with --resume continues") -> None:
        self._again = again
        self.signal_name: str | None = None
        self.training = False
        self._previous: dict[int, Any] = {}
        self._wakeup_fd = self._previous_wakeup_fd = -1
        self._previous_hook = sys.unraisablehook

    def __bool__(self) -> bool:
        return self.signal_name is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Nothing else here: a handler may run inside any call, even inside a checkpoint.
        self.signal_name = signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)
        if not self.training:
            raise PreemptedError(
                f"stopped by {self.signal_name} before the first step of this start; nothing is "
                f"lost; {self._again}"
            )

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            read_end, self._wakeup_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            os.set_blocking(read_end, True)
            threading.Thread(
                target=_count_signals, args=(read_end,), name="signals", daemon=True
            ).start()
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
            self._previous_wakeup_fd = signal.set_wakeup_fd(
                self._wakeup_fd, warn_on_full_buffer=False
            )
            self._previous_hook, sys.unraisablehook = sys.unraisablehook, self._note_unraisable
        return self

    def _note_unraisable(self, failure: sys.UnraisableHookArgs) -> None:
        # Raised where errors are ignored (a finalizer, a fork): the flag stops the first step.
        if not isinstance(failure.exc_value, PreemptedError):
            self._previous_hook(failure)

    def __exit__(self, *exc: object) -> None:
        if self._wakeup_fd >= 0:
            signal.set_wakeup_fd(self._previous_wakeup_fd)
            os.close(self._wakeup_fd)  # the listener ends
            self._wakeup_fd = -1
            sys.unraisablehook = self._previous_hook
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def _count_signals(read_end: int) -> None:
    """End the process at the second signal of a kind.

    Python runs a handler only when its main thread returns from a call, but the number of each
    signal is written into the pipe at once.
    """
    counts: Counter[int] = Counter()
    while numbers := os.read(read_end, 64):
        counts.update(number for number in numbers if number in _SIGNALS)
        for number, times in counts.items():
            if times > 1:
                os._exit(128 + number)  # as a shell reports that the signal ended it
    os.close(read_end)


def _reset_wakeup_in_child() -> None:
    # A signal to the whole group, just before a worker has set its own handlers, would be counted
    # here twice.
    if threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_reset_wakeup_in_child)
