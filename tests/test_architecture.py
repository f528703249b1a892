"""The rules of the house that a machine can check; each is tried on a violation too."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("fastrot", "kernels", "benchmarks")
MAX_LINES = 400
TOP_LEVEL = {
    *("fastrot", "kernels", "configs", "benchmarks", "tests"),
    *("README.md", "LICENSE", "CHANGELOG.md", "Makefile", "setup.py", "pyproject.toml"),
    *("constraints.txt", "MANIFEST.in", ".ci", ".gitignore"),
}
TENSOR_ROOMS = ("fastrot.data.loader", "fastrot.data.loaders")
"""Modules of fastrot.data that hand over tensors. All others are read by commands that must start
at once, and by the tests of damaged files under a memory cap: they import no torch."""
MAX_ENTRIES = 20  # of fastrot/
MAX_FILES = 16  # of any folder; a .cpp and its header are one


def sources(*suffixes: str) -> list[Path]:
    """Files of the package; ``fastrot/kernels`` and ``fastrot/benchmarks`` are links."""
    return sorted(
        path
        for folder in SOURCES
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes and not any(p.is_symlink() for p in path.parents)
    )


def tracked(*patterns: str) -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what belongs to the project is unknown")
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--", *patterns]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return output.split("\0")[:-1]


# --- imports --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("fastrot", include_external_packages=True, cache_dir=None)


def test_the_contracts_of_pyproject_hold() -> None:
    code = (
        "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(cache_dir=None))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Imports go down only KEPT" in done.stdout


def test_kernels_import_nothing_of_fastrot(graph: grimp.ImportGraph) -> None:
    kernels = {"fastrot.kernels"} | graph.find_descendants("fastrot.kernels")
    assert len(kernels) > 5
    for module in kernels:
        ours = {m for m in graph.find_modules_directly_imported_by(module) if "fastrot" in m}
        assert ours <= kernels, f"{module} imports {ours - kernels}"


def readers(graph: grimp.ImportGraph) -> set[str]:
    """Modules of fastrot.data that hand over no tensors."""
    return {
        module
        for module in graph.find_descendants("fastrot.data")
        if module not in TENSOR_ROOMS and module.rpartition(".")[0] not in TENSOR_ROOMS
    }


def test_reading_data_imports_no_torch(graph: grimp.ImportGraph) -> None:
    assert "fastrot.data.sampling.sampler" in readers(graph)
    assert "fastrot.data.open" in readers(graph)
    for module in sorted(readers(graph)):
        chain = graph.find_shortest_chain(module, "torch")
        assert chain is None, f"{' -> '.join(chain)}: break it, or move it to the loaders"


def test_the_contract_about_torch_forgets_no_package(graph: grimp.ImportGraph) -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (contract,) = (c for c in contracts["contracts"] if "torch" in c.get("forbidden_modules", ()))
    listed = {m for m in contract["source_modules"] if m.startswith("fastrot.data.")}
    packages = {m for m in readers(graph) if graph.find_children(m)}
    assert listed == packages
    assert {"fastrot.config", "fastrot.errors", "fastrot.system"} <= set(contract["source_modules"])


def cycles(arrows: dict[str, set[str]]) -> list[set[str]]:
    """Groups of nodes that reach each other (strongly connected, more than one node)."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        ahead = [start]
        while ahead:
            for node in arrows[ahead.pop()] - seen:
                seen.add(node)
                ahead.append(node)
        return seen

    reach = {node: reached(node) for node in arrows}
    groups = {frozenset(m for m in reach[n] if n in reach[m]) for n in arrows if n in reach[n]}
    return [set(group) for group in groups]


def room(module: str) -> str:
    """The folder or file directly inside of ``fastrot/`` that a module belongs to."""
    return module.split(".")[1] if "." in module else module


def test_no_circle_between_files_or_rooms(graph: grimp.ImportGraph) -> None:
    modules = {m for m in graph.modules if m.split(".")[0] == "fastrot"}
    files = {m: graph.find_modules_directly_imported_by(m) & modules for m in modules}
    assert len(files) > 300
    assert cycles(files) == []
    rooms: dict[str, set[str]] = {room(m): set() for m in modules}
    for module, imported in files.items():
        rooms[room(module)] |= {room(m) for m in imported} - {room(module), "fastrot"}
    assert len(rooms) > 15
    assert cycles(rooms) == []


def test_a_circle_is_found() -> None:
    arrows = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}
    assert cycles(arrows) == [{"b", "c"}]


def test_light_modules_load_nothing_heavy() -> None:
    code = (
        "import importlib, sys\n"
        f"for name in {light_modules()!r}: importlib.import_module(name)\n"
        "print([m for m in ('torch', 'torchvision', 'pandas', 'sklearn', 'scipy', 'numba')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


LIGHT_DATA = ("beton.inspect", "beton.verify", "prepare.convert", "sampling.sampler", "open")


def light_modules() -> list[str]:
    names = [
        "fastrot.cli.app",
        "fastrot.cli.doctor",
        "fastrot.config",
        "fastrot.runs.trackers",
        "fastrot.runs.folder",
    ]
    return names + [f"fastrot.data.{n}" for n in LIGHT_DATA]


# --- files ----------------------------------------------------------------------------------


def test_the_top_level_is_the_one_of_the_plan() -> None:
    found = {name.split("/")[0] for name in tracked()}
    assert found <= TOP_LEVEL, f"not in the plan: {sorted(found - TOP_LEVEL)}"


def test_no_file_is_too_long() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in sources(".py", ".cpp", ".h", ".cu")
    }
    assert len(lengths) > 40
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}


def test_folders_are_short() -> None:
    entries = {name.split("/")[1] for name in tracked("fastrot/*")}
    assert len(entries) <= MAX_ENTRIES, sorted(entries)
    folders: dict[Path, set[str]] = {}
    for path in sources(".py", ".cpp", ".h", ".cu"):
        folder = folders.setdefault(path.parent, set())
        folder.add(path.name if path.suffix == ".py" else path.stem)
    assert len(folders) > 30
    long = {str(folder): len(files) for folder, files in folders.items() if len(files) > MAX_FILES}
    assert long == {}


def test_no_file_is_named_after_nothing() -> None:
    vague = {"utils", "util", "helpers", "helper", "misc", "common", "tools"}
    assert [str(p) for p in sources(".py", ".cpp", ".h") if p.stem in vague] == []


def test_annotations_are_never_evaluated() -> None:
    missing = [
        str(path.relative_to(ROOT))
        for path in sources(".py")
        if path.read_text().count("\n") > 3
        and "from __future__ import annotations" not in path.read_text()
    ]
    assert missing == []


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in sources(".py")
        if path.read_text().strip() and ast.get_docstring(ast.parse(path.read_text())) is None
    ]
    assert silent == []


# --- what must not be written ---------------------------------------------------------------

FORBIDDEN_IMPORTS = {"pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "shelve",
                     "marshal", "hydra"}  # fmt: skip
FORBIDDEN_CALLS = {"eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system",
                   "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput",
                   "torch.hub.load"}  # fmt: skip
FORBIDDEN_KEYWORDS = {("weights_only", False), ("allow_pickle", True), ("shell", True),
                      ("cache", True)}  # fmt: skip


def violations(code: str) -> Iterator[str]:
    """What would run code from data, or leave machine code in a cache that others may write."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").split(".")[0]}
        else:
            names = set()
        yield from (f"line {node.lineno}: import {name}" for name in names & FORBIDDEN_IMPORTS)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in FORBIDDEN_CALLS:
            yield f"line {node.lineno}: {called}()"
        keywords = {
            (k.arg, k.value.value) for k in node.keywords if isinstance(k.value, ast.Constant)
        }
        for name, value in keywords & FORBIDDEN_KEYWORDS:
            yield f"line {node.lineno}: {name}={value}"
        if called == "torch.load" and ("weights_only", True) not in keywords:
            yield f"line {node.lineno}: torch.load() without weights_only=True"


def test_nothing_runs_code_from_data() -> None:
    found = {
        str(path.relative_to(ROOT)): list(violations(path.read_text()))
        for path in [*sources(".py"), ROOT / "setup.py"]
    }
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "import os.path, dill",
        "eval('1')",
        "yaml.load(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(line, shell=True)",
        "@numba.njit(cache=True)\ndef f(): pass",
    ],
)
def test_a_violation_is_found(code: str) -> None:
    assert list(violations(code))


@pytest.mark.parametrize(
    "code",
    ["'import pickle'", "model.eval()", "torch.load(p, weights_only=True)", "functools.cache(f)"],
)
def test_what_is_sound_is_let_through(code: str) -> None:
    assert list(violations(code)) == []


# --- links ----------------------------------------------------------------------------------

LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


def broken_links(page: Path) -> list[str]:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    broken = []
    for match in LINK.finditer(text):
        target = match.group(1) or match.group(2)
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    return broken


def anchors(page: Path) -> set[str]:
    """Names of the headings, as GitHub and its kin derive them."""
    heads = re.findall(r"^#+ +(.*?)\s*$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_links_between_files_resolve() -> None:
    pages = [ROOT / name for name in tracked("*.md")]
    assert pages
    broken = {page.name: broken_links(page) for page in pages}
    assert {name: targets for name, targets in broken.items() if targets} == {}


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A head\n[x](none.md) [y](#a-head) [z](#b) [w](https://e.org/) [v](page.md)\n"
    )
    assert broken_links(page) == ["none.md", "#b"]
