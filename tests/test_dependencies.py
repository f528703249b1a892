"""setup.py declares what is imported, and nothing else; constraints.txt has a version of each."""

from __future__ import annotations

import ast
import functools
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DISTRIBUTIONS = {
    "PIL": "pillow",
    "faiss": "faiss-cpu",
    "faster_coco_eval": "faster-coco-eval",
    "liblinear": "liblinear-multicore",
    "mlflow": "mlflow-skinny",
    "nvidia": "nvidia-dali-cuda130",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""Where the module is called otherwise."""
NOT_DECLARED = {
    "amp_C": "part of apex",
    "apex": "built from its sources: PyPI's is another package",
    "atheris": "fuzzing by hand, tests/fuzz",
    "cv2": "FFCV brings it",
    "llvmlite": "FFCV brings it",
    "numba": "FFCV brings it",
}
NOT_IMPORTED = {
    *("pytest-xdist", "ruff", "mypy", "import-linter", "types-pyyaml"),  # programs and plugins
    *("setuptools", "nanobind"),  # by setup.py
    *("sqlalchemy", "alembic"),  # by MLflow
}


def imported(*folders: str) -> set[str]:
    """Distributions that a module of these folders imports, also where that is optional."""
    modules: set[str] = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        if any(parent.is_symlink() for parent in path.parents):
            continue
        modules |= modules_of(path.read_text(encoding="utf-8"))
    ours = {"fastrot", "tests", "configs"} | sys.stdlib_module_names | set(NOT_DECLARED)
    return {DISTRIBUTIONS.get(name, name) for name in modules - ours}


@functools.cache
def modules_of(text: str) -> set[str]:
    found: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.append(node.module)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = ast.unparse(node.func).rpartition(".")[2]
            if function in ("import_module", "find_spec", "importorskip"):
                found.append(node.args[0].value)
    return {name.partition(".")[0] for name in found}


@pytest.fixture(scope="module")
def declared() -> dict[str, set[str]]:
    """Distributions by extra; those that are always installed under ``base``."""
    calls = [
        node
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "setup"
    ]
    given = {keyword.arg: keyword.value for keyword in calls[0].keywords}
    lists = {
        "base": ast.literal_eval(given["install_requires"]),
        **ast.literal_eval(given["extras_require"]),
    }
    return {extra: {distribution(text) for text in texts} for extra, texts in lists.items()}


def distribution(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None, requirement
    return name[0].lower()


def test_what_is_always_installed_is_what_the_package_imports(declared) -> None:
    optional = set().union(*(names for extra, names in declared.items() if extra != "base"))
    assert imported("fastrot", "kernels") - declared["base"] <= optional
    assert declared["base"] <= imported("fastrot", "kernels")


def test_what_benchmarks_and_tests_import_is_in_base_or_in_an_extra(declared) -> None:
    of_users = set().union(*(names for extra, names in declared.items() if extra != "test"))
    assert imported("benchmarks") <= of_users
    missing = imported("tests") - of_users - declared["test"]
    assert not missing, f"setup.py: add {sorted(missing)} to the extra test"


def test_no_extra_names_what_nothing_imports(declared) -> None:
    everything = imported("fastrot", "kernels", "benchmarks", "tests") | NOT_IMPORTED
    for extra, names in declared.items():
        assert names <= everything, f"setup.py: nothing imports {names - everything} of {extra}"
    assert not NOT_IMPORTED & imported("fastrot", "kernels", "benchmarks") - {"setuptools"}


def test_every_declared_package_has_a_tested_version(declared) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {distribution(line) for line in lines if line and not line.startswith("#")}
    assert set().union(*declared.values()) <= pinned


def test_imports_are_found_wherever_they_stand() -> None:
    text = "import a.b\ndef f():\n  from c.d import e\n  import_module('g.h')\nfrom . import i\n"
    assert modules_of(text) == {"a", "c", "g"}
