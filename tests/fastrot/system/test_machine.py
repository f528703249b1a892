from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastrot.system import machine
from fastrot.system.machine import (
    decoding_workers,
    environment_record,
    usable_cores,
    usable_memory,
)


def test_the_record_is_plain_json_and_names_what_a_number_depends_on() -> None:
    import torch

    record = json.loads(json.dumps(environment_record()))
    assert record["packages"]["torch"]
    assert record["cores"] >= 1
    assert record["threads"] == torch.get_num_threads()
    assert record["command"] == sys.argv


def test_cores_follow_the_affinity_mask() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from fastrot.system.machine import usable_cores; print(usable_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_cores_follow_the_quota_of_the_container(
    files: dict[str, str], cores: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert usable_cores() == (cores or 64)


def test_memory_follows_the_limit_of_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    installed = usable_memory()
    assert installed > 2**28
    (tmp_path / "memory.max").write_text("1048576\n")
    assert usable_memory() == 2**20
    (tmp_path / "memory.max").write_text("max\n")
    assert usable_memory() == installed


def test_the_commit_is_that_of_the_checkout(tmp_path: Path) -> None:
    checkout = Path(machine.__file__).resolve().parents[2]
    if not (checkout / ".git").exists() or shutil.which("git") is None:
        pytest.skip("fastrot does not run from a git checkout here")
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True
    )
    commit = machine.git_commit()
    assert commit is not None
    assert commit.removesuffix("-dirty") == head.stdout.strip()


def test_the_module_imports_no_torch() -> None:
    code = (
        "import sys; from fastrot.system.machine import environment_record; environment_record();"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("on_gpu", "ranks", "workers"), [(True, 1, 8), (False, 1, 4), (True, 2, 4), (False, 16, 1)]
)
def test_who_decodes_where_no_setting_says(
    monkeypatch: pytest.MonkeyPatch, on_gpu: bool, ranks: int, workers: int
) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 8)
    assert decoding_workers(on_gpu=on_gpu, local_ranks=ranks) == workers
