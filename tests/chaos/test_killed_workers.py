"""Rows 10, 14 and 17: a program and its worker processes, one of which dies or has no memory."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from fastrot.data.beton.verify import verify
from tests.chaos.mounted import mounted
from tests.chaos.photos import Photos, train_on
from tests.chaos.test_bad_samples import logged
from tests.conftest import FaultLog
from tests.program import Program, Server

ENDLESS = ("train.epochs=100000", "train.checkpoint_steps=1000000", "data.workers=2")
CHAOS = pytest.mark.chaos


def workers_of(program: Program) -> list[int]:
    return sorted(pid for pid in program.family() if pid != program.pid)


@pytest.fixture(scope="module")
def many(photos: Photos, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos enough that a conversion takes a second."""
    folder = tmp_path_factory.mktemp("many")
    for i in range(25):
        for source in photos.folder.iterdir():
            (folder / source.name).mkdir(exist_ok=True)
            for file in source.iterdir():
                shutil.copy(file, folder / source.name / f"{i}-{file.name}")
    return folder


# --- training -------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [("KILL", 71), pytest.param("SEGV", 70, marks=CHAOS)])
def test_a_worker_of_the_loader_dies(
    number: str, code: int, photos: Photos, server: Server, tmp_path: Path, fault_log: FaultLog
) -> None:
    """SIGKILL is what the kernel sends when memory is short."""
    out = tmp_path / "run"
    with fault_log(14 if number == "KILL" else 17) as trial:
        program = server.start(*train_on(photos.folder, out, "reference", *ENDLESS))
        program.until(lambda: logged(out), "training begins")
        workers = workers_of(program)
        assert len(workers) == 2, program.output.read_text()
        since = time.time()
        os.kill(workers[0], getattr(signal, f"SIG{number}"))
        ended = program.end(10)
        trial.seconds, trial.orphans = ended.at - since, len(ended.orphans)
        assert ended.code == code, ended.text
        assert "Traceback" not in ended.text and f"worker process {workers[0]}" in ended.line
        assert trial.orphans == 0


@pytest.mark.chaos
@pytest.mark.parametrize("loader", ["reference", pytest.param("dali", marks=CHAOS)])
def test_workers_end_with_a_killed_trainer(
    loader: str, photos: Photos, server: Server, tmp_path: Path, fault_log: FaultLog
) -> None:
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    out = tmp_path / "run"
    with fault_log(10) as trial:
        program = server.start(*train_on(photos.folder, out, loader, *ENDLESS))
        program.until(lambda: logged(out), "training begins")
        since = program.signal(signal.SIGKILL)
        ended = program.end()
        trial.seconds, trial.orphans = ended.at - since, len(ended.orphans)
        assert ended.code == -signal.SIGKILL and trial.orphans == 0, ended.orphans


@pytest.mark.chaos
def test_too_little_memory(
    photos: Photos, server: Server, tmp_path: Path, fault_log: FaultLog
) -> None:
    """A batch that does not fit: said in a line, with what to make smaller."""
    settings = ("model.width=64", "data.resolution=224", "train.global_batch=64")
    with fault_log(14) as trial:
        ended = server.run(
            *train_on(photos.folder, tmp_path / "run", "reference", *settings, "data.workers=0"),
            limits={"AS_MORE": 2**30},
        )
        trial.seconds = ended.seconds
        assert ended.code == 71, ended.text
        assert "out of memory" in ended.line and "train.micro_batch" in ended.line
        assert "Traceback" not in ended.text


# --- converting -----------------------------------------------------------------------------


def prepare(source: Path, out: Path) -> list[str]:
    return ["prepare", str(source), str(out), "--workers", "2", "--quality", "90", "--max-side",
            "100", "--page-size", "2097152"]  # fmt: skip


@pytest.mark.parametrize("victim", ["parent", "worker"])
@pytest.mark.parametrize(
    "moment", [pytest.param(0.0, marks=CHAOS), 0.2, pytest.param(0.6, marks=CHAOS)]
)
def test_a_conversion_is_killed(
    victim: str, moment: float, many: Path, server: Server, tmp_path: Path, fault_log: FaultLog
) -> None:
    out = tmp_path / "o.beton"
    with fault_log(10) as trial:
        program = server.start(*prepare(many, out))
        program.until(lambda: len(workers_of(program)) == 2, "the workers are there")
        time.sleep(moment)
        workers = workers_of(program)
        assert len(workers) == 2, program.output.read_text()
        since = time.time()
        os.kill(program.pid if victim == "parent" else workers[0], signal.SIGKILL)
        ended = program.end()
        trial.seconds, trial.orphans = ended.at - since, len(ended.orphans)
        assert ended.code == (-signal.SIGKILL if victim == "parent" else 71), ended.text
        assert trial.seconds < 60 and trial.orphans == 0, ended.orphans
        assert not out.exists()
        again = server.run(*prepare(many, out), "--resume")
        assert again.code == 0, again.text
        assert verify(out, progress=False).exit_code == 0
        left = {path.name for path in tmp_path.iterdir()}
        assert all(name == out.name or name.startswith(f"{out.name}.") for name in left), left
        assert not any(".tmp" in name or "journal" in name or "lock" in name for name in left), left


@pytest.mark.chaos
def test_the_disk_is_full_while_converting(
    many: Path, server: Server, tmp_path: Path, fault_log: FaultLog
) -> None:
    with mounted(tmp_path / "disk", 5 * 2**20) as disk, fault_log(10) as trial:
        ended = server.run(*prepare(many, disk.folder / "o.beton"), namespace=disk.namespace)
        trial.seconds, trial.orphans = ended.seconds, len(ended.orphans)
        assert ended.code == 74, ended.text
        assert "Traceback" not in ended.text and str(disk.folder / "o.beton") in ended.line
        assert not (disk.seen / "o.beton").exists() and trial.orphans == 0
        disk.remount("size=100m")
        again = server.run(
            *prepare(many, disk.folder / "o.beton"), "--resume", namespace=disk.namespace
        )
        assert again.code == 0, again.text


@pytest.mark.chaos
def test_a_source_image_is_bad(
    photos: Photos, server: Server, tmp_path: Path, fault_log: FaultLog
) -> None:
    data = photos.copy(tmp_path, beton=False)
    bad = sorted(data.rglob("*.jpg"))[9]
    os.truncate(bad, 700)
    with fault_log(10) as trial:
        ended = server.run(*prepare(data, tmp_path / "o.beton"))
        trial.seconds, trial.orphans = ended.seconds, len(ended.orphans)
        assert ended.code == 65 and bad.name in ended.line, ended.text
        assert not (tmp_path / "o.beton").exists() and trial.orphans == 0
