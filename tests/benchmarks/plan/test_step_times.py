"""A step's time: as measured, between measured batches, not far beyond, not across machines."""

from __future__ import annotations

import pytest

from fastrot.benchmarks.plan.step_times import NoRecordError, choose_steps
from fastrot.config import load_config
from tests.benchmarks.plan.plan_parts import RECIPE, records, step_record

CONFIG = load_config(RECIPE)


def test_a_measured_batch_takes_what_it_took() -> None:
    steps = choose_steps(records(), CONFIG, batches=[16])
    assert steps.seconds(32) == (18.0 / 1e3, "measured")


def test_between_two_batches_it_is_linear() -> None:
    seconds, how = choose_steps(records(), CONFIG, batches=[64]).seconds(64)
    assert seconds == pytest.approx((18 + (60 - 18) / 3) / 1e3)
    assert how == "interpolated"


@pytest.mark.parametrize(("batch", "milliseconds"), [(8, 6.0), (256, 120.0)])
def test_a_little_beyond_the_rate_stays(batch: int, milliseconds: float) -> None:
    seconds, how = choose_steps(records(), CONFIG, batches=[8]).seconds(batch)
    assert seconds == pytest.approx(milliseconds / 1e3) and how == "extrapolated"


def test_far_beyond_it_is_refused_with_the_command() -> None:
    steps = choose_steps(records(), CONFIG, batches=[8])
    for batch in (7, 257):
        with pytest.raises(NoRecordError, match=rf"--batch {batch} --append steps\.jsonl"):
            steps.seconds(batch)


def test_machines_are_never_mixed() -> None:
    mixed = [*records(), step_record(64, 10.0, hardware="GPU B")]
    with pytest.raises(NoRecordError, match=r"GPU A; GPU B.*--hardware"):
        choose_steps(mixed, CONFIG, batches=[64])
    assert choose_steps(mixed, CONFIG, batches=[64], hardware="gpu a").seconds(64)[0] > 0.03
    assert choose_steps(mixed, CONFIG, batches=[64], hardware="GPU B").seconds(64)[0] == 0.01


def test_threads_of_a_processor_are_hardware() -> None:
    two = [
        step_record(16, 12.0 * t, on_gpu=False, precision="fp32", step="eager",
                    hardware=f"CPU, {t} thread{'s' * (t > 1)}")
        for t in (1, 2)
    ]  # fmt: skip
    with pytest.raises(NoRecordError, match="several kinds"):
        choose_steps(two, CONFIG, batches=[16])
    config = load_config(RECIPE, ["train.threads=1"])
    assert choose_steps(two, config, batches=[16]).seconds(16)[0] == pytest.approx(0.012)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": ("resnet50", 32, "imagenet")},
        {"model": ("resnet18", 64, "imagenet")},
        {"resolution": 128},
        {"views": 1},
        {"step": "apex"},
    ],
)
def test_what_differs_does_not_fit(changes: dict[str, object]) -> None:
    with pytest.raises(NoRecordError, match=r"bench train-step --model resnet50 .*--batch 8,16 "):
        choose_steps([step_record(**changes)], CONFIG, batches=[8, 16])  # type: ignore[arg-type]


def test_the_settings_choose_among_steps_and_precisions() -> None:
    several = [step_record(16, 20.0, step="eager"), step_record(16, 12.0),
               step_record(16, 30.0, precision="fp32")]  # fmt: skip
    for settings, expected in (
        ([], 12.0),
        (["train.step=eager"], 20.0),
        (["train.precision=fp32"], 30.0),
    ):
        config = load_config(RECIPE, settings)
        found = choose_steps(several, config, batches=[16]).seconds(16)[0]
        assert found == pytest.approx(expected / 1e3)


def test_memory_lies_between_the_records_and_is_not_underestimated_beyond() -> None:
    steps = choose_steps(records(), CONFIG, batches=[16])
    assert steps.memory(64) == pytest.approx(2e9 + 64e8)
    assert steps.memory(8) == pytest.approx(2e9 + 16e8)
    assert steps.memory(256) == pytest.approx(2 * (2e9 + 128e8))
    unknown = choose_steps([step_record(memory=None)], CONFIG, batches=[16])
    assert unknown.memory(16) is None
