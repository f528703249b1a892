"""A client of ``server.py``: start a program, do something to it, see how it ends.

``run_python`` and ``start_python`` take a Python command as ``subprocess`` does and save it the
seconds of CPU time that importing torch takes. Tests of the start itself, or of an environment
that libraries read when they are imported, take ``subprocess``, and so does one side where two
runs must be equal: forked programs share the seed of ``hash``.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
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
        orphans: processes that it had started and that outlived it by 20 seconds.
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
        self._process.wait(300)

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
        arguments: of fastrot's command line; or ``module:function`` and its arguments; or an
            interpreter's: ``-m MODULE ...``, ``-c CODE ...``, ``FILE.py ...``.
        strace: options of strace, which is attached before the program begins.
        limits: resource limits by name, e.g. ``{"AS": 2**31}``.
        namespace: a mount namespace to enter.
        environment: variables to set.
        whole_environment: it has no other variables.
        folder: working directory; the server's unless given.
        apart: standard error goes to a file of its own, ``errors``.
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
        whole_environment: bool = False,
        folder: str | Path | None = None,
        apart: bool = False,
    ) -> None:
        self.server = server
        self._tag = secrets.token_hex(8)
        self.output = server.folder / f"{self._tag}.txt"
        self.errors = server.folder / f"{self._tag}.err"
        self.output.touch()
        if not re.search(r"^-|\.py$|:", arguments[0]):
            arguments = ("-m", "fastrot", *arguments)
        self._trace = server.folder / f"{self._tag}.trace"
        self._strace: subprocess.Popen[bytes] | None = None
        self._started = time.time()
        self.pid: int = server.ask(
            op="start",
            arguments=list(arguments),
            output=str(self.output),
            errors=str(self.errors) if apart else "",
            folder=str(folder or server.folder),
            environment={**(environment or {}), TAG: self._tag},
            whole_environment=whole_environment,
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
            self._strace.wait(300)
        orphans = self._orphans()
        text = self.output.read_text(errors="replace")
        if self.errors.exists():
            text += self.errors.read_text(errors="replace")
        if hangs:
            raise Hang(f"no end within {seconds:.0f} s; it said: {text[-2000:]}")
        trace = self._trace.read_text(errors="replace") if self._strace else ""
        seconds = status["at"] - self._started
        return Ended(status["code"], text, status["at"], seconds, orphans, trace)

    def _orphans(self) -> list[int]:
        """Processes with this program's tag that do not end by themselves; they are ended."""
        deadline = time.monotonic() + 20
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


class Process:
    """A Python program that the shared server forked, with the methods of ``subprocess.Popen``.

    Attributes:
        returncode: exit code; -N where signal N ended it; None while it runs.
    """

    def __init__(
        self, command: Sequence[str | Path], cwd: Path | None, env: dict[str, str] | None
    ) -> None:
        assert command[0] == sys.executable, command
        for name in {*os.environ, *(env or {})}:  # the server's interpreter has read these
            if env is not None and name.startswith("PYTHON"):
                assert env.get(name) == os.environ.get(name), f"{name}: use subprocess"
        self.args = [str(word) for word in command]
        self.returncode: int | None = None
        self._program = Program(
            shared_server(),
            self.args[1:],
            environment=dict(os.environ if env is None else env),
            whole_environment=True,
            folder=cwd or os.getcwd(),
            apart=True,
        )
        self.pid = self._program.pid

    def send_signal(self, number: int) -> None:
        self._program.signal(number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        if self.returncode is None:
            status = self._program.server.ask(op="wait", pid=self.pid, seconds=0)
            self.returncode = status["code"]
        return self.returncode

    def wait(self, timeout: float = HANG_SECONDS) -> int:
        """Wait for the end and return the exit code.

        Raises:
            Hang: it did not come; the program was killed.
        """
        if self.returncode is None:
            self.returncode = self._program.end(timeout).code
        return self.returncode

    def line(self, number: int) -> str:
        """Wait for a line of standard output, counted from 0, and return it."""
        lines: list[str] = []

        def came() -> bool:
            lines[:] = self._program.output.read_text().splitlines(keepends=True)
            return len(lines) > number and lines[number].endswith("\n")

        poll(lambda: came() or self.poll() is not None, f"line {number} is printed")
        assert came(), self.communicate()
        return lines[number]

    def communicate(self, timeout: float = HANG_SECONDS) -> tuple[str, str]:
        """Wait for the end and return what was printed: standard output, standard error."""
        self.wait(timeout)
        return self._program.output.read_text(), self._program.errors.read_text()


def start_python(
    command: Sequence[str | Path], cwd: Path | None = None, env: dict[str, str] | None = None
) -> Process:
    """Start a Python command."""
    return Process(command, cwd, env)


def run_python(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    timeout: float = HANG_SECONDS,
    check: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a Python command to its end, as ``subprocess.run(..., capture_output=True, text=True)``.

    Raises:
        Hang: it did not end in time.
        subprocess.CalledProcessError: ``check``, and its exit code was not 0.
    """
    process = Process(command, cwd, env)
    output, errors = process.communicate(timeout)
    assert process.returncode is not None
    done = subprocess.CompletedProcess(process.args, process.returncode, output, errors)
    if check and done.returncode:
        sys.stderr.write(errors)
        done.check_returncode()
    return done


@functools.cache
def shared_server() -> Server:
    """Return the server of this test process, which ends with it."""
    folder = tempfile.TemporaryDirectory()
    server = Server(Path(folder.name))
    atexit.register(folder.cleanup)
    atexit.register(server.close)
    return server


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
