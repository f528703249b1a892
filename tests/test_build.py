"""What pip makes of this project: sdist, wheel, editable install, with and without a compiler.

Everything is built from a copy, so that the checkout keeps its own extension, and run outside
the checkout, so that only what was installed can be found.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
OFFLINE = ("--no-deps", "--no-build-isolation", "--no-cache-dir")

LOOK = """
import io, json, os
import numpy as np
from PIL import Image
import fastrot
from fastrot.system.yaml_config import shipped_names
from fastrot.kernels import dispatch
from fastrot.kernels.decode.op import decode_jpeg

file = io.BytesIO()
Image.fromarray(np.full((9, 7, 3), 90, np.uint8)).save(file, "JPEG")
report = {
    "where": fastrot.__file__,
    "version": fastrot.__version__,
    "recipes": shipped_names(),
    "pixel": decode_jpeg(file.getvalue())[8, 6].tolist(),
    "native": dispatch.native_problem(),
    "decode": dispatch.decode_problem(),
}
os.environ[dispatch.VARIABLE] = "cpp"
try:
    report["forced"] = dispatch.choose("rotate_views").implementation
except dispatch.KernelUnavailableError as error:
    report["forced"] = str(error)
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as a fresh clone has it: links kept, nothing compiled."""
    copy = tmp_path_factory.mktemp("clone")
    ignore = shutil.ignore_patterns("*.so", "_native_error.txt", "__pycache__", "results")
    for name in ("fastrot", "kernels", "benchmarks", "configs"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignore)
    for path in (*ROOT.glob("*.py"), *ROOT.glob("*.toml"), *ROOT.glob("*.in"), *ROOT.glob("*.md")):
        shutil.copy(path, copy)
    return copy


@pytest.fixture(scope="module")
def sdist(source: Path) -> Path:
    subprocess.run([sys.executable, "setup.py", "-q", "sdist"], cwd=source, check=True, timeout=300)
    (archive,) = (source / "dist").glob("fastrot-*.tar.gz")
    return archive


def compiler(folder: Path, *lines: str) -> dict[str, str]:
    """Environment whose C++ compiler is a shell script of these lines."""
    script = folder / "compiler"
    script.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return {**os.environ, "CC": str(script), "CXX": str(script)}


def install(archive: Path, folder: Path, environment: dict[str, str]) -> Path:
    """Build a wheel from the sdist and unpack it into a folder of its own."""
    wheels, target = folder / "wheels", folder / "target"
    command = [*PIP, "wheel", *OFFLINE, "-w", str(wheels), str(archive)]
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=300)
    (wheel,) = wheels.iterdir()
    command = [*PIP, "install", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(command, cwd=folder, check=True, timeout=300)
    return target


def look(target: Path) -> dict[str, object]:
    """What an interpreter outside the checkout sees of the installation."""
    environment = {**os.environ, "PYTHONPATH": str(target)}
    environment.pop("FASTROT_KERNELS", None)
    done = subprocess.run(
        [sys.executable, "-c", LOOK],
        cwd=target.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    report: dict[str, object] = json.loads(done.stdout)
    assert Path(str(report["where"])).is_relative_to(target)
    assert report["recipes"] == sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
    assert report["pixel"] == [90, 90, 90]
    return report


@pytest.mark.chaos
def test_a_broken_compiler_is_survived_and_quoted(sdist: Path, tmp_path: Path) -> None:
    environment = compiler(tmp_path, "echo 'the linker is on holiday' >&2", "exit 1")
    report = look(install(sdist, tmp_path, environment))
    assert "the compiled extension did not build" in str(report["native"])
    assert "the linker is on holiday" in str(report["native"])
    assert "the linker is on holiday" in str(report["forced"])


def test_a_missing_compiler_is_survived_and_named(sdist: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "CC": "no-such-compiler", "CXX": "no-such-compiler"}
    report = look(install(sdist, tmp_path, environment))
    assert "no-such-compiler" in str(report["native"])


@pytest.mark.chaos
def test_without_libjpeg_the_rest_is_compiled(sdist: Path, tmp_path: Path) -> None:
    headers = tmp_path / "headers"
    headers.mkdir()
    (headers / "jpeglib.h").write_text("#error no libjpeg here\n")
    # without optimisation: quick to build, and all that is asked of it is to work
    environment = compiler(tmp_path, f'exec g++ -I"{headers}" "$@" -O0')
    report = look(install(sdist, tmp_path, environment))
    assert report["native"] is None
    assert "built without libjpeg-turbo" in str(report["decode"])
    assert report["forced"] == "cpp"


@pytest.mark.chaos
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_an_editable_install_builds_and_mends_in_place(source: Path, tmp_path: Path) -> None:
    kernels = source / "kernels"
    command = [*PIP, "install", *OFFLINE, "--target", str(tmp_path / "a"), "-e", str(source)]
    broken = compiler(tmp_path, "exit 1")
    subprocess.run(command, env=broken, check=True, timeout=300)
    assert (kernels / "_native_error.txt").is_file()
    assert not list(kernels.glob("_native*.so"))

    command[command.index(str(tmp_path / "a"))] = str(tmp_path / "b")
    quick = compiler(tmp_path, 'exec g++ "$@" -O0')
    subprocess.run(command, env=quick, check=True, timeout=300)
    assert not (kernels / "_native_error.txt").exists()
    report = look(source)
    assert (report["native"], report["forced"]) == (None, "cpp")
    if Path("/usr/include/jpeglib.h").is_file():
        assert report["decode"] is None

    command[command.index(str(tmp_path / "b"))] = str(tmp_path / "c")
    subprocess.run(command, env=compiler(tmp_path, "exit 1"), check=True, timeout=300)
    assert not list(kernels.glob("_native*.so")), "a stale extension hides the failure"
