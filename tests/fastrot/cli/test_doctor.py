from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from fastrot.cli import doctor as module
from fastrot.cli.doctor import Item, Report
from fastrot.kernels import dispatch


def run(
    paths: Path | None = None, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, **environment}
    if paths is not None:
        variables["PYTHONPATH"] = str(paths)
    return subprocess.run(
        [sys.executable, "-m", "fastrot", "doctor", *arguments],
        capture_output=True,
        text=True,
        env=variables,
        check=False,
    )


@pytest.mark.slow
def test_it_reports_this_machine_and_leaves_with_0() -> None:
    done = run(None, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    items = {item["name"]: item for item in report["items"]}
    import torch

    assert torch.__version__ in items["torch"]["found"]
    assert items["torchvision"]["verdict"] == "good"
    for name in ("Python", "fastrot", "compiled kernels", "FFCV", "NVIDIA DALI", "NVIDIA apex"):
        assert name in items
    assert {"cores", "memory", "open files", "TensorBoard", "submitit"} <= set(items)
    assert report["problems"] == sum(i["verdict"] == "problem" for i in report["items"])


@pytest.mark.slow
def test_broken_packages_are_lines_of_the_report_and_not_its_end(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.99: no such file')")
    (tmp_path / "ffcv").mkdir()
    (tmp_path / "ffcv" / "__init__.py").touch()
    (tmp_path / "ffcv" / "_libffcv.so").write_bytes(b"not a library")
    (tmp_path / "nvidia").mkdir()
    (tmp_path / "nvidia" / "dali.py").write_text("import os\nos.kill(os.getpid(), 11)")
    (tmp_path / "nvidia" / "__init__.py").touch()
    dali = tmp_path / "nvidia_dali_cuda130-2.4.0.dist-info"
    dali.mkdir()
    (dali / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: nvidia-dali-cuda130\nVersion: 2.4.0\n"
    )
    (tmp_path / "apex.py").write_text("raise RuntimeError('pyramid must not be imported')")
    information = tmp_path / "apex-0.9.10.dev0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 1.1\nName: apex\nVersion: 0.9.10dev\n")
    ffcv = tmp_path / "ffcv-1.0.2.dist-info"
    ffcv.mkdir()
    (ffcv / "METADATA").write_text("Metadata-Version: 2.1\nName: ffcv\nVersion: 1.0.2\n")

    done = run(tmp_path, "--json", FASTROT_KERNELS="no-such")
    assert done.returncode == 0, done.stderr
    items = {item["name"]: item for item in json.loads(done.stdout)["items"]}
    assert "libcudart.so.99" in items["torch"]["found"]
    assert "crashes on import (signal 11)" in items["NVIDIA DALI"]["found"]
    assert "_libffcv.so" in items["FFCV"]["found"]
    assert "apt-get install" in items["FFCV"]["fix"]
    assert "Pyramid web toolkit" in items["NVIDIA apex"]["meaning"]
    assert "git clone https://github.com/NVIDIA/apex" in items["NVIDIA apex"]["fix"]
    assert "no-such" in items["kernel"]["found"]
    assert items["kernel"]["fix"] == "unset FASTROT_KERNELS"


def test_what_is_absent_is_named_with_its_cost_and_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "version", lambda _: None)
    monkeypatch.setattr(module, "dali_version", lambda: None)
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    monkeypatch.setattr(module, "find_library", lambda _: None)
    checks = (module._triton, module._ffcv, module._dali, module._apex, module._turbojpeg)
    items = [item for check in checks for item in check()] + module._sinks()
    assert {item.verdict for item in items} == {"absent"}
    assert all(item.meaning for item in items)
    report = Report(tuple(items))
    assert "libopencv-dev libturbojpeg0-dev" in report["FFCV"].fix
    assert report["FFCV"].fix.endswith("pip install ffcv==1.0.2")
    assert report["NVIDIA DALI"].fix == "pip install nvidia-dali-cuda130"
    assert report["MLflow"].fix == "pip install mlflow"


@pytest.mark.parametrize(
    ("check", "versions", "words"),
    [
        ("_dali", {"nvidia-dali": "1.7.0"}, "empty placeholder"),
        ("_ffcv", {"ffcv": "1.1.0"}, "tested with 1.0.2 only"),
    ],
)
def test_the_wrong_package_is_told_apart(
    check: str, versions: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "version", versions.get)
    monkeypatch.setattr(module, "dali_version", lambda: None)
    monkeypatch.setattr(module, "_run_python", lambda _: (True, ""))
    (item,) = getattr(module, check)()
    assert item.verdict == "problem"
    assert words in item.meaning
    assert item.fix


def test_an_old_dali_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "dali_version", lambda: "2.2.0")
    (item,) = module._dali()
    assert (item.verdict, item.fix) == ("problem", "pip install -U nvidia-dali-cuda130")


@pytest.mark.parametrize(
    ("release", "verdict"), [("2.9.1+cpu", "problem"), ("2.10.0", "good"), ("3.0.0a0", "good")]
)
def test_the_floor_of_torch(release: str, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"version": release, "cuda": "13.0", "gpus": [["H", 2**37, 9]]}
    record |= {"vision": "", "problem": "RuntimeError: operator torchvision::nms does not exist"}
    monkeypatch.setattr(module, "_run_python", lambda _: (True, json.dumps(record)))
    torch, torchvision, gpu = module._torch()
    assert torch.verdict == verdict
    assert torchvision.verdict == "problem"
    assert "torchvision::nms" in torchvision.found
    assert (gpu.found, gpu.meaning) == ("H, 128 GiB", "trains in bf16")


def test_the_compilers_error_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    words = (
        "the compiled extension did not build: CompileError: exit status 1\n"
        "c++ -O3 native.cpp\n"
        "native.cpp:3:10: fatal error: Python.h: No such file or directory\n"
    )
    monkeypatch.setattr(dispatch, "native_problem", lambda: words)
    item = module._kernels()[0]
    assert item.verdict == "problem"
    assert "Python.h: No such file" in item.found
    assert "slower" in item.meaning
    assert f"python3.{sys.version_info.minor}-dev libjpeg-dev" in item.fix


def test_few_file_descriptors_are_a_problem() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
        item = Report(tuple(module._limits()))["open files"]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert item.verdict == "problem"
    assert item.fix.startswith("ulimit -n ")


def test_commands_are_printed_whole_and_problems_first() -> None:
    long = "sudo apt-get install -y " + " ".join(f"package{i}" for i in range(20))
    items = (
        Item("a", "absent", "not installed", "costs", "pip install a"),
        Item("b", "problem", "[red]old[/red]", "hurts", long),
        Item("c", "good", "1.0"),
    )
    console = Console(file=io.StringIO(), width=60)
    Report(items).show(console)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert f"    {long}\n" in shown
    assert "[red]old[/red]" in shown
    assert shown.index(long) < shown.index("pip install a")


def test_importing_the_doctor_imports_nothing_heavy() -> None:
    code = (
        "import sys, fastrot.cli.doctor;"
        "print([m for m in ('torch', 'ffcv', 'numba', 'nvidia.dali') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
