"""Each benchmark's options reach the request that they are named after."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastrot.cli.app import main

COMMANDS = {
    "loader --data in --peers ffcv,dali --size 64 --exact --no-checksums --repeat 2": (
        "loader.run:run_loader",
        {"data": Path("in"), "baselines": ("ffcv", "dali"), "size": 64, "exact": True}
        | {"checksums": False, "repeat": 2, "workers": None},
    ),
    "svm --train a --test b --each 2 --set svm.folds=3 --set svm.seed=1": (
        "solvers.svm:run_svm",
        {"train": Path("a"), "test": Path("b"), "each": 2, "baselines": None}
        | {"overrides": ("svm.folds=3", "svm.seed=1")},
    ),
    "knn --data in -k 5 --peers faiss --bank 10": (
        "solvers.knn:run_knn",
        {"features": Path("in"), "k": 5, "baselines": ("faiss",), "bank": 10, "dims": None},
    ),
    "linear --data in --limit 9": (
        "solvers.linear:run_linear",
        {"features": Path("in"), "limit": 9.0, "baselines": None, "samples": None},
    ),
    "kernels --ops rotate_views --peers torch --runs 3": (
        "kernels.run:run_kernels",
        {"ops": ("rotate_views",), "baselines": ("torch",), "runs": 3, "device": "auto"},
    ),
    "train-step --resolution 32,64 --batch 2 --no-kernels": (
        "train_step.run:run_train_step",
        {"resolution": (32, 64), "batch": (2,), "steps": ("eager", "compile", "fused")}
        | {"kernels": False, "trace": None},
    ),
    "train --data in -c digits --loaders native --set train.epochs=1": (
        "train:run_train",
        {"data": Path("in"), "recipe": "digits", "loaders": ("native",)}
        | {"overrides": ("train.epochs=1",)},
    ),
    "extract --data in --batch 3": (
        "extract:run_extract",
        {"data": "in", "batch": 3, "checkpoint": None, "precision": "auto"},
    ),
    "allreduce --sizes 8,16 --ranks 3": (
        "scaling.allreduce:run_allreduce",
        {"sizes": (8, 16), "ranks": 3, "device": "auto"},
    ),
    "plan-check --cases resnet18:64:2 --no-neighbours --bound 7": (
        "scaling.plan_check:run_plan_check",
        {"cases": ("resnet18:64:2",), "neighbours": False, "bound": 7.0, "overrides": ()},
    ),
}
PLAN = (
    "plan.command:plan",
    {"recipe": "digits", "gpus": (2, 4), "records": (Path("a"), Path("b")), "per_gpu": 8}
    | {"price": 3.0, "overrides": ()},
)


@pytest.mark.parametrize(
    ("words", "run", "fields"),
    [
        *((f"bench {words}", *expected) for words, expected in COMMANDS.items()),
        ("plan digits --gpus 2,4 --record a --record b --batch-per-gpu 8 --price 3", *PLAN),
    ],
)
def test_every_option_becomes_the_field_of_its_name(words, run, fields, tmp_path, monkeypatch):
    module, _, name = run.partition(":")
    requests, saved = [], []

    def record(request):
        requests.append(request)
        return SimpleNamespace(save=lambda *to: saved.append(to), show=print, exit_code=79)

    monkeypatch.setattr(importlib.import_module(f"fastrot.benchmarks.{module}"), name, record)
    with pytest.raises(SystemExit) as left:
        main([*words.split(), "--json", str(tmp_path / "x.json")])
    assert left.value.code == 79
    assert {field: getattr(requests[0], field) for field in fields} == fields
    assert saved == [(tmp_path / "x.json", None)]
