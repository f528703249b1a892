"""A rank that fails takes the others along: at once, with its reason and its exit code."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.ranks.faulty import RANK, STEP

SETTINGS = ("train.max_steps=6", "train.global_batch=32", "train.checkpoint_steps=1")


@pytest.mark.parametrize("value", ["nan", pytest.param("inf", marks=pytest.mark.chaos)])
def test_a_loss_that_is_not_finite_on_one_rank_stops_both(
    train: Callable[..., Any], fault_log: Any, value: str
) -> None:
    with fault_log(13) as trial:
        run = train("run", settings=SETTINGS, program="tests.ranks.faulty:not_finite", first=value)
        started = time.time()
        main, other = run.end(70, 70)
        trial.seconds = main.at - started
        assert f"NaN or infinite in step {STEP - 1}" in main.text and not other.text
        assert run.status["exit_code"] == 70
        good = train("good", settings=(*SETTINGS, f"train.max_steps={STEP - 1}"))
        good.end()
        ours, theirs = run.tensors(STEP - 1), good.tensors(STEP - 1)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert not (run.out / "checkpoints" / f"step-{STEP:08d}").exists()
        assert all(math.isfinite(float(tensor.sum())) for tensor in ours.values())


@pytest.mark.parametrize(
    ("program", "rank", "code", "words"),
    [
        ("out_of_memory", 1, 71, "rank 1: out of memory"),
        ("bad_sample", 1, 65, "photo-7.jpg"),
        pytest.param("no_data", 0, 64, "train.beton: no such file", marks=pytest.mark.chaos),
        ("no_data", 1, 64, "rank 1: train.beton: no such file"),
        pytest.param("in_validation", 0, 65, "photo-3.jpg", marks=pytest.mark.chaos),
        ("in_validation", 1, 65, "photo-3.jpg"),
    ],
)
def test_all_ranks_leave_with_the_code_of_the_one_that_failed(
    train: Callable[..., Any], fault_log: Any, program: str, rank: int, code: int, words: str
) -> None:
    with fault_log(24) as trial:
        run = train(
            "run",
            settings=(*SETTINGS, "data.val=embedded:digits"),
            program=f"tests.ranks.faulty:{program}",
            environment={RANK: str(rank)},
        )
        started = time.time()
        ended = run.end(code, code)
        trial.seconds = abs(ended[0].at - ended[1].at)
        assert time.time() - started < 60
        told = "".join(each.text for each in ended)
        assert told.count("fastrot: ") == 1 and f"fastrot: rank {rank}: " in told, told
        assert words in told and "Traceback" not in told
        assert run.status["exit_code"] == code and run.status["state"] == "failed"
        assert words.removeprefix(f"rank {rank}: ") in run.status["message"]


def test_the_main_rank_cannot_save(train: Callable[..., Any], fault_log: Any) -> None:
    with fault_log(24) as trial:
        run = train("run", settings=SETTINGS, program="tests.ranks.faulty:disk_full")
        main, other = run.end(74, 74)
        trial.seconds = abs(main.at - other.at)
        assert main.text.count("training continues") == 2  # the third one in a row is too much
        assert not other.text
        assert run.tensors(0)


def test_a_run_that_is_held_by_another(train: Callable[..., Any], fault_log: Any) -> None:
    with fault_log(24):
        first = train("run", settings=("train.max_steps=200",))
        first.reached(1)
        second = train("run", "--resume", settings=("train.max_steps=200",))
        main, other = second.end(78, 78)
        assert "is held by" in main.text and "Traceback" not in main.text + other.text
        for rank in first.ranks:
            rank.signal(15)
        first.end(75, 75)


def test_a_rank_that_is_late_to_leave_is_no_failure(train: Callable[..., Any]) -> None:
    run = train("run", settings=SETTINGS, program="tests.ranks.faulty:at_the_end")
    run.end()
    assert run.status["state"] == "done"


@pytest.mark.chaos
def test_a_rank_that_waits_for_ever_ends_with_its_stacks(
    train: Callable[..., Any], fault_log: Any
) -> None:
    with fault_log(16) as trial:
        run = train(
            "run",
            settings=(*SETTINGS, "train.deadline_seconds=10"),
            program="tests.ranks.faulty:stuck",
        )
        run.reached(STEP - 1)
        began = time.time()
        main, other = run.end(69, 69)
        trial.seconds = other.at - began
        assert "another rank is gone" in main.text or "did not" in main.text
        assert run.status["exit_code"] == 69
        assert other.at - main.at < 15  # it hears of the other's end, and cannot leave by itself


def test_bad_samples_of_all_ranks_are_listed_and_counted(
    train: Callable[..., Any], damaged: Any, fault_log: Any
) -> None:
    with fault_log(7) as trial:
        skip = ("train.global_batch=32", "data.on_bad_sample=skip", "data.loader=reference")
        runs = [
            train(
                f"{size}", "-c", "digits", "--data", str(damaged.path), size=size,
                settings=(*skip, "data.max_bad=100", "train.epochs=1"),
            )
            for size in (1, 2)
        ]  # fmt: skip
        for run in runs:
            run.end()
        one, two = (
            [json.loads(line) for line in (run.out / "bad_samples.jsonl").open()] for run in runs
        )
        assert {record["sample"] for record in two} == {record["sample"] for record in one}
        assert {record["sample"] for record in two} == set(damaged.samples)
        assert len(two) == len(one) == len(damaged.samples)
        assert runs[0].samples() == runs[1].samples()
        trial.wrong = 0
        few = train(
            "few", "-c", "digits", "--data", str(damaged.path),
            settings=(*skip, "data.max_bad=2"),
        )  # fmt: skip
        main, other = few.end(65, 65)
        assert "more than data.max_bad=2" in main.text and "Traceback" not in other.text
