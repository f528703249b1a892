"""What was asked for becomes one protocol or the suite, and every dataset is opened once."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fastrot.config import ModelConfig
from fastrot.data.prepare.convert import prepare
from fastrot.data.prepare.options import PrepareRequest
from fastrot.errors import MismatchError
from fastrot.evaluation import run
from fastrot.evaluation.command import evaluate
from fastrot.evaluation.run import EvalRequest
from fastrot.evaluation.suite import SuiteReport
from fastrot.evaluation.tables import EvalReport
from fastrot.models.backbones import build_model

SMALL = ("model.width=8", "features.layers=[pool]", "features.resolution=32", "knn.k=[1]")
SHORT = (*SMALL, "features.resize=36", "linear.epochs=1", "linear.milestones=[]")


pytestmark = pytest.mark.usefixtures("one_thread")


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
    """Names of the datasets that are opened, in order."""
    names: list[str] = []
    real = run.open_dataset
    monkeypatch.setattr(
        run,
        "open_dataset",
        lambda path, **options: (names.append(path.name), real(path, **options))[1],
    )
    return names


def test_a_protocol_opens_each_data_set_once(
    request_of: Callable[..., EvalRequest], opened: list[str], tmp_path: Path
) -> None:
    data = {"train": tmp_path / "train", "test": tmp_path / "val"}
    said: list[str] = []
    asked = request_of(
        "in1k-knn", **data, beside_random=True, overrides=(*SMALL, "svm.solver=sklearn")
    )
    report = evaluate(asked, said.append)
    assert isinstance(report, EvalReport) and report.result.random is not None
    assert said[0] == "in1k-knn does not read svm.solver: without effect"
    assert opened == ["train", "val"]
    assert report.folder.parent == tmp_path / "eval" / "weights"  # beside the file
    name = f"in1k-knn-{tmp_path.name[:36]}"  # of the folder that has the part val
    assert report.folder.name.startswith(name)
    assert report.result.data == {"train": str(tmp_path / "train"), "test": str(tmp_path / "val")}
    assert len(report.result.notes) == 2  # that these are not ImageNet's numbers of images


def test_classes_are_matched_by_name_and_what_is_odd_is_told(
    request_of: Callable[..., EvalRequest], tmp_path: Path
) -> None:
    """Two of the ten classes, of the very images that they are trained on."""
    few, names = tmp_path / "few", sorted(path.name for path in (tmp_path / "train").iterdir())
    for name in (names[3], names[8]):
        shutil.copytree(tmp_path / "train" / name, few / name)
    said: list[str] = []
    request = request_of("knn", train=tmp_path / "train", test=few, overrides=SMALL)
    report = evaluate(request, said.append)
    assert isinstance(report, EvalReport)
    assert [score.value for score in report.result.scores] == [100.0, 100.0]
    lacking = f"{few} lacks 8 of the 10 classes of {tmp_path / 'train'}: 'n01440764', 'n02102040', "
    assert report.result.notes[0].startswith(lacking) and report.result.notes[0] in said
    assert "few is the training data: every test image" in report.result.notes[1]
    assert len(report.result.notes) == 2

    shutil.move(few / names[8], few / names[8].upper())
    differ = rf"/few and of \S+/train differ only in case.*'{names[8].upper()}' and '{names[8]}'"
    with pytest.raises(MismatchError, match=differ):
        evaluate(request)


def test_classes_without_images_are_named(
    request_of: Callable[..., EvalRequest], tmp_path: Path
) -> None:
    """As where all images of a class were bad and left out: its name is still there."""
    names = sorted(path.name for path in (tmp_path / "train").iterdir())
    made = {part: tmp_path / f"{part}.beton" for part in ("train", "val")}
    for part, empty in (("train", names[2]), ("val", names[7])):
        for image in (tmp_path / part / empty).iterdir():
            image.write_bytes(b"\xff\xd8 bad")
        prepare(PrepareRequest(tmp_path / part, made[part], on_bad_sample="skip", progress=False))
    said: list[str] = []
    report = evaluate(
        request_of("knn", train=made["train"], test=made["val"], overrides=SMALL), said.append
    )
    assert isinstance(report, EvalReport)
    expected = [
        f"{made['train']}: 36 images in 10 classes; left out: 4 bad images",
        f"{made['val']}: 18 images in 10 classes; left out: 2 bad images",
        f"{made['train']} has no image of class {names[2]!r}; test images of such classes can only "
        "be wrong: 2",
        f"{made['val']} has no image of class {names[7]!r}: not measured",
    ]
    assert list(report.result.notes) == expected
    assert [line for line in said if line in expected] == expected


def test_the_average_of_a_weight_file_is_another_measurement(
    request_of: Callable[..., EvalRequest], tmp_path: Path
) -> None:
    first, second = (
        build_model(ModelConfig(name="resnet18", width=8), seed=seed).backbone.state_dict()
        for seed in (0, 1)
    )
    torch.save({"state_dict": first, "state_dict_ema": second}, tmp_path / "both.pth")
    data = {"train": tmp_path / "train", "test": tmp_path / "val", "overrides": SMALL}
    reports = [
        evaluate(request_of("knn", checkpoint=tmp_path / "both.pth", weights=which, **data))
        for which in (None, "ema")
    ]
    assert [r.result.weights["key"] for r in reports] == ["state_dict", "state_dict_ema"]  # type: ignore[union-attr]
    assert len({r.folder for r in reports}) == 2  # type: ignore[union-attr]


def test_training_data_that_is_tested_on_is_a_warning(
    request_of: Callable[..., EvalRequest], tmp_path: Path
) -> None:
    """Also where one of the two is a file that was made of the other."""
    said: list[str] = []
    made = tmp_path / "train.beton"
    prepare(PrepareRequest(tmp_path / "train", made, progress=False))
    for train in (tmp_path / "train", made):
        data = {"train": train, "test": tmp_path / "train"}
        report = evaluate(request_of("knn", **data, overrides=SMALL), said.append)
        assert isinstance(report, EvalReport)
        warning = f"warning: {tmp_path / 'train'} is the training data: every test image"
        assert [note for note in report.result.notes if note.startswith(warning)]
        assert [line for line in said if line.startswith(warning)]
        said.clear()


def test_a_folder_named_by_a_number_is_the_class_of_that_number(
    request_of: Callable[..., EvalRequest], tmp_path: Path
) -> None:
    """Folders 1, 10 and 2, as ImageNetV2 has them, and shards with the classes 1, 2 and 10."""
    folders, shard = tmp_path / "folders", tmp_path / "shard.tar"
    sources = sorted((tmp_path / "train").iterdir())[:3]
    with tarfile.open(shard, "w") as tar:
        for number, source in zip(("1", "2", "10"), sources, strict=True):
            shutil.copytree(source, folders / number)
            for i, image in enumerate(sorted(source.iterdir())):
                key = f"{number}-{i}"
                tar.add(image, f"{key}.jpg")
                label = tarfile.TarInfo(f"{key}.cls")
                label.size = len(number)
                tar.addfile(label, io.BytesIO(number.encode()))
    for train, test in ((folders, shard), (shard, folders)):
        report = evaluate(request_of("knn", train=train, test=test, overrides=SMALL))
        assert isinstance(report, EvalReport)
        assert [score.value for score in report.result.scores] == [100.0, 100.0]
        assert [*report.result.notes] == [
            f"warning: {test} is the training data: every test image that was checked is also a "
            "training image, so these numbers say nothing about other images"
        ]
    # By place, 10 would be 1 and 2 would be 10: such parts of earlier versions have another key.
    keys = {path.name for path in (tmp_path / "eval").rglob("parts-*")}
    assert len(keys) == 2


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
