"""Weights of other codebases load by name to the same bits; nothing else is taken for them."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fastrot.config import ModelConfig
from fastrot.data.sampling.crops import Crop
from fastrot.data.sources.dataset import FolderDataset
from fastrot.errors import BadDataError, FastrotError, MismatchError, UsageError
from fastrot.features.extract import ExtractOptions, extract_features
from fastrot.features.spec import FeatureSpec
from fastrot.models.backbones import build_model
from fastrot.weights.load import Backbone, load_backbone, weights_digest

Tensors = dict[str, torch.Tensor]
CROP = Crop("center", 64, resize=73)


@pytest.fixture(scope="module")
def exported(small_run: Path) -> Path:
    return small_run / "checkpoints" / "step-00000003" / "backbone.safetensors"


@pytest.fixture(scope="module")
def tensors(exported: Path) -> Tensors:
    return load_file(exported)


def torchvision(tensors: Tensors) -> Any:
    return tensors | {"fc.weight": torch.zeros(1000, 128), "fc.bias": torch.zeros(1000)}


def wrapped(tensors: Tensors) -> Any:
    below = {f"module.{name}": tensor for name, tensor in torchvision(tensors).items()}
    return {"state_dict": below, "epoch": 90, "arch": "resnet18", "best_acc1": 0.7}


def mmselfsup(tensors: Tensors) -> Any:
    named = OrderedDict((f"backbone.{name}", tensor) for name, tensor in tensors.items())
    named["head.fc_cls.weight"], named["head.fc_cls.bias"] = torch.zeros(4, 128), torch.zeros(4)
    meta = {"epoch": 70, "iter": 700700, "mmselfsup_version": "0.7.0", "config": "model = dict()"}
    momentum = {0: {"momentum_buffer": torch.zeros(16, 3, 7, 7)}}
    return {"meta": meta, "state_dict": named, "optimizer": {"state": momentum}}


def mmselfsup_extracted(tensors: Tensors) -> Any:
    return {"state_dict": OrderedDict(tensors), "author": "OpenSelfSup"}


def vissl(tensors: Tensors) -> Any:
    trunk = {f"_feature_blocks.{name}": tensor for name, tensor in tensors.items()}
    heads = {"0.clf.0.weight": torch.zeros(4, 128), "0.clf.0.bias": torch.zeros(4)}
    model = {"model": {"trunk": trunk, "heads": heads}, "loss": {}, "meters": {}}
    return {"phase_idx": 104, "classy_state_dict": {"base_model": model, "optimizer": {}}}


def half(tensors: Tensors) -> Any:
    return {name: tensor.double() for name, tensor in tensors.items()}  # no bit is lost


LAYOUTS: list[Callable[[Tensors], Any]] = [
    torchvision, wrapped, mmselfsup, mmselfsup_extracted, vissl, half
]  # fmt: skip


def features(backbone: Backbone, photos: Path, out: Path) -> dict[str, bytes]:
    samples, layers = FolderDataset(photos), ("stem", "layer3", "pool")
    spec = FeatureSpec.settle(backbone, samples, torch.device("cpu"), layers=layers, crop=CROP)
    how = ExtractOptions(workers=1, progress=False)
    cache = extract_features(backbone, samples, out, spec, how)
    return {name: (cache.path / f"{name}.npy").read_bytes() for name in cache.layers}


@pytest.fixture(scope="module")
def plain(small_run: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Features of the run itself."""
    return features(load_backbone(small_run), photos, tmp_path_factory.mktemp("plain") / "cache")


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_foreign_names_give_the_same_features(layout, tensors, plain, photos, tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(layout(tensors), file)
    loaded = load_backbone(file)
    assert loaded.config == ModelConfig(name="resnet18", width=16)
    assert loaded.source == str(file) and not loaded.model.training
    assert features(loaded, photos, tmp_path / "cache") == plain


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.encoder.", "model.backbone."])
def test_safetensors_with_any_prefix_give_the_same_bits(prefix, tensors, small_run, tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file({f"{prefix}{name}": tensor for name, tensor in tensors.items()}, file)
    assert load_backbone(file).digest == load_backbone(small_run).digest


def test_the_old_format_of_torch_is_read(tensors, small_run, tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(tensors, file, _use_new_zipfile_serialization=False)
    assert load_backbone(file).digest == load_backbone(small_run).digest


def test_rotnets_own_names_give_its_network_in_network(tmp_path):
    model = build_model(ModelConfig(name="rotnet_nin"), seed=3).backbone
    network = {}
    for name, tensor in model.state_dict().items():
        block, layer, part, kind = name.split(".")
        number = int(block.removeprefix("block"))
        theirs = f"_feature_blocks.{number - 1}.Block{number}_ConvB{int(layer) + 1}.layers"
        network[f"{theirs}.{dict(conv='Conv', bn='BatchNorm')[part]}.{kind}"] = tensor
    network["_feature_blocks.4.Classifier.weight"] = torch.zeros(4, 192)
    torch.save({"epoch": 200, "network": network}, tmp_path / "net")
    loaded = load_backbone(tmp_path / "net")
    assert loaded.config == ModelConfig(name="rotnet_nin", blocks=4)
    assert loaded.digest == weights_digest(model)


def test_run_checkpoint_and_its_files_are_the_same_backbone(small_run, exported):
    run = load_backbone(small_run)
    assert (run.resolution, run.mean, run.config.width) == (64, (0.485, 0.456, 0.406), 16)
    assert run.source.endswith("step 3")
    for path in (exported.parent, exported, exported.with_name("tensors.safetensors")):
        assert load_backbone(path).digest == run.digest
    before = load_backbone(exported.parent.with_name("step-00000000"))
    assert before.digest != run.digest
    assert before.digest == load_backbone(small_run, random_init=True).digest
    assert before.digest != load_backbone(small_run, random_init=True, seed=1).digest


# Channel order


def test_bgr_is_as_if_the_images_were_fed_as_bgr(small_run, tensors, tmp_path):
    """MMSelfSup before 0.7: BGR images, normalised with RGB's mean and deviation by position."""
    torch.save(mmselfsup(tensors), tmp_path / "weights.pth")
    swapped = load_backbone(tmp_path / "weights.pth", channel_order="bgr")
    straight = load_backbone(tmp_path / "weights.pth")
    assert swapped.channel_order == "bgr" and swapped.digest != straight.digest
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def shown(backbone: Backbone, images: torch.Tensor) -> torch.Tensor:
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.mean, backbone.std))
        with torch.inference_mode():
            return backbone.model((images - mean) / std)

    expected = shown(straight, images.flip(1))
    assert torch.allclose(shown(swapped, images), expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(shown(straight, images), expected, rtol=1e-2)


# Refusals


def fails(path: Path, kind: type[FastrotError], match: str, **arguments: Any) -> None:
    with pytest.raises(kind, match=match) as caught:
        load_backbone(path, **arguments)
    assert "\n" not in str(caught.value)


def saved(tree: Any, tmp_path: Path) -> Path:
    torch.save(tree, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_fewer_than_95_percent_of_the_tensors_are_refused_by_name(tensors, tmp_path, caplog):
    """Of 100 tensors five may be missing, which is said; six may not."""
    names = [name for name in tensors if name.startswith("layer4") and "num_b" not in name]
    kept = {name: t for name, t in tensors.items() if name not in names[:5]}
    assert "5 of its 100 tensors missing" in load_backbone(saved(kept, tmp_path)).source
    assert names[0] in caplog.text
    del kept[names[5]]
    fails(
        saved(kept, tmp_path), MismatchError, f"94 of the backbone's 100 .*6 missing .*{names[0]}"
    )


@pytest.mark.parametrize("model", [None, ModelConfig(name="resnet18", width=16)])
def test_another_code_bases_prefixless_names_are_no_random_backbone(model, tensors, tmp_path):
    renamed = {name.replace("layer", "res"): tensor for name, tensor in tensors.items()}
    expected = "missing .*unknown to it .*res1.0.bn1" if model else "neither a ResNet nor.*bn1.bias"
    fails(saved(renamed, tmp_path), MismatchError, expected, model=model)


def test_the_first_convolution_may_not_have_another_shape(tensors, tmp_path):
    """One tensor in a hundred, but nothing is learnt in a network that begins at random."""
    grey = tensors | {"conv1.weight": tensors["conv1.weight"].sum(1, keepdim=True)}
    fails(saved(grey, tmp_path), MismatchError, r"conv1.weight \(16, 1, 7, 7\) instead of \(16, 3")


def test_a_deeper_network_is_not_taken_for_a_shallow_one(tmp_path):
    deep = build_model(ModelConfig(name="resnet34", width=16), seed=0).backbone.state_dict()
    file = saved(deep, tmp_path)
    assert load_backbone(file).config.name == "resnet34"
    shallow = ModelConfig(name="resnet18", width=16)
    fails(file, MismatchError, r"unknown to it \(layer1.2.conv1", model=shallow)


def test_a_network_with_more_between_the_convolutions_is_refused(tensors, tmp_path):
    """As timm's squeeze-and-excitation variants: every name of the plain one is there."""
    more = {f"layer{n}.0.se.fc1.weight": torch.zeros(4, 16, 1, 1) for n in (1, 2, 3, 4)}
    fails(saved(tensors | more, tmp_path), MismatchError, r"4 unknown to it \(layer1.0.se.fc1")


def test_two_encoders_in_one_file_are_refused(tensors, tmp_path):
    both = {f"{one}.{name}": t for one in ("encoder_q", "encoder_k") for name, t in tensors.items()}
    fails(saved({"state_dict": both}, tmp_path), MismatchError, "'encoder_k.', 'encoder_q.'")


@pytest.mark.parametrize("value", [float("nan"), 1e300])
def test_weights_that_are_not_finite_here_are_refused(value, tensors, tmp_path):
    bad = tensors | {"layer2.0.bn1.weight": tensors["layer2.0.bn1.weight"].double()}
    bad["layer2.0.bn1.weight"][3] = value
    fails(saved(bad, tmp_path), BadDataError, "layer2.0.bn1.weight holds values that are not fin")


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["torch", "old", "pickle"])
def test_no_file_runs_code(how, tensors, tmp_path):
    trap, file = tmp_path / "trap", tmp_path / "weights.pth"
    tree = {"state_dict": tensors, "hook": Bomb(trap)}
    if how == "pickle":
        file.write_bytes(pickle.dumps({"hook": Bomb(trap)}, protocol=2))
    else:
        torch.save(tree, file, _use_new_zipfile_serialization=how == "torch")
    fails(file, BadDataError, r"more than tensors \(posix.mkdir\).*save its state dict alone")
    assert not trap.exists()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("protocol", [2, 4])
def test_numpy_pickles_are_refused(protocol, tmp_path):
    """As detectron2 has them."""
    file = tmp_path / "model.pkl"
    tree = {"model": {"stem.conv1.weight": np.zeros((16, 3, 7, 7))}}
    file.write_bytes(pickle.dumps(tree, protocol=protocol))
    fails(file, BadDataError, "more than tensors .numpy|not a weight file .*Unsupported operand")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("size", [0, 1, 100, 20_000])
def test_cut_files_are_refused(name, size, tensors, tmp_path):
    file = tmp_path / name
    save_file(tensors, file) if file.suffix == ".safetensors" else torch.save(tensors, file)
    os.truncate(file, size)
    fails(file, BadDataError, str(file))


def test_files_without_tensors_show_their_keys(tmp_path):
    fails(saved({"epoch": 3, "settings": {"lr": 0.1}}, tmp_path), MismatchError, "epoch, settings")
    fails(saved([1, 2], tmp_path), MismatchError, "top level holds list")


def test_wrong_arguments_are_named(small_run, tmp_path):
    fails(tmp_path / "none", UsageError, "no such run, checkpoint or weight file")
    fails(tmp_path, UsageError, "no checkpoint in this folder")
    fails(small_run, UsageError, "unknown channel order 'gbr'", channel_order="gbr")
    other = ModelConfig(name="resnet50")
    fails(small_run, MismatchError, "its model is resnet18, width 16", model=other)
