"""A real Slurm on this machine, where that is allowed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("slurm")
NOT_HERE = 77


@pytest.fixture(scope="session")
def slurm() -> Iterator[Path]:
    """Folder of a running Slurm with two nodes; SLURM_CONF names its configuration meanwhile."""
    if find_spec("submitit") is None:
        pytest.skip("submitit is not installed: pip install 'fastrot[slurm]'")
    scratch = Path(tempfile.mkdtemp(prefix="fastrot-slurm-"))  # short: sockets have short names
    folder = scratch / "s"
    before = os.environ.get("SLURM_CONF")
    try:
        done = subprocess.run([SCRIPT, "start", folder], capture_output=True, text=True)
        if done.returncode == NOT_HERE:
            pytest.skip(f"no Slurm here: {done.stdout.strip().splitlines()[-1]}")
        assert done.returncode == 0, done.stdout + done.stderr
        os.environ["SLURM_CONF"] = done.stdout.strip().splitlines()[-1]
        yield folder
    finally:
        if folder.exists():
            subprocess.run([SCRIPT, "stop", folder], check=False)
        os.environ.pop("SLURM_CONF", None)
        if before is not None:
            os.environ["SLURM_CONF"] = before
        shutil.rmtree(scratch, ignore_errors=True)
