from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastrot.cli.launch import submit_if_asked, train_words
from fastrot.errors import UsageError
from fastrot.runs.checkpoint import save_checkpoint


def options(**changes: Any) -> dict[str, Any]:
    return {"cluster": "local", "nodes": 1, "gpus": 1, "slurm": None, "wait": False,
            "resume": False, **changes}  # fmt: skip


def test_the_job_says_what_the_user_said() -> None:
    given = options(
        data=Path("a b.beton"), loader="native", overrides=["train.seed=1", "model.width=8"]
    )
    assert train_words(given, "digits") == [
        *("train", "-c", "digits", "--data", "a b.beton", "--loader", "native"),
        *("--set", "train.seed=1", "--set", "model.width=8"),
    ]
    assert train_words(options(ffcv=Path("x.beton")), None) == ["train", "--ffcv", "x.beton"]


def test_without_a_cluster_nothing_is_submitted(tmp_path: Path) -> None:
    assert not submit_if_asked(options(gpus=4), "digits", tmp_path)


@pytest.mark.parametrize(
    "change", [{"nodes": 2}, {"gpus": 0}, {"slurm": ["qos=a"]}, {"wait": True}]
)
def test_options_of_slurm_without_slurm(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--cluster slurm"):
        submit_if_asked(options(**change), "digits", tmp_path)


def test_an_unknown_cluster(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="local or slurm"):
        submit_if_asked(options(cluster="cloud"), "digits", tmp_path)


def test_a_run_that_is_there_is_not_gone_on_with_by_mistake(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    save_checkpoint(tmp_path / "checkpoints", 3, {}, {}, run_id="1" * 16, exports={})
    with pytest.raises(UsageError, match="add --resume"):
        submit_if_asked(options(cluster="slurm"), "digits", tmp_path)
