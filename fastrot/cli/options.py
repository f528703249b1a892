"""Options that several commands share, and how their words are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastrot.errors import UsageError

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
SkipOrFail = Annotated[
    str | None, typer.Option("--on-bad-sample", metavar="fail|skip", help="What a bad sample does.")
]


Checkpoint = Annotated[
    Path, typer.Argument(help="A run, a checkpoint folder, or a file of weights.")
]
ChannelOrder = Annotated[
    str, typer.Option(metavar="rgb|bgr", help="Of the images the weights were trained on.")
]
Model = Annotated[
    str | None, typer.Option(help="Architecture of a file of weights (default: guessed).")
]
RandomInit = Annotated[
    bool, typer.Option("--random-init", help="Take the weights that training began with.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of the protocol."),
]
Pair = Annotated[
    tuple[Path, Path] | None,
    typer.Option(metavar="TRAIN TEST", help="suite: training and test data of that benchmark."),
]
Cluster = Annotated[
    str, typer.Option(metavar="local|slurm", help="Train here, or submit a job that trains.")
]
Nodes = Annotated[int, typer.Option(min=1, help="slurm: machines.")]
Gpus = Annotated[
    int,
    typer.Option(
        min=0,
        help="Ranks of a machine: one a GPU, or a share of the CPU (slurm: 0 asks for no GPU).",
    ),
]
Ranks = Annotated[
    int, typer.Option("--gpus", min=1, help="Ranks of this machine that extract: one a GPU.")
]
Slurm = Annotated[
    list[str] | None,
    typer.Option("--slurm", metavar="KEY=VALUE", help="E.g. partition=gpu, time_min=600."),
]
Wait = Annotated[bool, typer.Option("--wait", help="slurm: stay until the run has ended.")]


Peers = Annotated[str | None, typer.Option(metavar="NAME,...", help="(default: all that fit).")]
Threads = Annotated[
    int | None, typer.Option(help="Cores of each contender (default: the usable ones).")
]
Rounds = Annotated[int, typer.Option(help="Turns of each contender.")]
Limit = Annotated[float, typer.Option(help="Seconds after which a peer's solution is given up.")]
Json = Annotated[Path | None, typer.Option(metavar="FILE", help="Write one object.")]
Append = Annotated[Path | None, typer.Option(metavar="FILE.jsonl", help="Add a record, one line.")]


Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where it runs.")]
Precision = Annotated[str, typer.Option(metavar="auto|fp32|bf16|fp16", help="As in training.")]
Seconds = Annotated[float, typer.Option(help="Least length of a turn.")]
Numbers = Annotated[str, typer.Option(metavar="N,...", help="One or more.")]


def names(peers: str | None) -> tuple[str, ...] | None:
    """What stands between the commas; None where nothing was given."""
    return None if peers is None else tuple(filter(None, peers.split(",")))


def integers(text: str, flag: str) -> list[int]:
    """What stands between the commas, as whole numbers.

    Raises:
        UsageError: one is none.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{flag}={text}: name whole numbers, with commas between them") from None
