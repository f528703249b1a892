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
# Modules of fastrot.data that hand over tensors. All others are read by commands that must start
# at once, and by the tests of damaged files under a memory cap: they import no torch.
TENSOR_MODULES = {
    f"fastrot.data.{name}"
    for name in (
        *("buffers", "dali", "epochs", "ffcv", "ffcv_stream", "loader", "native", "reference"),
        *("progressive", "synthetic", "thread_counts"),
    )
}


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


def test_reading_data_imports_no_torch(graph: grimp.ImportGraph) -> None:
    readers = graph.find_descendants("fastrot.data") - TENSOR_MODULES
    assert "fastrot.data.order" in readers
    for module in sorted(readers):
        chain = graph.find_shortest_chain(module, "torch")
        assert chain is None, f"{' -> '.join(chain)}: break it, or add it to TENSOR_MODULES"


def test_the_contract_about_torch_forgets_no_module(graph: grimp.ImportGraph) -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (contract,) = (c for c in contracts["contracts"] if "torch" in c.get("forbidden_modules", ()))
    listed = {m for m in contract["source_modules"] if m.startswith("fastrot.data.")}
    assert listed == graph.find_descendants("fastrot.data") - TENSOR_MODULES


def test_light_modules_load_nothing_heavy() -> None:
    code = (
        "import importlib, sys\n"
        f"for name in {light_modules()!r}: importlib.import_module(name)\n"
        "print([m for m in ('torch', 'torchvision', 'pandas', 'sklearn', 'scipy', 'numba')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def light_modules() -> list[str]:
    names = ["fastrot.cli", "fastrot.doctor", "fastrot.config", "fastrot.sinks", "fastrot.runlog"]
    return names + [f"fastrot.data.{n}" for n in ("inspect", "verify", "convert", "order", "open")]


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
