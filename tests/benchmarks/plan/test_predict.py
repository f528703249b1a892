"""Predictions: the record itself for one GPU, values by hand, and laws for any number."""

from __future__ import annotations

import time

import pytest

from fastrot.benchmarks.plan.collectives import Fabric, Link, all_reduce
from fastrot.benchmarks.plan.predict import predict
from fastrot.benchmarks.plan.step_times import NoRecordError, choose_steps
from fastrot.errors import UsageError
from tests.benchmarks.plan.plan_parts import CLUSTER, inputs, step_record

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


def test_a_slow_network_by_hand() -> None:
    """One bucket after the other over a link so slow that the backward pass is over long before."""
    slow = Fabric(Link(0.0, 1e6), Link(0.0, 1e6), 8)
    found = predict(inputs("model.sync_bn=false", fabric=slow), 2)
    gradients = found.fixed_memory / 3
    assert found.all_reduce == pytest.approx(gradients / 1e6)  # two ranks send all of it once
    # All but what was sent while the backward pass ran, which is less than the whole step.
    assert found.all_reduce - found.compute < found.exposed < found.all_reduce + 1e-4
    assert found.bound == "network"
    assert found.gpu_sent == pytest.approx(gradients, rel=1e-6)


def test_a_fast_network_leaves_the_last_bucket() -> None:
    fast = Fabric(Link(0.0, 1e15), Link(0.0, 1e15), 8)
    assert predict(inputs("model.sync_bn=false", fabric=fast), 8).exposed < 1e-6


def test_without_overlap_everything_is_added() -> None:
    plain = inputs("model.sync_bn=false", overlap=False)
    found = predict(plain, 8)
    flag = all_reduce(8, 4, CLUSTER).seconds
    assert found.exposed == pytest.approx(found.all_reduce + flag)
    assert predict(inputs("model.sync_bn=false"), 8).exposed < found.exposed


def test_synchronised_statistics_cost_their_latencies() -> None:
    shared, apart = (predict(inputs(f"model.sync_bn={on}"), 8) for on in ("true", "false"))
    # 53 layers; 7 hops to gather, 14 to reduce: 3 us each, and a little for the bytes.
    assert shared.sync_bn == pytest.approx(53 * 21 * 3e-6, rel=0.25)
    assert shared.sync_bn > 53 * 21 * 3e-6 and apart.sync_bn == 0
    assert shared.exposed > apart.exposed


def test_accumulation_waits_for_gradients_once() -> None:
    parts = inputs("train.micro_batch=16", "model.sync_bn=false", overlap=False, per_gpu=64)
    found = predict(parts, 8)
    assert (found.passes, found.compute) == (4, pytest.approx(4 * 0.012))
    assert found.exposed == pytest.approx(predict(inputs(
        "model.sync_bn=false", overlap=False), 8).exposed)  # fmt: skip


@pytest.mark.parametrize("overlap", [True, False])
def test_laws(overlap: bool) -> None:
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


def test_a_slow_loader_bounds_the_step() -> None:
    found = predict(inputs(loader_rate=1000.0), 16)
    assert found.bound == "loader"
    assert found.step == pytest.approx(8 * 64 / 1000)
    assert found.node_images_per_s == pytest.approx(1000)
    assert predict(inputs(loader_rate=1e6), 16).bound == "compute"


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(UsageError, match="multiple of the 3 ranks"):
        predict(inputs(per_gpu=None), 3)
    with pytest.raises(UsageError, match="more than the 1,000 images"):
        predict(inputs(images=1000), 16)
    with pytest.raises(NoRecordError, match="4 images a GPU"):
        predict(inputs(per_gpu=None), 32)


def test_the_share_of_the_backward_pass_is_the_profiled_one() -> None:
    parts = inputs("model.sync_bn=false")
    profiled = [step_record(64, 32.0, backward_share=share) for share in (0.05, 0.9)]
    slow = Fabric(Link(0.0, 1e9), Link(0.0, 1e9), 8)
    short, long = (
        predict(
            inputs("model.sync_bn=false", fabric=slow,
                   steps=choose_steps([one], parts.config, batches=[64])), 8)
        for one in profiled
    )  # fmt: skip
    assert short.exposed > long.exposed  # less of the sending is hidden


def test_a_thousand_gpus_are_planned_at_once() -> None:
    parts = inputs()
    began = time.monotonic()
    for world in WORLDS:
        predict(parts, world)
    assert time.monotonic() - began < 2
