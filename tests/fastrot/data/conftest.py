"""Real photos laid out as a dataset has them, and what becomes of a dataset with a fault."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fastrot.cli.app import main
from fastrot.data.classes import match_classes
from fastrot.data.dataset import Dataset
from fastrot.data.open import open_dataset
from fastrot.data.prepare.convert import prepare
from fastrot.data.prepare.options import PrepareRequest


@pytest.fixture(scope="session")
def lay_photos(test_data) -> Callable[[Path, Iterable[str]], Path]:
    """Copies photos to names in a folder, each once before one comes again."""

    def lay(root: Path, names: Iterable[str]) -> Path:
        photos = sorted((test_data("imagenette-128") / "train").rglob("*.*"))
        for photo, name in zip(itertools.cycle(photos), names, strict=False):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(photo, path)  # no hard link: a test may write into it
        return root

    return lay


@pytest.fixture(scope="module")
def many_files() -> Iterator[Path]:
    """A folder for thousands of files: in memory where there is one, removed afterwards.

    Some disks take 4 ms to remove a folder, and the classes of iNaturalist are 8,142 folders.
    """
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder).resolve()


@pytest.fixture
def refusal(capsys, tmp_path_factory) -> Callable[[Path, str], str]:
    """The one line with which ``fastrot prepare`` refuses bad data."""

    def refuse(root: Path, split: str) -> str:
        out = tmp_path_factory.mktemp("refused") / "out.beton"
        with pytest.raises(SystemExit) as left:
            main(["prepare", str(root), str(out), "--split", split])
        _, err = capsys.readouterr()
        assert left.value.code == 65, err
        assert err.startswith("fastrot: ") and err.count("\n") == 1, err
        assert not out.exists()
        return err

    return refuse


@pytest.fixture
def converted(tmp_path_factory) -> Callable[[Path, str], tuple[Dataset, Dataset]]:
    """A dataset as a ``.beton`` and in place, after a check that the two are the same."""

    def convert(root: Path, split: str) -> tuple[Dataset, Dataset]:
        out = tmp_path_factory.mktemp("converted") / "out.beton"
        prepare(PrepareRequest(root, out, split=split, copy=True, progress=False))
        beton, folder = open_dataset(out), open_dataset(f"{root}:{split}")
        assert match_classes(beton, folder).numbers is None
        row = {folder.read(i).data: i for i in range(len(folder))}
        assert len(row) == len(folder), "photos that differ"
        rows = [row.get(beton.read(i).data, -1) for i in range(len(beton))]
        assert sorted(rows) == list(range(len(folder))), "bytes that were kept"
        assert np.array_equal(beton.labels, folder.labels[rows])
        assert np.array_equal(beton.decode(0), folder.decode(rows[0]))
        return beton, folder

    return convert


@pytest.fixture
def write_cifar10():
    """Writes CIFAR-10's binary version, of noise; returns labels and planes by file."""

    def write(root, per_file=3):
        rng = np.random.default_rng(0)
        root.mkdir(parents=True)
        images = {}
        for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
            labels = rng.integers(0, 10, per_file).astype(np.uint8)
            planes = rng.integers(0, 256, (per_file, 3, 32, 32)).astype(np.uint8)
            rows = np.concatenate([labels[:, None], planes.reshape(per_file, -1)], axis=1)
            (root / name).write_bytes(rows.tobytes())
            images[name] = labels, planes
        (root / "batches.meta.txt").write_text("\n".join(f"class{i}" for i in range(10)) + "\n\n")
        return images

    return write
