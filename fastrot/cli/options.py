"""Options that several commands share, and how their lists are parsed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fastrot.errors import UsageError

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
SkipOrFail = Annotated[
    str | None,
    typer.Option("--on-bad-sample", metavar="fail|skip", help="What to do with a bad sample."),
]


Checkpoint = Annotated[
    Path, typer.Argument(help="A run folder, a checkpoint folder, or a weight file.")
]
ChannelOrder = Annotated[
    str, typer.Option(metavar="rgb|bgr", help="Channel order that the weights were trained with.")
]
Model = Annotated[
    str | None, typer.Option(help="Architecture of a weight file (default: inferred from it).")
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="plain|ema",
        help="Weights to take from a file that holds trained and averaged ones (default: plain; "
        "with student and teacher: the teacher).",
    ),
]
RandomInit = Annotated[
    bool, typer.Option("--random-init", help="Use the random weights that training started from.")
]


def _overrides(of: str) -> Any:
    return typer.Option("--set", metavar="KEY=VALUE", help=f"Override a setting of {of}.")


Overrides = Annotated[list[str] | None, _overrides("the protocol")]
TrainOverrides = Annotated[list[str] | None, _overrides("the recipe, e.g. train.epochs=10")]
SweepOverrides = Annotated[
    list[str] | None, _overrides("the sweep (seconds, slurm.partition) or of all its cells")
]
Pair = Annotated[
    tuple[Path, Path] | None,
    typer.Option(metavar="TRAIN TEST", help="suite: training and test data of this benchmark."),
]
Cluster = Annotated[
    str, typer.Option(metavar="local|slurm", help="Run here, or submit a job that runs it.")
]
Nodes = Annotated[int, typer.Option(min=1, help="slurm: number of nodes.")]
Gpus = Annotated[
    int,
    typer.Option(
        min=0,
        help="Ranks per machine, each with a GPU or a share of the CPU (slurm: 0 requests no GPU).",
    ),
]
FollowSymlinks = Annotated[
    bool, typer.Option("--follow-symlinks", help="Also follow symbolic links out of a folder.")
]
Ranks = Annotated[int, typer.Option("--gpus", min=1, help="Ranks on this machine, one per GPU.")]
Slurm = Annotated[
    list[str] | None,
    typer.Option("--slurm", metavar="KEY=VALUE", help="Slurm setting, e.g. partition=gpu."),
]
Wait = Annotated[bool, typer.Option("--wait", help="slurm: wait until the run has ended.")]


Peers = Annotated[
    str | None,
    typer.Option("--peers", metavar="NAME,...", help="Baselines (default: all that apply)."),
]
LabelledFeatures = Annotated[Path, typer.Option("--data", help="A feature cache with labels.")]
Threads = Annotated[
    int | None, typer.Option(help="Cores per competitor (default: all usable cores).")
]
Rounds = Annotated[int, typer.Option(help="Number of rounds; each measures every competitor.")]
Limit = Annotated[float, typer.Option(help="Time limit of a competitor's solution, in seconds.")]
Json = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write the report as one JSON object.")
]
Append = Annotated[
    Path | None, typer.Option(metavar="FILE.jsonl", help="Append records to a results file.")
]


Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Device to compute on.")]
Precision = Annotated[
    str, typer.Option(metavar="auto|fp32|bf16|fp16", help="Arithmetic precision, as in training.")
]
Seconds = Annotated[float, typer.Option(help="Minimum seconds per competitor and round.")]
Repeat = Annotated[
    int | None, typer.Option(help="Copies of the data (default: enough for 3,000 images).")
]


def names(text: str | None) -> tuple[str, ...] | None:
    """Split a list at its commas; return None if nothing was given."""
    return None if text is None else tuple(filter(None, text.split(",")))


def integers(text: str, flag: str) -> tuple[int, ...]:
    """Split a list of whole numbers at its commas.

    Raises:
        UsageError: one of them is not a whole number.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{flag}={text}: give whole numbers separated by commas") from None
