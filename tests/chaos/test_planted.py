"""Row 28: files that somebody planted, inputs made to run code or to eat memory, listeners."""

from __future__ import annotations

import io
import os
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.chaos.conftest import SMALL, TinyRun, pairs
from tests.chaos.listeners import listening
from tests.chaos.test_bit_rot import newest_folder, rewrite_commit
from tests.conftest import FaultLog
from tests.fastrot.features.test_cache import written
from tests.fastrot.weights.test_load import Bomb
from tests.program import Ended, poll

CHAOS = pytest.mark.chaos
MORE_MEMORY = {"AS_MORE": 2**30}  # of address space, beyond what the program begins with


def assert_refused(ended: Ended, canary: Path, codes: tuple[int, ...] = (64, 65, 78)) -> None:
    assert ended.code in codes, ended.text
    assert "Traceback" not in ended.text, ended.text
    assert not canary.exists()


# --- planted in a run -----------------------------------------------------------------------


def test_a_checkpoint_of_another_run(tiny: TinyRun, tmp_path: Path, fault_log: FaultLog) -> None:
    out, other = tiny.copy(tmp_path / "run"), tmp_path / "other"
    begun = tiny.server.run(*tiny.train(other, *pairs("train.max_steps=1", "train.seed=9")))
    assert begun.code == 0, begun.text
    later = shutil.copytree(newest_folder(other, 1), newest_folder(out, 9))
    rewrite_commit(later, {"step": 9})
    newest_folder(out, 8).symlink_to(later)
    with fault_log(28) as trial:
        ended = tiny.server.run(*tiny.resume(out))
        assert ended.code == 0, ended.text
        assert "it belongs to run" in ended.text
        trial.seconds = ended.seconds
        trial.wrong = int(tiny.newest(out) != 4)
        tiny.assert_same_end(out)


@pytest.mark.parametrize("place", [".", "checkpoints"])
@pytest.mark.parametrize(
    "how", ["group", pytest.param("world", marks=CHAOS), pytest.param("owner", marks=CHAOS)]
)
def test_a_folder_that_others_may_write(
    place: str, how: str, tiny: TinyRun, tmp_path: Path, fault_log: FaultLog
) -> None:
    out = tiny.copy(tmp_path / "run")
    if how == "owner":
        if os.geteuid() != 0:
            pytest.skip("only root may give files away")
        os.chown(out / place, 54321, -1)
    else:
        (out / place).chmod(0o770 if how == "group" else 0o707)
    with fault_log(28) as trial:
        ended = tiny.server.run(*tiny.resume(out))
        assert ended.code == 78, ended.text
        assert "other users may write here" in ended.line and "chmod go-w" in ended.line
        trial.seconds = ended.seconds
        os.chown(out / place, os.geteuid(), -1)
        (out / place).chmod(0o700)
        tiny.finish(out)


# --- settings -------------------------------------------------------------------------------

RECIPES = {
    "a tag": "a: !!python/object/apply:os.mkdir [CANARY]",
    "a target": "model: {_target_: os.mkdir, path: CANARY}",
    "aliases": "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    "deep lists": "a: " + "[" * 30_000,
    "deep mappings": "a: " + "{a: " * 9000,
    "a date that cannot be": "optim: {learning_rate: 2001-99-99}",
    "an endless number": "train: {seed: " + "9" * 9000 + "}",
    "not text": "\xff\xfe\0",
    "large": "# " + "x" * 70_000,
}
TAGS = {"a tag", "a target", "deep lists"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in TAGS else CHAOS) for name in RECIPES],
)
def test_recipes(name: str, tiny: TinyRun, tmp_path: Path, fault_log: FaultLog) -> None:
    canary, recipe = tmp_path / "canary", tmp_path / "recipe.yaml"
    recipe.write_bytes(RECIPES[name].replace("CANARY", str(canary)).encode("latin-1"))
    with fault_log(28) as trial:
        ended = tiny.server.run(
            "train", "-c", str(recipe), "--data", str(tiny.data), "--out", str(tmp_path / "run")
        )
        trial.seconds = ended.seconds
        assert_refused(ended, canary)
        assert str(recipe) in ended.line and ended.text.count("\n") == 1
        assert not (tmp_path / "run").exists()


@pytest.mark.chaos
def test_settings_of_the_command_line(tiny: TinyRun, tmp_path: Path, fault_log: FaultLog) -> None:
    for value in ("[" * 5000, "2001-99-99", "!!python/name:os.system", "9" * 5000, "1e400"):
        with fault_log(28) as trial:
            ended = tiny.server.run(
                *tiny.train(tmp_path / "run", *pairs(f"optim.learning_rate={value}"))
            )
            trial.seconds = ended.seconds
            assert_refused(ended, tmp_path / "run")


# --- weights and features -------------------------------------------------------------------


def test_weights_that_are_a_pickle(tiny: TinyRun, tmp_path: Path, fault_log: FaultLog) -> None:
    canary, weights = tmp_path / "canary", tmp_path / "weights.pth"
    torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}, "hook": Bomb(canary)}, weights)
    with fault_log(28) as trial:
        ended = tiny.server.run(
            "extract", str(weights), "--data", str(tiny.data), "--out", str(tmp_path / "features")
        )
        trial.seconds = ended.seconds
        assert_refused(ended, canary, (65, 78))


def test_features_that_are_a_pickle(tiny: TinyRun, tmp_path: Path, fault_log: FaultLog) -> None:
    canary, path = tmp_path / "canary", written(tmp_path / "cache").path
    np.save(path / "pool.npy", np.array([Bomb(canary)], dtype=object), allow_pickle=True)
    with fault_log(28) as trial:
        ended = tiny.server.run("tests.chaos.children:read_features", str(path))
        trial.seconds = ended.seconds
        assert_refused(ended, canary, (65,))


# --- images ---------------------------------------------------------------------------------


def jpeg(width: int = 64, height: int = 64) -> bytes:
    """A JPEG whose header claims a size."""
    file = io.BytesIO()
    Image.effect_noise((64, 64), 60).convert("RGB").save(file, "jpeg")
    data = bytearray(file.getvalue())
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(bytes(3 * width + 1) * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + rows + chunk(b"IEND", b"")


def plant_file(data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "x.jpg").write_bytes(data)


FILES: dict[str, Callable[[Path], object]] = {
    "a JPEG of 60000 x 60000": plant_file(jpeg(60000, 60000)),
    "a PNG of 50000 x 50000": plant_file(png(50000, 50000)),
    "PostScript": plant_file(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n"),
    "a link out of the folder": lambda folder: (folder / "x.jpg").symlink_to("/etc/passwd"),
    "a link to a device": lambda folder: (folder / "x.jpg").symlink_to("/dev/zero"),
    "a link in a circle": lambda folder: (folder / "x.jpg").symlink_to("x.jpg"),
}
QUICK = {"a JPEG of 60000 x 60000", "a link out of the folder"}


def on_photos(folder: Path, out: Path, loader: str) -> list[str]:
    settings = [word for word in SMALL if not word.startswith("train.checkpoint")]
    settings = [*pairs(*(word for word in settings if word != "--set"))]
    small = pairs("train.global_batch=4", "data.resolution=32", "train.max_steps=4")
    return ["train", "--data", str(folder), "--loader", loader, "--out", str(out), *settings,
            *small, *pairs("model.name=resnet18")]  # fmt: skip


@pytest.mark.parametrize("loader", ["native", pytest.param("reference", marks=CHAOS)])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else CHAOS) for name in FILES]
)
def test_images(name: str, loader: str, tiny: TinyRun, tmp_path: Path, fault_log: FaultLog) -> None:
    folder = tmp_path / "photos" / "a"
    folder.mkdir(parents=True)
    for i in range(8):
        (folder / f"{i}.jpg").write_bytes(jpeg())
    FILES[name](folder)
    with fault_log(28) as trial:
        ended = tiny.server.run(
            *on_photos(tmp_path / "photos", tmp_path / "run", loader), limits=MORE_MEMORY
        )
        trial.seconds = ended.seconds
        assert_refused(ended, tmp_path / "none", (65,))
        assert "x.jpg" in ended.line


@pytest.mark.chaos
def test_names_that_a_shell_or_a_list_would_break_on(
    tiny: TinyRun, tmp_path: Path, fault_log: FaultLog
) -> None:
    folder, canary = tmp_path / "photos" / "a", tiny.server.folder / "canary"
    folder.mkdir(parents=True)
    names = [
        "a\n$(touch canary)`touch canary`.jpg",
        "\udcff.jpg",
        "'; touch canary; '.jpg",
        "-.jpg",
    ]
    for name in names:
        (folder / name).write_bytes(jpeg())
    with fault_log(28) as trial:
        ended = tiny.server.run("prepare", str(folder.parent), str(tmp_path / "o.beton"))
        assert ended.code == 0, ended.text
        trained = tiny.server.run(*on_photos(folder.parent, tmp_path / "run", "native"))
        assert trained.code == 0, trained.text
        trial.seconds = ended.seconds
        assert not canary.exists()


@pytest.mark.parametrize(
    "name",
    [
        "../escaped.jpg",
        *(pytest.param(x, marks=CHAOS) for x in ("/tmp/escaped.jpg", "link", "device")),
    ],
)
def test_archives(name: str, tiny: TinyRun, tmp_path: Path, fault_log: FaultLog) -> None:
    """Members are read as a stream and never put on the disk."""
    archive = tmp_path / "shards" / "a.tar"
    archive.parent.mkdir()
    data = jpeg()
    with tarfile.open(archive, "w") as tar:
        for member in [*(f"{i}.jpg" for i in range(8)), name]:
            info = tarfile.TarInfo("x.jpg" if member in ("link", "device") else member)
            if member == "link":
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            elif member == "device":
                info.type, info.devmajor, info.devminor = tarfile.CHRTYPE, 1, 5
            else:
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data) if info.size else None)
    escaped = Path(os.path.normpath(archive.parent / name))
    with fault_log(28) as trial:
        ended = tiny.server.run(*on_photos(archive, tmp_path / "run", "native"))
        trial.seconds = ended.seconds
        assert ended.code in (0, 65) and "Traceback" not in ended.text, ended.text
        assert not escaped.exists()
        assert sorted(path.name for path in archive.parent.iterdir()) == ["a.tar"]


# --- listeners ------------------------------------------------------------------------------


def test_a_run_of_one_process_listens_nowhere(
    tiny: TinyRun, tmp_path: Path, fault_log: FaultLog
) -> None:
    out = tmp_path / "run"
    endless = pairs("train.max_steps=100000", "train.epochs=10000", "sinks.tensorboard=true",
                    "data.workers=1")  # fmt: skip
    with fault_log(28) as trial:
        program = tiny.server.start(*tiny.train(out, "--loader", "reference", *endless))
        seen: set[str] = set()

        def looked() -> bool:
            for pid in program.family():
                seen.update(listening(pid))
            return (out / "samples.jsonl").exists() and (out / "samples.jsonl").stat().st_size > 0

        poll(lambda: looked() or not program.runs, "it trains")
        assert program.runs and len(program.family()) == 2
        looked()
        program.signal(15)
        ended = program.end()
        trial.seconds, trial.orphans = ended.seconds, len(ended.orphans)
        assert not seen and ended.code == 75 and trial.orphans == 0, ended.text


def test_a_listener_is_found() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)):
        assert listening(os.getpid()) == {"127.0.0.1"}
