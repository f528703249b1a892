"""Row 31: little shared memory, few open files, few processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.mounted import mounted
from tests.chaos.photos import Photos, train_on
from tests.conftest import FaultLog
from tests.program import Server

CHAOS = pytest.mark.chaos


@pytest.mark.chaos
@pytest.mark.parametrize(
    "loader",
    ["reference", *(pytest.param(x, marks=pytest.mark.chaos) for x in ("native", "dali", "ffcv"))],
)
def test_shared_memory_of_a_megabyte(
    loader: str, photos: Photos, server: Server, tmp_path: Path, fault_log: FaultLog
) -> None:
    """As in a container without --shm-size: workers send their images another way."""
    if loader in ("ffcv", "dali"):
        pytest.importorskip({"ffcv": "ffcv", "dali": "nvidia.dali"}[loader])
    data = photos.beton if loader == "ffcv" else photos.folder
    with mounted(Path("/dev/shm"), 2**20) as disk, fault_log(31) as trial:
        ended = server.run(
            *train_on(data, tmp_path / "run", loader, "data.workers=2", "data.resolution=128"),
            namespace=disk.namespace,
        )
        trial.seconds, trial.orphans = ended.seconds, len(ended.orphans)
        assert ended.code == 0, ended.text
        assert trial.orphans == 0


@pytest.mark.parametrize(
    "files", [8, 64, pytest.param(24, marks=CHAOS), pytest.param(100, marks=CHAOS)]
)
def test_few_open_files(
    files: int, photos: Photos, server: Server, tmp_path: Path, fault_log: FaultLog
) -> None:
    """It trains, or says that the limit is too low and how to raise it."""
    arguments = train_on(photos.folder, tmp_path / "run", "reference", "data.workers=32")
    with fault_log(31) as trial:
        ended = server.run(*arguments, limits={"NOFILE": files})
        trial.seconds, trial.orphans = ended.seconds, len(ended.orphans)
        assert ended.code == 78, ended.text
        assert "Traceback" not in ended.text and "ulimit -n" in ended.line, ended.text
        assert trial.orphans == 0
