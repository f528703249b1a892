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
    free_memory,
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


V1_FILES = ("limit_in_bytes", "usage_in_bytes")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("tightest", ["job/step", "job", ""])
def test_free_memory_is_that_of_the_tightest_group(
    version: int, tightest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    membership = tmp_path / "membership"
    root = tmp_path / "memory" if version == 1 else tmp_path
    membership.write_text("0::/job/step\n" if version == 2 else "4:memory,cpu:/job/step\n0::/\n")
    names = V1_FILES if version == 1 else ("max", "current")
    cache = "total_inactive_file" if version == 1 else "inactive_file"
    for place in ("job/step", "job", ""):
        limit = 50 * 2**20 if place == tightest else 10**9
        (root / place).mkdir(parents=True, exist_ok=True)
        for name, number in zip(names, (limit, 30 * 2**20), strict=True):
            (root / place / f"memory.{name}").write_text(f"{number}\n")
        (root / place / "memory.stat").write_text(f"anon 1\n{cache} {10 * 2**20}\n")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(machine, "_MEMBERSHIP", membership)
    assert free_memory() == 30 * 2**20  # what caches hold is given back
    assert usable_memory() == 50 * 2**20


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
