"""Fixtures shared by all tests: where the real images are."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Tests run side by side; torch threads that wait for each other by spinning would make
    # every one of them many times slower. Inherited by the processes that tests start.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A script's shell lets what it starts with & ignore Ctrl-C, and so would all that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED_ARCHIVES = {"coco-mini": "coco-voc-mini", "voc-mini": "coco-voc-mini"}
"""Archives that hold more than one set."""

ROOT = Path(__file__).resolve().parent.parent

WAITING = (
    *("tests/slurm/", "tests/ranks/", "tests/test_readme.py", "tests/benchmarks/loader/"),
    *("tests/fastrot/training/test_run.py", "tests/fastrot/evaluation/test_extract.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files whose tests wait long for processes: none is left to the end."""
    items.sort(key=lambda item: not item.nodeid.startswith(WAITING))


def pytest_runtest_setup() -> None:
    """Compute on one thread again, whatever an earlier test has left; others use the cores, too."""
    if "PYTEST_XDIST_WORKER" in os.environ and (torch := sys.modules.get("torch")):
        torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Keep what is imported by now out of later garbage collections, half a second each."""
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.fixture(scope="session")
def test_data() -> Iterator[Callable[[str], Path]]:
    """Folder of a real dataset by name, e.g. ``test_data("imagenette-128")``.

    Looks in FASTROT_TEST_DATA (unpacked sets), else unpacks ``../shared/data`` once into
    ``.test-data``; skips, saying so, where there is neither. Other tests read the same files, so
    at the end they must be as they were.
    """
    states: dict[Path, int] = {}

    def find(name: str) -> Path:
        folder = locate(name)
        if folder not in states:
            states[folder] = state(folder)
        return folder

    def locate(name: str) -> Path:
        given = os.environ.get("FASTROT_TEST_DATA")
        if given:
            if (Path(given) / name).is_dir():
                return Path(given) / name
            pytest.skip(f"FASTROT_TEST_DATA={given} has no folder {name!r}")
        unpack = ROOT.parent / "shared" / "data" / "unpack.sh"
        if not unpack.is_file():
            pytest.skip(f"test data {name!r} not found: set FASTROT_TEST_DATA to a folder with it")
        archive = SHARED_ARCHIVES.get(name, name)
        done = ROOT / ".test-data" / f".{archive}-unpacked"
        done.parent.mkdir(exist_ok=True)
        with (done.parent / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # other test processes look for the same data
            if not done.exists():
                subprocess.run(["bash", str(unpack), str(done.parent), archive], check=True)
                done.touch()
        return done.parent / name

    yield find
    changed = [str(folder) for folder, before in states.items() if state(folder) != before]
    assert not changed, f"a test wrote into {changed}"


def state(folder: Path) -> int:
    """A number that changes when a file in the folder is written, added, removed or renamed."""
    files = [(path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    return hash(tuple((path, found.st_size, found.st_mtime_ns) for path, found in files))


@dataclass
class Trial:
    """One fault that was tried, for the table of ``make chaos``; a test fills in what it saw.

    Attributes:
        row: number of the fault in the table (``tests/chaos/fault_table.py`` has their names).
        test: where it was tried.
        survived: all that was promised held; false if the block raised.
        seconds: from the fault to the exit (or to the end of its effect).
        lost: checkpoints that should have been found afterwards and were not.
        hang: it did not end by itself.
        wrong: samples that were trained on and were not what they should be.
        orphans: processes left behind.
        reason: first line of what went wrong.
    """

    row: int
    test: str = ""
    survived: bool = True
    seconds: float | None = None
    lost: int = 0
    hang: bool = False
    wrong: int = 0
    orphans: int = 0
    reason: str = ""


FaultLog = Callable[[int], AbstractContextManager[Trial]]


@contextmanager
def tried(row: int, test: str) -> Iterator[Trial]:
    """Write down how a trial of a fault went."""
    trial = Trial(row, test)
    try:
        yield trial
    except BaseException as error:
        if isinstance(error, pytest.skip.Exception | KeyboardInterrupt):
            raise
        trial.survived = False
        trial.hang |= isinstance(error, TimeoutError | subprocess.TimeoutExpired)
        trial.reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        _write_trial(trial)
        raise
    _write_trial(trial)


@pytest.fixture
def fault_log(request: pytest.FixtureRequest) -> FaultLog:
    """``with fault_log(row) as trial:`` around one tried fault and everything asserted about it.

    Appends a line to a file in the folder FASTROT_FAULT_LOG, if that is set.
    """
    return lambda row: tried(row, request.node.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """``@pytest.mark.fault(row)``: the whole test is one trial, without a time to its exit."""
    marker = pyfuncitem.get_closest_marker("fault")
    if marker is None:
        return (yield)
    with tried(*marker.args, pyfuncitem.nodeid):
        return (yield)


def _write_trial(trial: Trial) -> None:
    folder = os.environ.get("FASTROT_FAULT_LOG")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with (Path(folder) / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(asdict(trial)) + "\n")
