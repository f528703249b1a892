"""Fixtures shared by all tests: where the real images are."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Tests run side by side; torch threads that wait for each other by spinning would make
    # every one of them many times slower. Inherited by the processes that tests start.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED_ARCHIVES = {"coco-mini": "coco-voc-mini", "voc-mini": "coco-voc-mini"}
"""Archives that hold more than one set."""

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def test_data() -> Callable[[str], Path]:
    """Folder of a real data set by name, e.g. ``test_data("imagenette-128")``.

    Looks in FASTROT_TEST_DATA (unpacked sets), else unpacks ``../shared/data`` once into
    ``.test-data``; skips, saying so, where there is neither.
    """

    def find(name: str) -> Path:
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

    return find
