"""Predictions: the record itself for one GPU, values by hand, and laws for any number."""

from __future__ import annotations

import pytest

from fastrot.benchmarks.plan.collectives import Fabric, Link, all_reduce
from fastrot.benchmarks.plan.predict import crop_sizes, planned_network, predict
from fastrot.benchmarks.plan.step_times import NoRecordError, StepTimes
from fastrot.config import ModelConfig, ModelName, load_config
from fastrot.errors import UsageError
from fastrot.models.backbones import build_model
from tests.benchmarks.plan.plan_parts import CLUSTER, RECIPE, inputs

WORLDS = (1, 2, 3, 8, 16, 64, 256, 1024)


def test_one_gpu_takes_exactly_what_was_measured() -> None:
    for sync_bn in ("true", "false"):
        found = predict(inputs(f"model.sync_bn={sync_bn}", per_gpu=128), 1)
        assert (found.step, found.exposed, found.efficiency) == (0.06, 0.0, 1.0)
        assert found.how == "measured"
        assert found.gpu_sent == found.network_sent == 0


def test_the_length_of_a_run_by_hand() -> None:
    found = predict(inputs(per_gpu=128, price=2.0), 1)
    assert found.steps_per_epoch == 10_009  # as the published recipe counts its steps
    assert found.total_steps == 700_630
    assert found.hours == pytest.approx(700_630 * 0.06 / 3600)
    assert found.cost == pytest.approx(2 * found.hours)
    assert found.views_per_s == pytest.approx(4 * 128 / 0.06)
    assert found.epoch_bytes == pytest.approx(10_009 * 128 * 1e5)
    assert found.node_read_per_s == pytest.approx(128 / 0.06 * 1e5)


@pytest.mark.parametrize(
    ("name", "norms"), [("resnet18", 20), ("resnet50", 53), ("rotnet_nin", 12)]
)
def test_a_network_has_all_its_gradients_and_norms(name: ModelName, norms: int) -> None:
    network = planned_network(ModelConfig(name=name))
    model = build_model(ModelConfig(name=name), seed=0)
    assert network.gradient_bytes == 4 * sum(p.numel() for p in model.parameters())
    assert len(network.norms) == norms


def test_a_slow_network_by_hand() -> None:
    """The link is so slow that the backward pass, two thirds of 32.0 ms, hides what it can."""
    slow = Fabric(Link(0.0, 1e6), Link(0.0, 1e6), 8)
    found = predict(inputs("model.sync_bn=false", fabric=slow, overlap=1.0), 2)
    gradients = found.fixed_memory / 3
    assert found.all_reduce == pytest.approx(gradients / 1e6)  # two ranks send all of it once
    assert found.exposed == pytest.approx(found.all_reduce - 0.032 * 2 / 3, rel=1e-5)
    assert found.bound == "network"
    assert found.gpu_sent == pytest.approx(gradients, rel=1e-6)


@pytest.mark.parametrize("overlap", [0.0, 0.8, 1.0])
def test_the_rest_of_the_overlap_is_added(overlap: float) -> None:
    found = predict(inputs("model.sync_bn=false", overlap=overlap), 8)
    flag = all_reduce(8, 4, CLUSTER).seconds
    assert found.exposed == pytest.approx((1 - overlap) * found.all_reduce + flag)
    assert found.step == pytest.approx(found.compute + found.exposed)


def test_synchronised_statistics_cost_their_latencies() -> None:
    shared, apart = (predict(inputs(f"model.sync_bn={on}"), 8) for on in ("true", "false"))
    # 53 layers; 7 hops to gather, 14 to reduce: 3 us each, and a little for the bytes.
    assert shared.sync_bn == pytest.approx(53 * 21 * 3e-6, rel=0.25)
    assert shared.sync_bn > 53 * 21 * 3e-6 and apart.sync_bn == 0
    assert shared.exposed > apart.exposed


def test_accumulation_waits_for_gradients_once() -> None:
    parts = inputs("train.micro_batch=16", "model.sync_bn=false", per_gpu=64)
    found = predict(parts, 8)
    assert (found.passes, found.compute) == (4, pytest.approx(4 * 0.012))
    once = predict(inputs("model.sync_bn=false"), 8)
    assert found.exposed == pytest.approx(once.exposed)
    shared, one = (
        predict(inputs(f"train.micro_batch={size}", per_gpu=64), 8).sync_bn for size in (16, 64)
    )
    assert shared == pytest.approx(4 * one)  # statistics are those of a pass


@pytest.mark.parametrize("overlap", [0.8, 0.0])
def test_laws(overlap: float) -> None:
    for world in WORLDS:
        found = predict(inputs(overlap=overlap), world)
        assert 0 < found.efficiency <= 1
        assert found.step == pytest.approx(found.compute + found.exposed)
        for bandwidth in (1.5, 10.0):
            wide = Fabric(
                Link(CLUSTER.inside.latency, bandwidth * CLUSTER.inside.bandwidth),
                Link(CLUSTER.between.latency, bandwidth * CLUSTER.between.bandwidth),
            )
            assert predict(inputs(overlap=overlap, fabric=wide), world).step <= found.step


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(UsageError, match="multiple of the 3 ranks"):
        predict(inputs(per_gpu=None), 3)
    with pytest.raises(UsageError, match="more than the 1,000 images"):
        predict(inputs(images=1000), 16)
    with pytest.raises(NoRecordError, match="4 images per GPU"):
        predict(inputs(per_gpu=None), 32)


def test_sizes_of_crops_last_until_the_next_or_the_end() -> None:
    assert crop_sizes(load_config(RECIPE)) == {224: 1.0}
    settings = ["data.progressive=[[0,128],[20,160],[55,224]]", "train.epochs=70"]
    assert crop_sizes(load_config(None, settings)) == pytest.approx(
        {128: 20 / 70, 160: 35 / 70, 224: 15 / 70}
    )
    short = crop_sizes(load_config(None, [*settings, "train.epochs=30.5"]))
    assert short == pytest.approx({128: 20 / 30.5, 160: 10.5 / 30.5})


def test_where_crops_grow_a_step_is_the_mean_and_memory_the_most() -> None:
    growing = inputs("data.progressive=[[0,128],[20,224]]", "train.epochs=80")
    growing.steps[128] = StepTimes("GPU A", True, {32: 8e-3, 128: 20e-3}, {128: 10**9})  # type: ignore[index]
    found = predict(growing, 1)
    assert found.compute == pytest.approx(0.25 * 12e-3 + 0.75 * 32e-3)
    assert found.how == "interpolated" and found.memory == pytest.approx(8.4e9)
    growing.steps[128] = StepTimes("GPU A", True, {64: 10e-3})  # type: ignore[index]
    assert predict(growing, 1).memory is None
