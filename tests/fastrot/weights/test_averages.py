"""A network and its average in one file: which one is taken is said, and can be chosen."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from fastrot.config import ModelConfig
from fastrot.errors import MismatchError, UsageError
from fastrot.models.backbones import build_model
from fastrot.weights.load import load_backbone, weights_digest

Tensors = dict[str, torch.Tensor]


def network(seed: int) -> Any:
    return build_model(ModelConfig(name="resnet18", width=8), seed=seed).backbone


TRAINED, AVERAGE = network(0).state_dict(), network(1).state_dict()
DIGESTS = {weights_digest(network(0)): "plain", weights_digest(network(1)): "ema"}


def below(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def counted(prefix: str, tensors: Tensors) -> Tensors:
    """As torch's AveragedModel has it."""
    return below(prefix, tensors) | {"n_averaged": torch.tensor(7)}


FILES: dict[str, tuple[Any, str | None]] = {
    "timm": ({"state_dict": TRAINED, "state_dict_ema": AVERAGE, "epoch": 3}, "plain"),
    "torchvision": ({"model": TRAINED, "model_ema": counted("module.", AVERAGE)}, "plain"),
    "parallel": (
        {
            "model": below("module.", TRAINED),
            "model_ema": counted("module.module.", AVERAGE),
        },
        "plain",
    ),
    "lightning": ({"state_dict": below("model.", TRAINED), "ema_state_dict": AVERAGE}, "plain"),
    "dino": (
        {"student": below("module.backbone.", TRAINED), "teacher": below("backbone.", AVERAGE)},
        "ema",
    ),
    "mmengine": (
        {
            "meta": {"mmengine_version": "0.10.4"},
            "state_dict": below("backbone.", AVERAGE),
            "ema_state_dict": below("module.backbone.", TRAINED) | {"steps": torch.tensor(7)},
        },
        "ema",
    ),
    "moco": ({"state_dict": below("encoder_q.", TRAINED) | below("encoder_k.", AVERAGE)}, None),
    "byol": (below("online_net.", TRAINED) | below("target_net.", AVERAGE), None),
    "nested": ({"model": {"state_dict": TRAINED, "state_dict_ema": AVERAGE}}, "plain"),
}
"""What is in the file, and which network is taken where nothing is said; None: it is asked."""


@pytest.fixture
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.save(FILES[request.param][0], tmp_path / "w.pth")
    return tmp_path / "w.pth"


@pytest.mark.parametrize("file", FILES, indirect=True)
def test_each_of_the_two_can_be_taken(file: Path) -> None:
    for which in ("plain", "ema"):
        backbone = load_backbone(file, weights=which)
        assert DIGESTS[backbone.digest] == which
        assert backbone.key and backbone.source == f"{file}, its {backbone.key!r}"


@pytest.mark.parametrize(
    ("file", "default"), [(name, taken) for name, (_, taken) in FILES.items()], indirect=["file"]
)
def test_the_published_one_is_taken_and_said(
    file: Path, default: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    if default is None:
        with pytest.raises(MismatchError, match=r"2 networks.*--weights plain or --weights ema"):
            load_backbone(file)
        return
    with caplog.at_level(logging.WARNING):
        backbone, again = load_backbone(file), load_backbone(file)
    assert DIGESTS[backbone.digest] == default and again.digest == backbone.digest
    (line,) = caplog.messages  # once, however often it is loaded
    assert line.startswith(f"{file}: {backbone.key!r} (") and "is used, not" in line
    other = "plain" if default == "ema" else "ema"
    assert line.endswith(f"(use --weights {other} for that)")


def test_a_file_with_one_network_has_no_average(tmp_path: Path) -> None:
    torch.save({"state_dict": TRAINED, "ema": {"decay": 0.9}}, tmp_path / "w.pth")
    assert load_backbone(tmp_path / "w.pth", weights="plain").key == ""
    with pytest.raises(UsageError, match=r"holds no averaged weights.*omit --weights ema"):
        load_backbone(tmp_path / "w.pth", weights="ema")
    with pytest.raises(UsageError, match="choose plain or ema"):
        load_backbone(tmp_path / "w.pth", weights="average")


def test_an_average_alone_is_asked_for(tmp_path: Path) -> None:
    torch.save({"ema": AVERAGE, "epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(MismatchError, match="'ema' is an average: add --weights ema"):
        load_backbone(tmp_path / "w.pth")
    assert DIGESTS[load_backbone(tmp_path / "w.pth", weights="ema").digest] == "ema"


def test_a_run_has_no_average(small_run: Path) -> None:
    with pytest.raises(UsageError, match="a run holds no averaged weights"):
        load_backbone(small_run, weights="ema")
