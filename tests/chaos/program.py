"""A client of ``server.py``: start fastrot, do something to it, see how it ends."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
HANG_SECONDS = 300.0
"""Ten times what a start takes on a slow machine beside other work: what lasts longer hangs."""
TAG = "FASTROT_CHAOS_TAG"


@dataclass
class Ended:
    """How a program ended.

    Attributes:
        code: exit code; -N where signal N ended it.
        text: everything that it printed.
        at: time of its end, in seconds since 1970.
        seconds: from its start to its end.
        orphans: processes that it had started and that outlived it by two seconds.
        trace: what strace saw; each line begins with the time of the call.
    """

    code: int
    text: str
    at: float
    seconds: float
    orphans: list[int] = field(default_factory=list)
    trace: str = ""

    @property
    def line(self) -> str:
        """What it said last."""
        return (self.text.strip().splitlines() or [""])[-1]

    @property
    def injected(self) -> float | None:
        """Seconds from the (first) fault that strace injected to the end; None: it never did."""
        for line in self.trace.splitlines():
            if re.search(r"\(INJECTED|--- SIG(?!CONT|STOP|CHLD)|\+\+\+ killed", line):
                time_of_day = re.search(r"\d+\.\d+", line)  # a process id may stand before it
                assert time_of_day is not None, line
                return self.at - float(time_of_day[0])
        return None


class Hang(TimeoutError):
    """A program did not end within its deadline; it was killed."""


class Server:
    """Forks programs out of one process that has imported everything."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": _search_path()},
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def start(self, *arguments: str, **options: Any) -> Program:
        """As ``Program``."""
        return Program(self, arguments, **options)

    def run(self, *arguments: str, seconds: float = HANG_SECONDS, **options: Any) -> Ended:
        """Start a program and wait for its end."""
        return Program(self, arguments, **options).end(seconds)


class Program:
    """A running fastrot.

    Args:
        server: that forks it.
        arguments: of the command line, or ``module:function`` and its arguments.
        strace: options of strace, which is attached before the program begins.
        limits: resource limits by name, e.g. ``{"AS": 2**31}``.
        namespace: a mount namespace to enter.
        environment: variables to set.
    """

    def __init__(
        self,
        server: Server,
        arguments: Sequence[str],
        *,
        strace: Sequence[str] = (),
        limits: dict[str, int] | None = None,
        namespace: str = "",
        environment: dict[str, str] | None = None,
    ) -> None:
        self.server = server
        self._tag = secrets.token_hex(8)
        self.output = server.folder / f"{self._tag}.txt"
        self.output.touch()
        self._trace = server.folder / f"{self._tag}.trace"
        self._strace: subprocess.Popen[bytes] | None = None
        self._started = time.time()
        self.pid: int = server.ask(
            op="start",
            arguments=list(arguments),
            output=str(self.output),
            folder=str(server.folder),
            environment={**(environment or {}), TAG: self._tag},
            limits=limits or {},
            namespace=namespace,
            stopped=bool(strace),
        )["pid"]
        if strace:
            self._attach(strace)

    def _attach(self, options: Sequence[str]) -> None:
        poll(lambda: process_state(self.pid) == "T", "the program stops for its tracer")
        command = ["strace", "-q", "-ttt", "-o", str(self._trace), *options, "-p", str(self.pid)]
        self._strace = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        status = Path(f"/proc/{self.pid}/status")
        poll(lambda: "TracerPid:\t0\n" not in status.read_text(), "strace attaches")
        os.kill(self.pid, signal.SIGCONT)

    @property
    def trace_so_far(self) -> str:
        """What strace has seen until now."""
        return self._trace.read_text(errors="replace") if self._trace.exists() else ""

    @property
    def runs(self) -> bool:
        """Whether it has not ended yet."""
        return process_state(self.pid) not in ("Z", "")

    def signal(self, number: int) -> float:
        """Send a signal; returns the time of it, in seconds since 1970."""
        at = time.time()
        os.kill(self.pid, number)
        return at

    def until(self, condition: Callable[[], Any], what: str, seconds: float = HANG_SECONDS) -> None:
        """Wait until something holds, or this program has ended."""
        poll(lambda: condition() or not self.runs, what, seconds)

    def end(self, seconds: float = HANG_SECONDS) -> Ended:
        """Wait for the end.

        Raises:
            Hang: it did not come.
        """
        status = self.server.ask(op="wait", pid=self.pid, seconds=seconds)
        hangs = status["code"] is None
        if hangs:
            os.kill(self.pid, signal.SIGKILL)
            status = self.server.ask(op="wait", pid=self.pid, seconds=HANG_SECONDS)
        if self._strace is not None:
            self._strace.wait(30)
        orphans = self._orphans()
        text = self.output.read_text(errors="replace")
        if hangs:
            raise Hang(f"no end within {seconds:.0f} s; it said: {text[-2000:]}")
        trace = self._trace.read_text(errors="replace") if self._strace else ""
        seconds = status["at"] - self._started
        return Ended(status["code"], text, status["at"], seconds, orphans, trace)

    def _orphans(self) -> list[int]:
        """Processes with this program's tag that do not end by themselves; they are ended."""
        deadline = time.monotonic() + 2
        while found := [pid for pid in self.family() if process_state(pid) != "Z"]:
            if time.monotonic() > deadline:
                for pid in found:
                    os.kill(pid, signal.SIGKILL)
                return found
            time.sleep(0.02)
        return []

    def family(self) -> list[int]:
        """The program's processes that started in its session."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    session = (entry / "stat").read_text().rpartition(")")[2].split()[3]
                except OSError:
                    continue
                if int(session) == self.pid:
                    found.append(int(entry.name))
        return found


def pairs(*settings: str) -> list[str]:
    """``--set`` before each setting."""
    return [word for setting in settings for word in ("--set", setting)]


def poll(condition: Callable[[], Any], what: str, seconds: float = HANG_SECONDS) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Hang(f"waited {seconds:.0f} s in vain until {what}")
        time.sleep(0.005)


def process_state(pid: int) -> str:
    """The letter of /proc/PID/stat; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def need_strace() -> None:
    """Skip, with the reason, where system calls cannot be traced."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    if subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True).returncode:
        pytest.skip("ptrace is not allowed here")


def _search_path() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
