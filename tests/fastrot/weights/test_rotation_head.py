"""The rotation head is found under the names of each codebase, and under no other."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from fastrot.weights.load import load_backbone
from fastrot.weights.rotation_head import find_head
from tests.fastrot.weights.networks import (
    NARROW,
    NIN,
    backbone_of,
    head_of,
    mmselfsup,
    random_model,
    rotnet,
    saved,
    vissl,
)


@pytest.mark.parametrize(
    ("config", "layout", "name"),
    [
        (NARROW, mmselfsup, "state_dict.head.fc_cls"),
        (NARROW, vissl, "classy_state_dict.base_model.model.heads.0.clf.0"),
        (NIN, rotnet, "network._feature_blocks.4.Classifier"),
    ],
    ids=["mmselfsup", "vissl", "rotnet"],
)
def test_heads_of_other_code_bases_are_found(config, layout, name, tmp_path):
    model = random_model(config)
    backbone = load_backbone(saved(layout(model), tmp_path / "weights.pth"))
    assert backbone.head is not None and backbone.head.name == name
    weight, bias = head_of(model)
    assert torch.equal(backbone.head.weight, weight) and torch.equal(backbone.head.bias, bias)
    assert not backbone.clockwise


def test_clockwise_turns_of_mmselfsup_1_are_reordered(tmp_path):
    """Row k of our head is the row that theirs has for a turn by -k: 0, 3, 2, 1."""
    model = random_model(NARROW)
    old = load_backbone(saved(mmselfsup(model), tmp_path / "old.pth"))
    new = load_backbone(saved(mmselfsup(model, version=1), tmp_path / "new.pth"))
    assert new.clockwise and new.digest == old.digest
    assert old.head is not None and new.head is not None
    for ours, theirs in enumerate((0, 3, 2, 1)):
        assert torch.equal(new.head.weight[ours], old.head.weight[theirs])
        assert torch.equal(new.head.bias[ours], old.head.bias[theirs])


def test_a_run_has_its_own_head_and_random_weights_have_none(small_run):
    from safetensors.torch import load_file

    step = small_run / "checkpoints" / "step-00000003"
    head = load_backbone(small_run).head
    expected = load_file(step / "tensors.safetensors")["model.head.fc.weight"]
    assert head is not None and torch.equal(head.weight, expected)
    assert load_backbone(small_run, random_init=True).head is None


def test_four_classes_of_something_else_are_not_turns(tmp_path):
    tensors = backbone_of(random_model(NARROW))
    tensors["fc.weight"], tensors["fc.bias"] = torch.ones(4, 128), torch.ones(4)
    assert load_backbone(saved(tensors, tmp_path / "weights.pth")).head is None
    save_file(tensors, tmp_path / "theirs.safetensors", {"rotation_head": ""})
    assert load_backbone(tmp_path / "theirs.safetensors").head is None


def test_two_heads_and_other_shapes_are_none() -> None:
    one = {"head.fc.weight": torch.ones(4, 8), "head.fc.bias": torch.ones(4)}
    assert find_head({"a": one}) is not None
    assert find_head({"a": one, "b": one}) is None
    assert find_head({"head.fc.weight": torch.ones(4, 8)}) is None
    assert find_head({"head.fc.weight": torch.ones(10, 8), "head.fc.bias": torch.ones(10)}) is None
