"""A small trained backbone and a few photos, for the tests of features and evaluation."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.program import run_python

SETTINGS = (
    *("model.name=resnet18", "model.width=16", "data.resolution=64", "train.global_batch=20"),
    *("train.max_steps=3", "train.threads=1", "sinks.tensorboard=false", "data.workers=0"),
)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory, test_data: Callable[[str], Path]) -> Path:
    """A folder of 20 photos of 128 px in four classes."""
    folder = tmp_path_factory.mktemp("photos")
    for source in sorted((test_data("imagenette-128") / "val").iterdir())[:4]:
        (folder / source.name).mkdir()
        for file in sorted(source.iterdir())[:5]:
            shutil.copy(file, folder / source.name)
    return folder


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """The run folder of a ResNet-18 of width 16, trained for three steps on 64 px photos."""
    out = tmp_path_factory.mktemp("small") / "run"
    command = [sys.executable, "-m", "fastrot", "train", "--data", str(photos), "--out", str(out)]
    command += [word for setting in SETTINGS for word in ("--set", setting)]
    run_python(command, check=True)
    return out
