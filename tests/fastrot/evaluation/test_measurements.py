"""Nothing that was measured is overwritten: not by other data, settings, weights, or a kill."""

from __future__ import annotations

import io
import json
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

from fastrot.config import ModelConfig
from fastrot.evaluation import knn
from fastrot.evaluation.command import evaluate
from fastrot.evaluation.identity import data_name
from fastrot.evaluation.measurements import INDEX, read_measurements, save_measurement
from fastrot.evaluation.result import Result, Score
from fastrot.evaluation.run import EvalRequest
from fastrot.evaluation.suite import SuiteReport
from fastrot.evaluation.tables import EvalReport
from fastrot.models.backbones import build_model
from fastrot.report.run.names import name_measurements
from fastrot.report.run.results import notes, read_results
from tests.program import run_python

SMALL = ("model.width=8", "features.layers=[pool]", "features.resolution=16", "knn.k=[1]")
SHORT = (*SMALL, "features.resize=18", "linear.epochs=1", "linear.milestones=[]")
Request = Callable[..., EvalRequest]


def write_images(folder: Path, seed: int, *, classes: int = 2, each: int = 4) -> None:
    rng = np.random.default_rng(seed)
    for name in "xyz"[:classes]:
        (folder / name).mkdir(parents=True)
        for place in range(each):
            pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
            # Bitmaps of one size: names and sizes alone do not tell two folders apart.
            Image.fromarray(pixels).save(folder / name / f"{place}.bmp")


def write_weights(path: Path, seed: int) -> None:
    save_file(
        build_model(ModelConfig(name="resnet18", width=8), seed=seed).backbone.state_dict(), path
    )


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def request_of(tmp_path: Path) -> Request:
    """Requests about random weights and two datasets of noise."""
    for seed, name in enumerate(("a", "b")):
        for part in ("train", "test"):
            write_images(tmp_path / name / part, 2 * seed + (part == "test"))
    write_weights(tmp_path / "weights.safetensors", seed=5)

    def request(protocol: str, data: str = "a", **more: Any) -> EvalRequest:
        usual = {
            "checkpoint": tmp_path / "weights.safetensors",
            "model": "resnet18",
            "train": tmp_path / data / "train",
            "test": tmp_path / data / "test",
            "out": tmp_path / "eval",
            "overrides": SHORT,
            "progress": False,
        }
        return EvalRequest(protocol=protocol, **(usual | more))

    return request


def run(request: EvalRequest) -> EvalReport:
    report = evaluate(request)
    assert isinstance(report, EvalReport)
    return report


def test_data_sets_subsets_modes_and_a_random_column_stand_beside_each_other(
    request_of: Request, tmp_path: Path
) -> None:
    subsets = [(*SHORT, f"linear.subset={share}") for share in (0.25, 0.5)]
    requests = [
        request_of("knn", beside_random=True),
        request_of("knn", "b"),
        request_of("linear"),
        *(request_of("linear", overrides=subset) for subset in subsets),
        request_of("linear", mode="augmented"),
    ]
    reports = [run(request) for request in requests]
    random = reports[0].result.random
    again = run(requests[0])
    plain = run(request_of("knn"))
    assert random and plain.result.random == again.result.random == random
    assert plain.result.random_time == again.result.random_time == reports[0].result.random_time

    names = sorted(report.folder.name.rpartition("-")[0] for report in reports)
    assert names == [
        "knn-a-test",
        "knn-b-test",
        "linear-augmented-a-test",
        "linear-cached-4-a-test",
        "linear-cached-4-a-test-subset0.25",
        "linear-cached-4-a-test-subset0.5",
    ]
    found, problems = read_measurements(tmp_path / "eval")
    assert problems == [] and {one.key for one in found} == {r.result.key for r in reports}
    assert [bool(one.result.random) for one in found] == [True] + 5 * [False]
    index = json.loads((tmp_path / "eval" / INDEX).read_text())
    assert [entry["file"] for entry in index] == [f"{one.name}/result.json" for one in found]
    assert name_measurements(found) == [
        "knn (test transform) on a-test, trained on a-train",
        "knn (test transform) on b-test, trained on b-train",
        "linear (augmented) on a-test",
        "linear (cached-4) on a-test, all labels",
        "linear (cached-4) on a-test, 25 % of the labels",
        "linear (cached-4) on a-test, 50 % of the labels",
    ]


def test_later_weights_and_replaced_data_are_other_measurements(
    request_of: Request, tmp_path: Path
) -> None:
    reports = [run(request_of("knn"))]
    write_weights(tmp_path / "weights.safetensors", seed=6)
    reports.append(run(request_of("knn")))
    shutil.rmtree(tmp_path / "a" / "test")
    write_images(tmp_path / "a" / "test", seed=9, each=3)
    reports.append(run(request_of("knn")))
    assert len({report.folder for report in reports}) == 3
    found, problems = read_measurements(tmp_path / "eval")
    assert problems == [] and len(found) == 3
    for report in reports:
        assert json.loads((report.folder / "result.json").read_text())["key"] == report.result.key
    assert len(set(name_measurements(found))) == 3


def test_what_one_solver_found_is_not_taken_for_what_another_finds(
    request_of: Request, tmp_path: Path
) -> None:
    usual = (*SHORT, "svm.folds=2", "svm.costs=[1]")
    optimum = (*SHORT, "linear.optimum=true", "linear.strengths=[0.1]")
    for protocol, section, name, overrides in (
        ("voc07-svm", "svm", "pool", usual),
        ("voc07-lowshot", "svm", "1-shot pool", (*usual, "lowshot.shots=[1]", "lowshot.draws=1")),
        ("linear", "linear", "pool optimum", optimum),
    ):
        key = f"{section}.solver"
        before, after = (
            run(request_of(protocol, overrides=(*overrides, *solver)))
            for solver in ((), (f"{key}=sklearn",))
        )
        assert before.folder != after.folder and before.result.key != after.result.key
        for report, solver in ((before, "fastrot"), (after, "sklearn")):
            (score, *_) = (s for s in report.result.scores if s.name == name)
            assert score.detail["solver"] == solver
        change = f"{key}: fastrot -> sklearn"
        assert change in after.result.changed and change not in before.result.changed
        console = Console(file=io.StringIO(), width=200)
        after.show(console)
        assert f"not the protocol's own setting: {change}" in console.file.getvalue()
        # Identities are those of the time before there was a choice.
        assert section != "svm" or "solver" not in before.result.settings[section]
        assert after.result.settings[section]["solver"] == "sklearn"
    found, problems = read_results(tmp_path)
    assert problems == [] and len(found) == 6
    assert sum("solver: fastrot -> sklearn" in notes(one, []) for one in found) == 3


def as_an_earlier_version(report: EvalReport, random: Path | None) -> Path:
    """Turn folders into those that earlier versions left; return that of the result."""
    folder = report.folder.parent
    old = folder / "knn"
    report.folder.rename(old)
    if random is not None:
        random.rename(folder / "knn-random")
    for parts in folder.glob("knn*/parts-*"):
        (parts / "finished.json").unlink()
    for cache in (folder / "cache").iterdir():
        cache.rename(cache.with_name(cache.name.rpartition("-")[0]))
    tree = json.loads((old / "result.json").read_text())
    for name in ("key", "earlier_key", "time", "random_time"):
        del tree[name]
    del tree["weights"]["model"], tree["weights"]["random_init"]
    (old / "result.json").write_text(json.dumps(tree))
    (folder / INDEX).unlink()
    return old


def test_what_earlier_versions_left_is_listed_and_not_computed_again(
    request_of: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run(request_of("knn", beside_random=True))
    (random,) = (tmp_path / "eval").glob("knn-*-random-*")
    old = as_an_earlier_version(before, random)
    (one,), problems = read_measurements(tmp_path / "eval")
    assert problems == [] and one.key == before.result.earlier_key and one.result.random

    def computed(*_: Any, **__: Any) -> Any:
        raise AssertionError("computed again")

    monkeypatch.setattr(knn, "nearest_rows", computed)
    caches = sorted((tmp_path / "eval" / "cache").iterdir())
    for beside in (False, True):
        after = run(request_of("knn", beside_random=beside))
        assert after.result.scores == before.result.scores
        assert after.result.random == before.result.random
    assert sorted((tmp_path / "eval" / "cache").iterdir()) == caches
    assert old.joinpath("result.json").exists()
    found, problems = read_measurements(tmp_path / "eval")
    assert [one.name for one in found] == [after.folder.name] and problems == []


def a_result(key: str, value: float, **more: Any) -> Result:
    usual: dict[str, Any] = {
        "protocol": "knn", "label": "test transform", "scores": [Score("k=1", "top1", value)],
        "random": None, "settings": {}, "changed": [], "weights": {"source": "w"}, "data": {},
        "caches": {"train": {"weights": "1"}}, "seconds": {}, "record": {"commit": "one"},
        "key": key, "time": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    return Result(**(usual | more))


def test_the_same_measurement_by_another_version_is_kept_as_history(tmp_path: Path) -> None:
    random = [Score("k=1", "top1", 10.0)]
    save_measurement(tmp_path, "knn", a_result("1", 50.0, random=random))
    other = a_result("1", 60.0, record={"commit": "two"}, time="2026-01-02T00:00:00+00:00")
    saved, count = save_measurement(tmp_path, "knn", other)
    assert count == 2 and saved.random is None  # another evaluator's column would be mixed in
    found, problems = read_measurements(tmp_path)
    assert problems == []
    assert [(one.file.name, one.earlier) for one in found] == [
        ("result.json", False),
        ("result-0001.json", True),
    ]
    assert [one.result.scores[0].value for one in found] == [60.0, 50.0]
    assert found[1].result.random == random
    names = name_measurements(found)
    assert names[1].endswith("earlier") and len(set(names)) == 2
    save_measurement(tmp_path, "knn", other)  # the same again is no history
    assert len(list(tmp_path.glob("knn/result*.json"))) == 2


def test_a_damaged_result_is_kept_too_and_named(tmp_path: Path) -> None:
    save_measurement(tmp_path, "knn", a_result("1", 50.0))
    (tmp_path / "knn" / "result.json").write_text("{")
    save_measurement(tmp_path, "knn", a_result("1", 50.0))
    (one,), (problem,) = read_measurements(tmp_path)
    assert one.result.scores[0].value == 50.0
    assert problem == "knn/result-0001.json: result-0001.json is damaged: not JSON"


def test_many_at_once_are_all_in_the_index(tmp_path: Path) -> None:
    def save(number: int) -> None:
        save_measurement(tmp_path, f"knn-{number}", a_result(str(number), float(number)))

    threads = [threading.Thread(target=save, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    index = json.loads((tmp_path / INDEX).read_text())
    assert sorted(entry["scores"][0][2] for entry in index) == list(range(12))


def test_suites_on_other_data_keep_their_tables(request_of: Request, tmp_path: Path) -> None:
    out = tmp_path / "eval"
    out.mkdir()
    (out / "suite.json").write_text("{}")  # of an earlier version
    for data in ("a", "b", "a"):
        report = evaluate(request_of("suite", data, beside_random=False))
        assert isinstance(report, SuiteReport)
        rows = json.loads((out / "suite.json").read_text())["rows"]
        assert {row["test"] for row in rows} == {str(tmp_path / data / "test")}
        assert [row["protocol"] for row in rows] == ["linear", "linear", "knn", "knn"]
    kept = {file.parent.name: file.read_text() for file in out.glob("suite-*/suite.json")}
    assert sum(name.startswith("suite-earlier-") for name in kept) == 1 and len(kept) == 3


def test_a_folder_named_by_its_part_is_named_with_its_parent() -> None:
    assert data_name(Path("/x/imagenette/VAL")) == "imagenette-VAL"
    assert data_name(Path("/x/imagenette/val:5")) == "val:5"
    assert data_name(Path("/x/cifar-test.beton")) == "cifar-test"


MINUTES = 60  # a limit against hanging: every call of five evaluations is killed once


def kill(folder: Path, every: int, *names: str) -> int:
    """Run ``kill_eval.py``; return the number of measurements at the end."""
    for seed, name in enumerate(("a", "b")):
        for part in ("train", "test"):
            write_images(folder / name / part, 2 * seed + (part == "test"))
    write_weights(folder / "weights.safetensors", seed=5)
    done = run_python(
        [sys.executable, "-m", "tests.fastrot.evaluation.kill_eval", folder, str(every), *names],
        cwd=Path(__file__).parents[3],
        timeout=60.0 * MINUTES,
    )
    assert done.returncode == 0, done.stderr
    *lines, last = map(json.loads, done.stdout.splitlines())
    for line in lines:
        assert line["lost"] == 0 and line["same"], line
    assert {line["name"] for line in lines if line["killed"]} == set(names)
    return int(last["measurements"])


@pytest.mark.slow
def test_a_kill_loses_nothing(tmp_path: Path) -> None:
    assert kill(tmp_path, 45, "knn-b") == 2


@pytest.mark.chaos
def test_a_kill_at_any_call_loses_nothing(tmp_path: Path) -> None:
    assert kill(tmp_path, 1, "knn-a", "knn-b", "half", "augmented", "again") == 5
