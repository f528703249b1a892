"""What is asked of Slurm: one declaration for training runs and sweeps (jobs: tests/slurm)."""

from __future__ import annotations

import pytest

from fastrot.distributed.slurm import (
    SlurmSettings,
    SweepSlurmSettings,
    TrainSlurmSettings,
    parse_slurm_options,
)
from fastrot.errors import UsageError


def test_options_of_slurm() -> None:
    options = parse_slurm_options(["partition=gpu", "time_min=90", "constraint=h100&ib"])
    assert (options.partition, options.time_min, options.constraint) == ("gpu", 90, "h100&ib")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partition", "key=value"),
        ("partitions=gpu", "nearest known key is 'partition'"),
        ("time_min=0", "time_min=0"),
        ("time_min=[", "not valid YAML"),
    ],
)
def test_a_wrong_option_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_slurm_options([text])


def test_runs_and_sweeps_share_their_settings() -> None:
    run, sweep = TrainSlurmSettings(), SweepSlurmSettings()
    assert (run.time_min, run.signal_delay_s, sweep.time_min, sweep.signal_delay_s) == (
        *(1440, 120),
        *(30, 60),
    )
    shared = set(SlurmSettings.model_fields)
    assert set(TrainSlurmSettings.model_fields) - shared == {"tasks_per_node"}
    assert set(SweepSlurmSettings.model_fields) - shared == {"gpus_per_node", "array_parallelism"}
