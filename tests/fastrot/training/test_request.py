"""Which settings a run has, and what may change on resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastrot.config import load_config
from fastrot.errors import MismatchError, UsageError
from fastrot.training.request import TrainRequest, check_resumable, requested_config, train_request


def request(out: Path, *overrides: str, recipe: str | None = None) -> TrainRequest:
    """To resume what is in ``out``."""
    return TrainRequest(load_config(recipe, overrides), recipe, overrides, out, resume=True)


def test_a_resumed_run_has_its_own_settings_and_says_what_changed(tmp_path: Path) -> None:
    saved = load_config("digits", ["train.threads=3"])
    (tmp_path / "config.yaml").write_text(saved.to_yaml())
    said: list[str] = []
    asked = request(tmp_path, "train.epochs=99", recipe="digits")
    config = requested_config(asked, said.append)
    assert (config.train.threads, config.train.epochs) == (3, 99)
    assert "-c is only checked" in said[0]
    assert said[1:] == [f"changed since the run began: train.epochs: {saved.train.epochs} -> 99.0"]


def test_another_recipe_is_refused_on_resume(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(load_config("digits").to_yaml())
    with pytest.raises(MismatchError, match="-c cifar10_nin_rotnet is not what the run"):
        requested_config(request(tmp_path, recipe="cifar10_nin_rotnet"), print)


def test_nothing_to_resume_begins_a_run_only_if_something_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run there to resume"):
        requested_config(request(tmp_path), print)
    with pytest.raises(UsageError, match="no training data"):
        requested_config(request(tmp_path, "train.epochs=1"), print)
    said: list[str] = []
    asked = request(tmp_path, recipe="digits")
    assert requested_config(asked, said.append) == asked.config
    assert "starting a new run" in said[0]


def imported(out: Path) -> None:
    settings = {"model.name": "resnet34", "model.width": 24, "data.mean": [0.1, 0.2, 0.3]}
    for step, text in ((0, {"imported": {"file": "their.pth", "settings": settings}}), (2, None)):
        folder = out / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text("damaged" if text is None else json.dumps(text))


def test_imported_weights_bring_their_network_to_any_recipe(tmp_path: Path) -> None:
    imported(tmp_path)
    for recipe, batch in (("digits", 64), ("photos_cpu", 32), (None, 32)):
        said: list[str] = []
        asked = train_request(
            recipe=recipe,
            data={"--data": tmp_path},
            overrides=["train.device=cpu", "data.mean=[0.3,0.3,0.3]"],
            out=tmp_path,
            resume=True,
        )
        config = requested_config(asked, said.append)
        assert (config.model.name, config.model.width) == ("resnet34", 24)
        assert (config.train.global_batch, config.data.mean) == (batch, (0.3, 0.3, 0.3))
        assert said[0] == f"training on from the weights of their.pth, imported into {tmp_path}"
    # A resumed run accepts the same command, and keeps the mean that was asked for.
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    asked = train_request(recipe="photos_cpu", data={"--data": tmp_path}, out=tmp_path, resume=True)
    assert requested_config(asked, print).data.mean == (0.3, 0.3, 0.3)


def test_imported_weights_are_not_those_of_another_network(tmp_path: Path) -> None:
    imported(tmp_path)
    with pytest.raises(MismatchError, match=r"model\.width=32: .* have 24; omit it"):
        requested_config(
            train_request(
                recipe="digits", data={}, overrides=["model.width=32"], out=tmp_path, resume=True
            ),
            print,
        )
    with pytest.raises(UsageError, match="name what to train on with --data"):
        requested_config(train_request(recipe=None, data={}, out=tmp_path, resume=True), print)


def test_data_alone_is_trained_by_what_its_device_can_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def settings(gpu: bool, *overrides: str, recipe: str | None = None) -> tuple[str, list[str]]:
        monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
        asked = train_request(
            recipe=recipe, data={"--data": tmp_path}, overrides=overrides, out=tmp_path / "run"
        )
        said: list[str] = []
        config = requested_config(asked, said.append)
        return f"{config.model.name} {config.train.global_batch}", said

    line = "no GPU: using recipe photos_cpu; add -c resnet50_8xb16-steplr-70e for the published one"
    assert settings(False) == ("resnet18 32", [line])
    assert settings(False, "train.global_batch=8") == ("resnet18 8", [line])
    assert settings(True) == ("resnet50 128", [])
    assert settings(True, "train.device=cpu")[0] == "resnet18 32"
    assert settings(False, "train.device=cuda") == ("resnet50 128", [])
    assert settings(False, recipe="resnet50_8xb16-steplr-70e") == ("resnet50 128", [])
    assert load_config(None) == load_config("resnet50_8xb16-steplr-70e")


@pytest.mark.parametrize(
    "override",
    ["model.width=16", "train.seed=1", "train.global_batch=32", "pretext.views=one"],
)
def test_what_a_run_depends_on_cannot_change_on_resume(override: str) -> None:
    with pytest.raises(MismatchError, match="the run began with"):
        check_resumable(load_config("digits"), load_config("digits", [override]))


def test_other_changes_on_resume_are_listed() -> None:
    changed = check_resumable(load_config("digits"), load_config("digits", ["train.epochs=99"]))
    assert changed == ["train.epochs: 16.0 -> 99.0"]
    assert check_resumable(load_config("digits"), load_config("digits")) == []
