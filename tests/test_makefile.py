"""The plumbing of `make`; that a fresh clone works is shown by running it, not from here."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
import torch
import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fastrot.cli.app import app

ROOT = Path(__file__).resolve().parent.parent

if shutil.which("make") is None:
    pytest.skip("make is not installed", allow_module_level=True)


def make(
    *arguments: str, folder: Path = ROOT, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "MAKEFLAGS": "", **variables},
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The plumbing alone, in a folder whose name has spaces."""
    folder = tmp_path / "a folder with spaces"
    folder.mkdir()
    for name in ("Makefile", "setup.py", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / ".ci", folder / ".ci")
    return folder


@pytest.mark.parametrize("script", ["run", "setup", "gpu"])
def test_scripts_parse_and_may_be_run(script: str) -> None:
    path = ROOT / ".ci" / script
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert os.access(path, os.X_OK)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(path)], check=True)


def test_every_benchmark_of_the_gpu_script_is_a_command() -> None:
    """A slip of an option would show on a rented GPU only."""
    text = (ROOT / ".ci" / "gpu").read_text()
    lines = re.findall(r"^ +bench ((?:train-step|[a-z]+) .*?)(?: ;;)?$", text, re.MULTILINE)
    assert len(lines) >= 8
    group = typer.main.get_command(app).commands["bench"]
    for line in lines:
        plain = re.sub(r"\$\{\w+:\+([^}]*)\}", r"\1", line)  # as if the variable was set
        name, *arguments = shlex.split(re.sub(r"\$\{?\w+(:-[^}]*)?\}?", "5", plain))
        assert group.commands[name].make_context(name, arguments).params, line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_script_says_so() -> None:
    command = ["bash", str(ROOT / ".ci" / "gpu")]
    environment = {**os.environ, "FASTROT_PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("no GPU here: make test runs")


def test_plain_make_lists_every_target() -> None:
    shown = make().stdout
    for target in ("setup", "demo", "test", "check", "gpu", "clean", "help"):
        assert re.search(rf"^  make {target} +\S", shown, re.MULTILINE), shown


def test_the_demo_does_not_wait_for_ffcv_and_dali() -> None:
    assert ".ci/setup core" in make("-n", "demo").stdout
    assert ".ci/setup test" not in make("-n", "demo").stdout
    assert ".ci/setup test" in make("-n", "test").stdout


def test_continuous_integration_runs_the_command_of_the_readme() -> None:
    commands = re.findall(r"^make .*", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert [command.split(" 2>")[0] for command in commands] == ["make test"]


def test_an_old_python_is_refused_with_the_fix(copy: Path) -> None:
    old = copy / "old python"
    old.write_text(
        '#!/bin/sh\ncase "$1" in -c) exit 1;; -V) echo "Python 3.9.2";; esac\n', encoding="utf-8"
    )
    old.chmod(0o755)
    done = make("setup", f"PYTHON={old}", folder=copy)
    assert done.returncode != 0
    assert "is Python 3.9.2, but fastrot needs Python 3.11 or newer" in done.stderr
    assert "make PYTHON=" in done.stderr


def test_a_missing_python_is_refused_with_the_fix(copy: Path) -> None:
    done = make("setup", "PYTHON=no-such-python", folder=copy)
    assert done.returncode != 0
    assert "no-such-python: not found" in done.stderr
    assert "apt-get install -y python3 python3-venv" in done.stderr


def setup_functions(copy: Path, commands: str, **variables: str) -> str:
    """Run commands after the functions of .ci/setup, without its last part, which acts."""
    script = (copy / ".ci" / "setup").read_text()
    functions, found, _ = script.partition("\nmake_venv\n")
    assert found
    (copy / ".ci" / "part").write_text(functions + "\n" + commands)
    (copy / ".venv" / "bin").mkdir(parents=True)
    python = copy / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", str(copy / ".ci" / "part"), "core"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **variables},
    )
    return done.stdout + f"exit {done.returncode}\n"


def test_without_rights_the_exact_command_is_printed_and_set_up_goes_on(copy: Path) -> None:
    shown = setup_functions(
        copy, 'system_packages "it is slower" g++ libjpeg-dev; echo on', FASTROT_APT="0"
    )
    assert "sudo apt-get update && sudo apt-get install -y g++ libjpeg-dev" in shown
    assert "it is slower" in shown
    assert shown.endswith("on\nexit 0\n")


def test_nothing_missing_says_nothing(copy: Path) -> None:
    assert setup_functions(copy, 'system_packages "cost"') == "exit 0\n"


def test_a_failed_step_shows_its_words_and_stops(copy: Path) -> None:
    shown = setup_functions(
        copy, "attempt work bash -c 'echo the reason; exit 3' || exit 9; echo never"
    )
    assert "work: failed" in shown
    assert "| the reason" in shown
    assert "never" not in shown
    assert shown.endswith("exit 9\n")


def test_a_stage_is_repeated_only_when_something_changed(copy: Path) -> None:
    (copy / "kernels" / "decode" / "native").mkdir(parents=True)
    for name in ("native.cpp", "decode/native/decode.cpp"):
        (copy / "kernels" / name).write_text("int a;")
    commands = (
        "headers=(); python_header=/none\n"
        "is_done core && echo early; mark_done core; is_done core && echo done\n"
        "echo 'int b;' >kernels/native.cpp; is_done core || echo again\n"
        "mark_done core; echo '# x' >>constraints.txt; is_done core || echo again\n"
        "headers=(setup.py); mark_done core; headers=(); is_done core || echo again\n"
    )
    assert setup_functions(copy, commands) == "done\nagain\nagain\nagain\nexit 0\n"


@pytest.mark.parametrize(("ci", "code"), [("true", 1), ("", 0)])
def test_a_missing_loader_is_fatal_in_ci_only(copy: Path, ci: str, code: int) -> None:
    commands = (
        "is_done() { false; }; install_extra() { echo no opencv; return 1; }\n"
        'engine FFCV ffcv ffcv "no --loader ffcv"\n'
    )
    shown = setup_functions(copy, commands, CI=ci)
    assert "| no opencv" in shown
    assert "FFCV is missing" in shown
    assert shown.endswith(f"exit {code}\n")


def test_an_extra_is_what_the_installed_fastrot_asks_for(copy: Path) -> None:
    commands = 'install() { shift; echo "$*"; }; install_extra ffcv; install_extra test\n'
    shown = setup_functions(copy, commands)
    assert shown.splitlines()[0] == "ffcv==1.0.2"
    assert {"pytest", "hypothesis", "ruff", "mypy", "import-linter"} <= set(
        shown.splitlines()[1].split()
    )


def test_every_requirement_is_pinned_to_a_version_that_it_allows() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(k): v for k, _, v in (ln.partition("==") for ln in lines) if v}
    needs = [Requirement(line) for line in requires("fastrot") or []]
    assert len(needs) > 15
    for need in needs:
        pin = pins.get(canonicalize_name(need.name))
        assert pin is not None, f"{need.name} is not in constraints.txt"
        assert need.specifier.contains(pin), f"{need} does not allow {pin}"
