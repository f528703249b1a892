"""A request to stop, from a signal: before the first step at once, then at the end of a step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from fastrot.errors import PreemptedError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """While entered, a signal (INT, TERM, HUP, USR1, USR2) asks for an orderly stop.

    Until ``training`` is set the request is carried out on the spot: nothing has been learnt that
    could be lost. From then on the handler only sets a flag, which the loop looks at after each
    step; a second signal of the same kind ends the process without saving.

    Attributes:
        signal_name: name of the signal that came, or None.
        training: whether the loop is looking.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self.training = False
        self._previous: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.signal_name is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Nothing else here: a handler may run inside any call, also inside a checkpoint.
        self.signal_name = signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)
        if not self.training:
            raise PreemptedError(
                f"stopped by {self.signal_name} before the first step of this start; nothing is "
                "lost; the same command with --resume goes on"
            )

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
