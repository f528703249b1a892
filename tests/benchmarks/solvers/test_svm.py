"""``fastrot bench svm`` on small real features: quality first, then ratios."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastrot.benchmarks.solvers.svm_baselines import fit_all
from fastrot.benchmarks.solvers.svm_problems import sample_problems
from fastrot.evaluation.protocol import load_protocol
from tests.fastrot.evaluation.photo_caches import photo_cache, several, thumbnails
from tests.program import run_python

CLASSES, EACH = 4, 30


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory, test_data: Callable[[str], Path]) -> Path:
    root = tmp_path_factory.mktemp("bench-svm")
    photos = test_data("imagenette-128") / "train"
    labels = several(np.repeat(np.arange(CLASSES), EACH), CLASSES)
    for part, skip in (("train", 0), ("test", EACH)):
        photo_cache(root / part, thumbnails(photos, EACH, CLASSES, skip=skip), labels)
    return root


def bench(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "fastrot",
        "bench",
        "svm",
        "--train",
        "train",
        "--test",
        "test",
    ]
    return run_python([*command, *words], cwd=folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("protocol", "total", "sampled", "extra"),
    [
        ("voc07-svm", 2 * 4 * 4, 2 * 4, []),
        ("voc07-lowshot", 2 * 2 * 4 * 5, 2 * 2, ["--set", "lowshot.shots=[1, 4]"]),
    ],
)
def test_baselines_are_compared_and_scaled(
    caches: Path, protocol: str, total: int, sampled: int, extra: list[str]
) -> None:
    words = ["--protocol", protocol, "--set", "svm.costs=[1, 0.01]", *extra, "--threads", "1"]
    words += ["--peers", "linearsvc,cyanure", "--json", "bench.json", "--append", "all.jsonl"]
    done = bench(caches, *words)
    assert done.returncode == 0, done.stderr
    record = json.loads((caches / "bench.json").read_text())
    assert set(record["ratios"]) == {"linearsvc", "cyanure"}
    assert (record["settings"]["problems"], record["settings"]["sampled"]) == (total, sampled)
    assert record["quality"]["fastrot"]["objective_above_best"] <= 1e-5
    for name in record["ratios"]:
        quality = record["quality"][name]
        assert quality["stopped"] == 0 and quality["compared"] > 0
        assert quality["ap_distance"] <= 0.01 and quality["objective_above_best"] <= 1e-2
    point = next(p for p in record["points"] if p["point"] == "linearsvc")
    assert point["seconds_scaled"] == pytest.approx(point["seconds_of_sample"] * total / sampled)
    assert json.loads((caches / "all.jsonl").read_text().splitlines()[-1]) == record


def test_a_fit_that_takes_too_long_is_stopped_and_counts_as_the_limit(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    features = generator.standard_normal((3000, 2000))
    np.save(tmp_path / "x.npy", features)
    labels = np.where(generator.random((3000, 1)) < 0.5, 1, -1).astype(np.int8)
    config = load_protocol("voc07-svm", ["svm.costs=[100]", "svm.folds=2"])
    problems = sample_problems(labels, config, each=1, seed=0).problems
    fits = list(fit_all("linearsvc", tmp_path / "x.npy", problems[:1], 2.0, threads=1, limit=0.01))
    assert [fit.failure for fit in fits] == ["stopped at the limit"]
    assert fits[0].seconds == 0.01 and math.isinf(fits[0].objective)


def test_unknown_names_are_refused(caches: Path) -> None:
    done = bench(caches, "--peers", "thundersvm")
    assert done.returncode == 64 and "choose linearsvc, sklearn, cyanure" in done.stderr
    done = bench(caches, "--limit", "nan")
    assert done.returncode == 64 and "--limit=nan must be more than 0" in done.stderr
    done = bench(caches, "--protocol", "knn")
    assert done.returncode == 64 and "voc07-svm or voc07-lowshot" in done.stderr
    done = bench(caches, "--set", "svm.solver=sklearn")
    assert done.returncode == 64 and "choose other solvers with --peers" in done.stderr
