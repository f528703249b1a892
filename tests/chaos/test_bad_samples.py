"""Rows 7, 8, 9, 12, 17 and 18: data that are damaged, change in use, or cannot be read."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fastrot.data.beton.dataset import BetonDataset
from tests.chaos.photos import Photos, train_on
from tests.conftest import FaultLog
from tests.program import Ended, Server, need_strace, pairs

CHAOS = pytest.mark.chaos
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "garbage": lambda data: b"<html>404 not found</html>",
    "cut": lambda data: data[: len(data) * 2 // 3],
    "empty": lambda data: b"",
    "altered": lambda data: data[: len(data) // 2] + b"\xff\xc4\x00" + data[len(data) // 2 + 3 :],
}
LOADERS = ("native", "reference", "dali", "ffcv")


def only_quick(*quick: tuple[str, str]) -> list[object]:
    """Every kind of damage with every loader; all but a few in the slow half."""
    return [
        pytest.param(damage, loader, marks=[] if (damage, loader) in quick else CHAOS)
        for damage in DAMAGE
        for loader in LOADERS
    ]


def missing(loader: str) -> None:
    if loader in ("ffcv", "dali"):
        pytest.importorskip({"ffcv": "ffcv", "dali": "nvidia.dali"}[loader])


def assert_refused(ended: Ended, code: int, *names: str) -> None:
    assert ended.code == code, ended.text
    assert "Traceback" not in ended.text, ended.text
    assert all(name in ended.line for name in names), ended.text


def damaged(photos: Photos, folder: Path, damage: str, loader: str) -> tuple[Path, str]:
    """The data with one bad image, and how that is named."""
    if loader != "ffcv":
        data = photos.copy(folder, beton=False)
        bad = sorted(data.rglob("*.jpg"))[20]
        bad.write_bytes(DAMAGE[damage](bad.read_bytes()))
        return data, bad.name
    data = photos.copy(folder, beton=True)
    file = BetonDataset(data).file
    start, size = int(file.data_pointers[20]), int(file.data_sizes[20])
    with data.open("r+b") as raw:
        raw.seek(start)
        payload = raw.read(size)
        raw.seek(start)
        raw.write(DAMAGE[damage](payload).ljust(size, b"\0"))
    return data, "20"


@pytest.mark.parametrize(("damage", "loader"), only_quick(("cut", "native")))
def test_a_bad_image_ends_the_run_and_is_named(
    damage: str, loader: str, photos: Photos, server: Server, tmp_path: Path, fault_log: FaultLog
) -> None:
    missing(loader)
    data, name = damaged(photos, tmp_path, damage, loader)
    if damage == "altered" and loader != "ffcv" and still_decodes(data, name):
        pytest.skip("without a checksum nothing can tell: the decoder takes it as it is")
    with fault_log(7) as trial:
        ended = server.run(*train_on(data, tmp_path / "run", loader))
        trial.seconds, trial.orphans = ended.seconds, len(ended.orphans)
        trial.wrong = int(ended.code == 0)
        assert_refused(ended, 65, name)
        assert trial.orphans == 0
        log = tmp_path / "run" / "samples.jsonl"
        steps = len(log.read_text().splitlines()) if log.exists() else 0
        assert steps < 4, "it was trained on in the first epoch"


def still_decodes(folder: Path, name: str) -> bool:
    from fastrot.data.images.decode import DecodeError, decode_image

    try:
        decode_image(next(folder.rglob(name)).read_bytes(), apply_exif=True)
    except DecodeError:
        return False
    return True


@pytest.mark.parametrize("loader", [pytest.param(x, marks=CHAOS) for x in LOADERS])
def test_a_bad_image_is_replaced_by_another_and_listed(
    loader: str, photos: Photos, server: Server, tmp_path: Path, fault_log: FaultLog
) -> None:
    missing(loader)
    data, name = damaged(photos, tmp_path, "cut", loader)
    with fault_log(7) as trial:
        ended = server.run(*train_on(data, tmp_path / "run", loader), "--on-bad-sample", "skip")
        assert ended.code == 0, ended.text
        trial.seconds = ended.seconds
        listed = [json.loads(line) for line in (tmp_path / "run" / "bad_samples.jsonl").open()]
        assert len(listed) == 1 and name in f"{listed[0]['sample']} {listed[0]['name']}"
        lines = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").open()]
        ids = [sample for line in lines for sample in line["ids"]]
        trial.wrong = ids.count(listed[0]["sample"])
        assert len(ids) == 4 * 64 and trial.wrong == 0
        again = server.run(*train_on(data, tmp_path / "none", loader, "data.max_bad=0"),
                           "--on-bad-sample", "skip")  # fmt: skip
        assert_refused(again, 65, "data.max_bad=0")


# --- files that are not as they were written ------------------------------------------------


@pytest.mark.parametrize("flips", [20, pytest.param(600, marks=CHAOS)])
def test_a_flipped_byte_is_refused_or_does_not_matter(
    flips: int, photos: Photos, server: Server, tmp_path: Path, fault_log: FaultLog
) -> None:
    path = photos.copy(tmp_path, beton=True)
    whole = server.run("tests.chaos.children:read_all", str(path))
    assert whole.code == 0, whole.text
    chance = random.Random(20261127)
    size, refused = path.stat().st_size, 0
    file = BetonDataset(path).file
    used = int(file.data_pointers.max()) + 20_000
    for _ in range(flips):
        head = chance.random() < 0.5  # header, fields and pointers are small: half of the flips
        position = chance.randrange(4096 if head else min(used, size))
        original = flip_byte(path, position, chance.randrange(1, 256))
        with fault_log(8) as trial:
            ended = server.run("tests.chaos.children:read_all", str(path),
                               limits={"AS_MORE": 2**31})  # fmt: skip
            trial.seconds = ended.seconds
            trial.wrong = int(ended.code == 0 and ended.line != whole.line)
            assert ended.code in (0, 65), f"byte {position}: {ended.text}"
            assert not trial.wrong, f"byte {position}"
            refused += ended.code == 65
        with path.open("r+b") as raw:
            raw.seek(position)
            raw.write(original)
    assert refused > flips // 4


def flip_byte(path: Path, position: int, by: int) -> bytes:
    with path.open("r+b") as raw:
        raw.seek(position)
        original = raw.read(1)
        raw.seek(position)
        raw.write(bytes([original[0] ^ by]))
    return original


@pytest.mark.parametrize(
    "share",
    [
        pytest.param(0.0, marks=CHAOS),
        0.001,
        pytest.param(0.5, marks=CHAOS),
        pytest.param(0.99, marks=CHAOS),
    ],
)
@pytest.mark.parametrize("command", ["train", pytest.param("verify", marks=CHAOS)])
def test_a_cut_file(
    share: float,
    command: str,
    photos: Photos,
    server: Server,
    tmp_path: Path,
    fault_log: FaultLog,
) -> None:
    path = photos.copy(tmp_path, beton=True)
    os.truncate(path, int(path.stat().st_size * share))
    arguments = train_on(path, tmp_path / "run", "native")
    with fault_log(8) as trial:
        ended = server.run(*(arguments if command == "train" else ["verify", str(path)]))
        trial.seconds = ended.seconds
        assert_refused(ended, 65, str(path))


@pytest.mark.parametrize(
    "loader", ["native", pytest.param("ffcv", marks=CHAOS), pytest.param("reference", marks=CHAOS)]
)
@pytest.mark.parametrize("how", ["cut", pytest.param("replaced", marks=CHAOS)])
def test_a_file_that_changes_while_it_is_trained_on(
    how: str, loader: str, photos: Photos, server: Server, tmp_path: Path, fault_log: FaultLog
) -> None:
    """No signal, no grey images: it is noticed and told."""
    missing(loader)
    path, out = photos.copy(tmp_path, beton=True), tmp_path / "run"
    endless = ("train.epochs=100000", "train.checkpoint_steps=1000000")
    with fault_log(9) as trial:
        program = server.start(*train_on(path, out, loader, *endless))
        program.until(lambda: logged(out), "training begins")
        since = time.time()
        if how == "cut":
            os.truncate(path, 100_000)
        else:
            shutil.copy(path, tmp_path / "other")
            (tmp_path / "other").replace(path)
        ended = program.end()
        trial.seconds, trial.orphans = ended.at - since, len(ended.orphans)
        assert_refused(ended, 65, str(path))
        assert trial.orphans == 0


def logged(out: Path) -> bool:
    path = out / "samples.jsonl"
    return path.exists() and path.stat().st_size > 0


# --- labels ---------------------------------------------------------------------------------


def test_a_class_too_few_or_empty(
    photos: Photos, server: Server, tmp_path: Path, fault_log: FaultLog
) -> None:
    """What says that it is ImageNet must have its thousand classes."""
    source = tmp_path / "imagenet"
    shutil.copytree(photos.folder, source / "train")
    with fault_log(12) as trial:
        ended = server.run("prepare", str(source), str(tmp_path / "o.beton"), "--kind", "imagenet",
                           "--split", "train")  # fmt: skip
        trial.seconds = ended.seconds
        assert_refused(ended, 65, "4 classes", "1,000")
        assert not (tmp_path / "o.beton").exists()
    (source / "train" / "n99999999").mkdir()
    with fault_log(12) as trial:
        ended = server.run("prepare", str(source / "train"), str(tmp_path / "o.beton"))
        trial.seconds = ended.seconds
        assert "Traceback" not in ended.text
        assert "n99999999" in ended.text, ended.text


@pytest.mark.chaos
@pytest.mark.parametrize("label", [4, -5, 2**31])
def test_a_label_beyond_the_classes(
    label: int, photos: Photos, server: Server, tmp_path: Path, fault_log: FaultLog
) -> None:
    path = photos.copy(tmp_path, beton=True)
    file = BetonDataset(path).file
    raw = bytearray(path.read_bytes())
    name = next(name for name in file.metadata.dtype.names if file.metadata[name].dtype.kind == "i")
    stride, offset = file.metadata.dtype.itemsize, file.metadata.dtype.fields[name][1]
    start = raw.index(file.metadata.tobytes())
    place = start + 7 * stride + offset
    raw[place : place + 8] = int(label).to_bytes(8, "little", signed=True)
    path.write_bytes(raw)
    for manifest in tmp_path.glob("*.manifest*"):
        manifest.unlink()
    with fault_log(12) as trial:
        ended = server.run("verify", str(path))
        trained = server.run(*train_on(path, tmp_path / "run", "native", "train.epochs=1"))
        trial.seconds = ended.seconds
        assert ended.code in (0, 65) and trained.code in (0, 65)
        assert "Traceback" not in ended.text + trained.text


# --- a disk that fails while it is read -----------------------------------------------------


@pytest.mark.parametrize("error", ["ESTALE", pytest.param("EIO", marks=CHAOS)])
@pytest.mark.parametrize("when", [pytest.param("3", marks=CHAOS), "3+"])
def test_reading_fails_once_or_for_good(
    error: str, when: str, photos: Photos, server: Server, tmp_path: Path, fault_log: FaultLog
) -> None:
    """Once: nobody is disturbed. For good: a few attempts, then the path and the reason."""
    need_strace()
    inject = ["-f", "-e", "trace=pread64,preadv,preadv2", "-P", str(photos.beton),
              "-e", f"inject=pread64,preadv,preadv2:error={error}:when={when}"]  # fmt: skip
    with fault_log(18) as trial:
        ended = server.run(
            *train_on(photos.beton, tmp_path / "run", "reference", "data.workers=0"), strace=inject
        )
        assert "(INJECTED)" in ended.trace
        trial.seconds = ended.injected
        if when == "3":
            assert ended.code == 0, ended.text
        else:
            assert_refused(ended, 74, str(photos.beton))
            assert re.search("Stale file handle|Input/output error", ended.line)


@pytest.mark.chaos
def test_an_image_that_vanishes(
    photos: Photos, server: Server, tmp_path: Path, fault_log: FaultLog
) -> None:
    """The worker's failure is raised in the trainer at the next batch."""
    data, out = photos.copy(tmp_path, beton=False), tmp_path / "run"
    with fault_log(17) as trial:
        arguments = train_on(data, out, "reference", "train.epochs=100000", "data.workers=2")
        program = server.start(*arguments, *pairs("train.checkpoint_steps=1000000"))
        program.until(lambda: logged(out), "training begins")
        since = time.time()
        next(data.rglob("*.jpg")).unlink()
        ended = program.end()
        trial.seconds, trial.orphans = ended.at - since, len(ended.orphans)
        assert_refused(ended, 65, ".jpg")
        assert trial.orphans == 0
