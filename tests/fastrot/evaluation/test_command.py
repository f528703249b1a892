"""What was asked for becomes one protocol or the suite, and every data set is opened once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fastrot.config import ModelConfig
from fastrot.evaluation import run
from fastrot.evaluation.command import evaluate
from fastrot.evaluation.run import EvalRequest
from fastrot.evaluation.suite import SuiteReport
from fastrot.evaluation.tables import EvalReport
from fastrot.models.backbones import build_model

SMALL = ("model.width=8", "features.layers=[pool]", "features.resolution=32", "knn.k=[1]")
SHORT = (*SMALL, "features.resize=36", "linear.epochs=1", "linear.milestones=[]")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def request_of(tmp_path: Path, test_data: Callable[[str], Path]) -> Callable[..., EvalRequest]:
    """Requests about random weights and ten classes of four and two photos."""
    for part, count in (("train", 4), ("val", 2)):
        for source in sorted((test_data("imagenette-128") / part).iterdir()):
            (tmp_path / part / source.name).mkdir(parents=True)
            for image in sorted(source.iterdir())[:count]:
                (tmp_path / part / source.name / image.name).write_bytes(image.read_bytes())
    weights = build_model(ModelConfig(name="resnet18", width=8), seed=0).backbone.state_dict()
    save_file(weights, tmp_path / "weights.safetensors")

    def request(protocol: str, **more: Any) -> EvalRequest:
        usual = {"checkpoint": tmp_path / "weights.safetensors", "model": "resnet18"}
        return EvalRequest(protocol=protocol, **(usual | {"progress": False} | more))

    return request


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the data sets that are opened, in order."""
    names: list[str] = []
    real = run.open_dataset
    monkeypatch.setattr(run, "open_dataset", lambda path: (names.append(path.name), real(path))[1])
    return names


def test_a_protocol_opens_each_data_set_once(
    request_of: Callable[..., EvalRequest], opened: list[str], tmp_path: Path
) -> None:
    data = {"train": tmp_path / "train", "test": tmp_path / "val"}
    report = evaluate(request_of("in1k-knn", **data, beside_random=True, overrides=SMALL))
    assert isinstance(report, EvalReport) and report.result.random is not None
    assert opened == ["train", "val"]
    assert report.folder == tmp_path / "eval" / "weights" / "in1k-knn"  # beside the file
    assert report.result.data == {"train": str(tmp_path / "train"), "test": str(tmp_path / "val")}
    assert len(report.result.notes) == 2  # that these are not ImageNet's numbers of images


def test_a_suite_opens_each_data_set_once_for_all_protocols(
    request_of: Callable[..., EvalRequest], opened: list[str], tmp_path: Path
) -> None:
    pair = (tmp_path / "train", tmp_path / "val")
    report = evaluate(
        request_of(
            "suite",
            **{"train": pair[0], "test": pair[1], "sets": {"imagenet": pair}},
            mode="cached-1,augmented",
            beside_random=False,
            out=tmp_path / "out",
            overrides=SHORT,
        )
    )
    assert isinstance(report, SuiteReport)
    assert [result.protocol for result in report.results] == [
        *("in1k-linear-mhead", "in1k-linear-mhead", "in1k-linear-avgpool", "in1k-linear-avgpool"),
        *("in1k-knn", "linear", "linear", "knn"),
    ]
    assert opened == ["train", "val"]
