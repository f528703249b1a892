"""Files that must be regular, folders that must last, room for open files."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from fastrot.system.files import (
    is_temporary,
    make_folder,
    open_regular,
    read_regular,
    remove_temporaries,
    temporary_path,
)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"abc")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")
    assert read_regular(tmp_path / "file") == b"abc"


def test_every_folder_on_the_way_is_made_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr("fastrot.system.files.sync_folder", synced.append)
    make_folder(tmp_path / "a" / "b", mode=0o700)
    assert synced == [tmp_path, tmp_path / "a"]
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    make_folder(tmp_path / "a" / "b")
    assert len(synced) == 2


@pytest.mark.parametrize(
    ("soft", "hard", "more", "says"),
    [(32, 4096, 100, "ok"), (32, 64, 100, "are needed and 64 allowed"), (64, 64, 8, "ok")],
)
def test_room_for_open_files(soft: int, hard: int, more: int, says: str) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 4096:
        pytest.skip("the hard limit of this machine is lower than what is tried")
    code = (
        "import os, resource\n"
        "from fastrot.errors import MismatchError\n"
        "from fastrot.system.files import allow_open_files\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        "try:\n"
        f"    allow_open_files({more})\n"
        f"    kept = [os.open('/dev/null', os.O_RDONLY) for _ in range({more})]\n"
        "    print('ok')\n"
        "except MismatchError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert says in done.stdout, done.stdout + done.stderr
    assert (says == "ok") or "ulimit -n 1024" in done.stdout


def test_what_killed_writers_left_is_told_from_other_files(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    left = temporary_path(path)
    others = [tmp_path / ".other.json.01234567.tmp", tmp_path / ".status.json.tmp", path]
    for each in (left, *others):
        each.touch()
    assert is_temporary(left.name, "a", "status.json") and not is_temporary(left.name, "a")
    remove_temporaries(tmp_path, "status.json")
    assert sorted(tmp_path.iterdir()) == sorted(others)
    remove_temporaries(tmp_path / "missing", "status.json")
