"""Small runs to report on, and a browser."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fastrot.data.digits import digits
from fastrot.evaluation.result import Result, Score
from tests.browser import browser  # noqa: F401
from tests.program import run_python

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "'\"><script>alert(2)<!script>",
    "a \u202e& b \u00e9\u732b",
    "{{ 7 * 7 }}",
)
"""Names of classes, which are names of folders."""

_SETTINGS = (
    *("model.name=resnet18", "model.width=8", "model.stem=small", "data.resolution=16"),
    *("data.val_resize=16", "data.workers=0", "train.global_batch=8", "train.max_steps=6"),
    *("train.epochs=2", "train.threads=1", "train.log_seconds=0.001", "sinks.tensorboard=false"),
    *("train.checkpoint_steps=3", "data.crop=random_resized"),
)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 24 digits in classes of hostile names, with 16 held out; do not change it."""
    folder = tmp_path_factory.mktemp("report")
    images, labels = digits()
    for label, name in enumerate(HOSTILE):
        rows = (labels == label).nonzero()[0][:10]
        for place, row in enumerate(rows):
            target = folder / ("train" if place < 6 else "val") / name
            target.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[row]).save(target / f"<b>{place}.png")
    out = folder / "run"
    command = [sys.executable, "-m", "fastrot", "train", "--out", str(out)]
    command += ["--data", str(folder / "train"), "--val", str(folder / "val")]
    command += [word for setting in _SETTINGS for word in ("--set", setting)]
    done = run_python(command)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture(scope="session")
def write_result() -> Callable[..., Path]:
    """Writes a result into the eval folder of a run."""

    def write(
        run: Path,
        name: str,
        protocol: str,
        scores: list[Score],
        *,
        random: list[Score] | None = None,
        label: str = "test transform",
        settings: dict[str, str] | None = None,
        caches: dict[str, str] | None = None,
    ) -> Path:
        result = Result(
            protocol=protocol,
            label=label,
            scores=scores,
            random=random,
            settings=settings or {},
            changed=[],
            weights={"source": str(run), "digest": ""},
            data={"train": "train.beton", "test": "test.beton"},
            caches=caches or {},
            seconds={},
            record={"command": ["/bin/fastrot", "eval", protocol, "a run"]},
        )
        path = run / "eval" / name / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(result.to_json()))
        return path

    return write
