"""Who may read what fastrot leaves is for the umask to say."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastrot.cli.app import main
from fastrot.errors import MismatchError
from fastrot.runs.checkpoint import save_checkpoint
from fastrot.runs.folder import RunFolder


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def fastrot(*words: str | Path) -> None:
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    assert not left.value.code


def wrong_modes(folder: Path, mask: int) -> list[str]:
    wrong = []
    for path in [folder, *folder.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode != (0o777 if path.is_dir() else 0o666) & ~mask:
            wrong.append(f"{path.relative_to(folder)} {mode:o}")
    return wrong


def test_whatever_is_left_has_the_modes_that_the_umask_leaves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, left = tmp_path / "photos", tmp_path / "left"
    for number in range(16):
        path = photos / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    with umask(0o002):
        left.mkdir()
        data, run = left / "photos.beton", left / "runs" / "run"
        fastrot("prepare", photos, data)
        tiny = "train.max_steps=1 train.global_batch=4 data.resolution=32 model.width=8".split()
        words = [word for each in tiny for word in ("--set", each)]
        fastrot("train", "-c", "photos_cpu", "--data", data, "--val", data, *words, "--out", run)
        fastrot("train", "--out", run, "--resume")
        fastrot("eval", "knn", run, "--train", data, "--test", data, "--set", "knn.k=3")
        fastrot("report", run)
        assert not wrong_modes(left, 0o002)
        assert len(list(left.rglob("*"))) > 30
    capsys.readouterr()


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_a_run_folder_is_resumed_under_the_umask_that_it_was_made_under(
    mask: int, tmp_path: Path
) -> None:
    with umask(mask):
        with RunFolder(tmp_path / "runs" / "run") as run:
            run.write_status("running", step=0, epoch=0)
            save_checkpoint(run.checkpoints, 0, {}, {}, run_id=run.run_id)
        assert not wrong_modes(tmp_path / "runs", mask)
        RunFolder(run.path, resume=True).close()


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022])
def test_a_folder_that_everybody_may_write_is_never_resumed_and_never_made(
    mask: int, tmp_path: Path
) -> None:
    with umask(mask):
        with RunFolder(tmp_path / "run") as run:
            save_checkpoint(run.checkpoints, 0, {}, {}, run_id=run.run_id)
        RunFolder(run.path, resume=True).close()
        for place in (run.path, run.checkpoints):
            before = stat.S_IMODE(place.stat().st_mode)
            place.chmod(before | stat.S_IWOTH)
            with pytest.raises(MismatchError, match="a planted checkpoint would be resumed"):
                RunFolder(run.path, resume=True)
            place.chmod(before)
