"""``fastrot doctor``: what is installed, what that means, and what to type.

Third-party packages are imported in separate processes, in parallel: one that crashes on import
(a binary built for another version) becomes a line of the report instead of ending it.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ctypes.util import find_library
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastrot import __version__
from fastrot.kernels import dispatch
from fastrot.system.machine import dali_version, git_commit, usable_cores, usable_memory, version

Verdict = Literal["good", "absent", "problem"]

_IMPORT_SECONDS = 120
_GIB = 2**30
_PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
_PIP = "pip install"
_FFCV_PACKAGES = "g++ pkg-config libopencv-dev libturbojpeg0-dev"
_MARKS: dict[Verdict, tuple[str, str]] = {
    "good": ("✓", "green"),
    "absent": ("–", "dim"),
    "problem": ("!", "bold yellow"),
}


@dataclass(frozen=True)
class Item:
    """One line of the report.

    Attributes:
        name: what was checked.
        verdict: ``good``; ``absent``: optional and not installed; ``problem``: should be fixed.
        found: what is there.
        meaning: what follows from it, and what it costs.
        fix: command to type; empty if there is none.
    """

    name: str
    verdict: Verdict
    found: str
    meaning: str = ""
    fix: str = ""


@dataclass(frozen=True)
class Report:
    """All lines, in order; a missing package is not an error."""

    items: tuple[Item, ...]
    exit_code: int = 0

    def __getitem__(self, name: str) -> Item:
        return next(item for item in self.items if item.name == name)

    def to_json(self) -> dict[str, Any]:
        """Return ``problems`` (their number) and ``items`` as plain JSON values."""
        problems = sum(item.verdict == "problem" for item in self.items)
        return {"problems": problems, "items": [asdict(item) for item in self.items]}

    def show(self, console: Console) -> None:
        """Print the table, then the commands below it, where they can be copied whole."""
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("")
        table.add_column("what", no_wrap=True)
        table.add_column("found", overflow="fold")
        table.add_column("what it means", overflow="fold")
        for item in self.items:
            mark, style = _MARKS[item.verdict]
            found = Text(item.found, style="dim" if item.verdict == "absent" else "")
            name = Text(item.name, style="bold" if item.verdict == "problem" else "")
            table.add_row(Text(mark, style=style), name, found, Text(item.meaning))
        console.print(table)
        fixes = [item for item in self.items if item.fix]
        if fixes:
            console.print("\nWhat to type:", style="bold", highlight=False)
        for item in sorted(fixes, key=lambda item: item.verdict == "absent"):
            mark, style = _MARKS[item.verdict]
            console.print(Text.assemble((f"{mark} ", style), f"{item.name}:"))
            console.print(Text(f"    {item.fix}", style="cyan"), soft_wrap=True)


def examine() -> Report:
    """Examine this machine and return what was found; slow checks (imports) run in parallel."""
    checks: tuple[Callable[[], list[Item]], ...] = (
        _fastrot, _torch, _kernels, _triton, _ffcv, _dali, _apex, _turbojpeg,
        _machine, _limits, _sinks,
    )  # fmt: skip
    with (
        Console(stderr=True).status("importing the installed packages to see whether they work"),
        ThreadPoolExecutor(max_workers=max(2, min(4, usable_cores()))) as pool,
    ):
        found = list(pool.map(lambda check: check(), checks))
    return Report(tuple(item for items in found for item in items))


def _fastrot() -> list[Item]:
    commit = (git_commit() or "").replace("-dirty", " and edits")
    return [
        Item("Python", "good", f"{platform.python_version()} ({sys.executable})"),
        Item("fastrot", "good", __version__ + (f", commit {commit}" if commit else "")),
    ]


def _torch() -> list[Item]:
    ok, words = _run_python(
        "import json, torch\n"
        "try:\n"
        "    import torchvision\n"
        "    vision, problem = torchvision.__version__, ''\n"
        "except Exception as error:\n"  # whatever a build for another torch raises
        "    vision, problem = '', f'{type(error).__name__}: {error}'\n"
        "cuda = torch.cuda.is_available()\n"
        "gpus = [torch.cuda.get_device_properties(i) for i in "
        "range(torch.cuda.device_count() if cuda else 0)]\n"
        "print(json.dumps({'version': torch.__version__, 'cuda': torch.version.cuda,\n"
        "  'vision': vision, 'problem': problem,\n"
        "  'gpus': [[p.name, p.total_memory, p.major] for p in gpus]}))"
    )
    if not ok:
        fix = f"{_PIP} torch torchvision"
        return [Item("torch", "problem", words, "nothing can be trained", fix)]
    record: dict[str, Any] = json.loads(words)
    release = record["version"]
    if _number(release) < (2, 10):
        meaning = "older than 2.10: loading weight files has known security holes"
        items = [Item("torch", "problem", release, meaning, f"{_PIP} -U torch torchvision")]
    else:
        items = [Item("torch", "good", f"{release}, built for CUDA {record['cuda'] or '-'}")]
    if record["vision"]:
        items.append(Item("torchvision", "good", record["vision"]))
    else:
        meaning = "the reference loader needs it; it must be the release made for this torch"
        fix = f"{_PIP} --force-reinstall torch torchvision"
        items.append(Item("torchvision", "problem", record["problem"], meaning, fix))
    return items + _gpus(record["gpus"])


def _gpus(gpus: list[tuple[str, int, int]]) -> list[Item]:
    """Return one item per GPU, given (name, memory in bytes, major compute capability)."""
    if gpus:
        kinds = ["bf16" if major >= 8 else "fp16 with loss scaling" for _, _, major in gpus]
        return [
            Item("GPU", "good", f"{name}, {memory / _GIB:.0f} GiB", f"trains in {kind}")
            for (name, memory, _), kind in zip(gpus, kinds, strict=True)
        ]
    slow = "trains on the CPU in fp32: fine for the digits, days for ImageNet"
    if shutil.which("nvidia-smi") is None:
        return [Item("GPU", "absent", "none", slow)]
    why = "torch cannot use it: its driver is too old, or torch is a CPU build"
    return [Item("GPU", "problem", "driver found", f"{why}; {slow}", "nvidia-smi")]


def _kernels() -> list[Item]:
    items = []
    native = dispatch.native_problem()
    decode = native or dispatch.decode_problem()
    if decode is None:
        from fastrot.kernels import _native

        found = f"built, with libjpeg-turbo {_native.libjpeg_version}"
        items.append(Item("compiled kernels", "good", found))
    else:
        needs = f"sudo apt-get install -y g++ {_PYTHON}-dev libjpeg-dev && {_rebuild()}"
        if native is None:
            found, cost = "built without JPEG decoding", "Pillow decodes, and misses some damage"
        else:
            found, cost = _first_error(native), "plain torch rotates and Pillow decodes: slower"
        items.append(Item("compiled kernels", "problem", found, cost, needs))
    for choice in dispatch.plan():
        if isinstance(choice, dispatch.KernelUnavailableError):
            unset = f"unset {dispatch.VARIABLE}"
            items.append(Item("kernel", "problem", str(choice), "forced, but cannot run", unset))
        else:
            name = f"{choice.operation} on {choice.device}"
            items.append(Item(name, "good", choice.implementation, _first_error(choice.reason)))
    return items


def _triton() -> list[Item]:
    found = version("triton")
    if found:
        return [Item("Triton", "good", found, "compiles the GPU kernels")]
    return [Item("Triton", "absent", "not installed", "only matters on a GPU: the reference runs")]


def _ffcv() -> list[Item]:
    found = version("ffcv")
    cost = "no --loader ffcv; fastrot reads and writes .beton files without it"
    fix = f"sudo apt-get install -y {_FFCV_PACKAGES} && {_PIP} ffcv==1.0.2"
    if found is None:
        return [Item("FFCV", "absent", "not installed", cost, fix)]
    # Load its library and its dependencies only: `import ffcv` compiles for ten seconds.
    ok, words = _run_python(
        "import ctypes, importlib.util, pathlib, cv2, numba\n"
        "spec = importlib.util.find_spec('ffcv')\n"
        "folder = pathlib.Path(spec.submodule_search_locations[0])\n"
        "ctypes.CDLL(str(next(folder.glob('_libffcv*.so'))))"
    )
    if not ok:
        fix = f"sudo apt-get install -y {_FFCV_PACKAGES} && {_PIP} --force-reinstall --no-deps "
        return [Item("FFCV", "problem", f"{found}: {words}", cost, fix + "ffcv==1.0.2")]
    if found != "1.0.2":
        meaning = "tested with 1.0.2 only"
        return [Item("FFCV", "problem", found, meaning, f"{_PIP} ffcv==1.0.2")]
    return [Item("FFCV", "good", found, "--loader ffcv")]


def _dali() -> list[Item]:
    found = dali_version()
    cost = "no --loader dali"
    fix = f"{_PIP} nvidia-dali-cuda130"
    if found is None:
        if placeholder := version("nvidia-dali"):
            meaning = f"nvidia-dali {placeholder} is an empty placeholder; {cost}"
            fix = f"pip uninstall -y nvidia-dali && {fix}"
            return [Item("NVIDIA DALI", "problem", "placeholder", meaning, fix)]
        return [Item("NVIDIA DALI", "absent", "not installed", cost, fix)]
    if _number(found) < (2, 3):
        meaning = f"older than 2.3, with known security holes; {cost}"
        return [Item("NVIDIA DALI", "problem", found, meaning, f"{_PIP} -U nvidia-dali-cuda130")]
    ok, words = _run_python("import nvidia.dali")
    if not ok:
        fix = f"{_PIP} --force-reinstall nvidia-dali-cuda130"
        return [Item("NVIDIA DALI", "problem", f"{found}: {words}", cost, fix)]
    return [Item("NVIDIA DALI", "good", found, "--loader dali")]


def _apex() -> list[Item]:
    build = "APEX_CPP_EXT=1 APEX_CUDA_EXT=1 APEX_BNP=1 pip install -v --no-build-isolation ."
    source = "git clone https://github.com/NVIDIA/apex && cd apex && " + build
    found = version("apex")
    if found is None and find_spec("apex") is None:
        meaning = "optional: torch's fused optimizers are used. PyPI's `apex` is another program"
        return [Item("NVIDIA apex", "absent", "not installed", meaning)]
    # PyPI's `apex` (0.9.10dev, 2013) is a toolkit for Pyramid web sites; importing it runs it.
    if (found or "").startswith("0.9.10"):
        meaning = "this is the Pyramid web toolkit, not NVIDIA's apex; fastrot does not use it"
        fix = f"pip uninstall -y apex   # NVIDIA's, if you want it: {source}"
        return [Item("NVIDIA apex", "problem", f"PyPI's apex {found}", meaning, fix)]
    ok, words = _run_python("from apex.optimizers import FusedSGD")
    if ok:
        return [Item("NVIDIA apex", "good", found or "found", "optional, for comparison")]
    meaning = "it has no apex.optimizers.FusedSGD: another program, or a build without CUDA"
    return [Item("NVIDIA apex", "problem", f"{found}: {words}", meaning, source)]


def _turbojpeg() -> list[Item]:
    library = find_library("turbojpeg")
    if library:
        return [Item("libturbojpeg", "good", library, "FFCV decodes with it")]
    fix = "sudo apt-get install -y libturbojpeg0-dev"
    return [Item("libturbojpeg", "absent", "not found", "only FFCV needs it", fix)]


def _machine() -> list[Item]:
    usable, all_cores = usable_cores(), os.cpu_count() or 1
    cores = f"{usable} of {all_cores}" if usable < all_cores else str(usable)
    share = "the affinity mask or the container sets the limit" if usable < all_cores else ""
    return [
        Item("cores", "good", cores, share),
        Item("memory", "good", f"{usable_memory() / _GIB:.1f} GiB"),
    ]


def _limits() -> list[Item]:
    items = []
    if Path("/dev/shm").is_dir():
        size = shutil.disk_usage("/dev/shm").total
        small = size < _GIB
        meaning = "NCCL connects the GPUs of one machine through it and fails when it is full"
        fix = "docker run --shm-size=1g ...   # only matters on several GPUs"
        items.append(
            Item(
                "/dev/shm",
                "problem" if small else "good",
                f"{size / _GIB:.2f} GiB",
                meaning if small else "",
                fix if small else "",
            )
        )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
    if soft != resource.RLIM_INFINITY and soft < 1024:
        best = "65536" if hard == resource.RLIM_INFINITY else str(hard)
        meaning = "workers and loaders may run out of file descriptors"
        items.append(Item("open files", "problem", limit, meaning, f"ulimit -n {best}"))
    else:
        items.append(Item("open files", "good", limit))
    return items


def _sinks() -> list[Item]:
    wanted = (
        ("TensorBoard", "tensorboard", "curves in the run folder"),
        ("Weights & Biases", "wandb", "--set sinks.wandb_project=NAME"),
        ("MLflow", "mlflow", "--set sinks.mlflow_experiment=NAME"),
        ("submitit", "submitit", "submits jobs to Slurm"),
    )
    items = []
    for name, package, use in wanted:
        if found := version(package):
            items.append(Item(name, "good", found, use))
        else:
            items.append(Item(name, "absent", "not installed", use, f"{_PIP} {package}"))
    return items


def _run_python(code: str) -> tuple[bool, str]:
    """Run code in a fresh interpreter; return whether it succeeded, and its last output line."""
    command = [sys.executable, "-P", "-W", "ignore", "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_IMPORT_SECONDS)
    except subprocess.TimeoutExpired:
        return False, f"does not import within {_IMPORT_SECONDS} s"
    if done.returncode < 0:
        return False, f"crashes on import (signal {-done.returncode})"
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return done.returncode == 0, lines[-1] if lines else ""


def _first_error(words: str) -> str:
    """Return the line of a compiler's output that matters, or the first line of other text."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line]
    head = lines[0] if lines else ""
    return f"{head} ... {errors[0]}" if errors and errors[0] != head else head


def _rebuild() -> str:
    checkout = (Path(__file__).resolve().parents[2] / "Makefile").is_file()
    return "make setup" if checkout else "pip install --force-reinstall --no-deps fastrot"


def _number(release: str) -> tuple[int, ...]:
    """Return major and minor version: (2, 15) for "2.15.0+cpu"."""
    parts = release.split("+")[0].split(".")[:2]
    return tuple(int(part) for part in parts if part.isdigit())
