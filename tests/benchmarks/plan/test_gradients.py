"""What a network asks of the links: all its parameters, none twice."""

from __future__ import annotations

import pytest

from fastrot.benchmarks.common.roofline import layers_of, step_flops
from fastrot.benchmarks.plan.gradients import planned_network
from fastrot.config import ModelConfig, ModelName
from fastrot.models.backbones import build_model


@pytest.mark.parametrize(
    ("name", "norms"), [("resnet18", 20), ("resnet50", 53), ("rotnet_nin", 12)]
)
def test_gradients_work_and_norms(name: ModelName, norms: int) -> None:
    config = ModelConfig(name=name)
    network = planned_network(config, 64)
    model = build_model(config, seed=0)
    assert network.parameters == sum(p.numel() for p in model.parameters())
    assert sorted(g for layer in network.layers for g in layer.gradients) == sorted(
        4 * p.numel() for p in model.parameters()
    )
    assert len(network.norms) == norms
    assert network.forward_flops + network.backward_flops == step_flops(layers_of(config, 64))
