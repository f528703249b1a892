"""Options that several commands share, and how lists in them are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastrot.errors import UsageError

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
SkipOrFail = Annotated[
    str | None,
    typer.Option("--on-bad-sample", metavar="fail|skip", help="What to do with a bad sample."),
]


Checkpoint = Annotated[
    Path, typer.Argument(help="A run folder, a checkpoint folder, or a file of weights.")
]
ChannelOrder = Annotated[
    str, typer.Option(metavar="rgb|bgr", help="Channel order that the weights were trained with.")
]
Model = Annotated[
    str | None, typer.Option(help="Architecture of a file of weights (default: guessed).")
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="plain|ema",
        help="Of a file that holds a network as trained and averaged (default: as trained; of "
        "student and teacher: the teacher).",
    ),
]
RandomInit = Annotated[
    bool, typer.Option("--random-init", help="Use the weights that training started from.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of the protocol."),
]
TrainOverrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of the recipe."),
]
Pair = Annotated[
    tuple[Path, Path] | None,
    typer.Option(metavar="TRAIN TEST", help="suite: training and test data of that benchmark."),
]
Cluster = Annotated[
    str, typer.Option(metavar="local|slurm", help="Train here, or submit a job that trains.")
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
    bool, typer.Option("--follow-symlinks", help="Also follow links that lead out of a folder.")
]
Ranks = Annotated[
    int, typer.Option("--gpus", min=1, help="Ranks on this machine that extract, one per GPU.")
]
Slurm = Annotated[
    list[str] | None,
    typer.Option("--slurm", metavar="KEY=VALUE", help="E.g. partition=gpu, time_min=600."),
]
Wait = Annotated[bool, typer.Option("--wait", help="slurm: wait until the run has ended.")]


Peers = Annotated[
    str | None,
    typer.Option(metavar="NAME,...", help="What to compare with (default: all that fit)."),
]
Threads = Annotated[
    int | None, typer.Option(help="Cores for each competitor (default: all usable ones).")
]
Rounds = Annotated[int, typer.Option(help="Rounds, in each of which every competitor is measured.")]
Limit = Annotated[
    float, typer.Option(help="Seconds after which a competitor's solution is given up.")
]
Json = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write the report as one JSON object.")
]
Append = Annotated[
    Path | None, typer.Option(metavar="FILE.jsonl", help="Add records to a results file.")
]


Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to compute.")]
Precision = Annotated[
    str, typer.Option(metavar="auto|fp32|bf16|fp16", help="Precision, as in training.")
]
Seconds = Annotated[float, typer.Option(help="Minimum seconds per competitor and round.")]
Repeat = Annotated[
    int | None, typer.Option(help="Copies of the data (default: up to 3,000 images).")
]


def names(text: str | None) -> tuple[str, ...] | None:
    """Split a list at its commas; None where nothing was given."""
    return None if text is None else tuple(filter(None, text.split(",")))


def integers(text: str, flag: str) -> tuple[int, ...]:
    """Split a list of whole numbers at its commas.

    Raises:
        UsageError: one of them is no whole number.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{flag}={text}: name whole numbers, with commas between them") from None
