"""Commands that measure a backbone: ``fastrot extract`` and ``fastrot eval``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

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
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def add_commands(app: typer.Typer, show: Callable[[Any, bool], None]) -> None:
    """Add the commands to an app.

    Args:
        app: the command line.
        show: prints the report of a command and leaves.
    """

    @app.command()
    def extract(
        checkpoint: Checkpoint,
        data: Annotated[Path, typer.Option(help="Images: a .beton file, a folder or tar shards.")],
        out: Annotated[Path, typer.Option(help="Folder of the feature cache.")],
        layers: Annotated[
            str | None, typer.Option(metavar="NAME,...", help="Stages (default: all).")
        ] = None,
        protocol: Annotated[
            str | None, typer.Option(help="Layers and test transform of a protocol.")
        ] = None,
        crops: Annotated[
            int, typer.Option(min=0, help="Random crops an image; 0: the test transform.")
        ] = 0,
        channel_order: ChannelOrder = "rgb",
        model: Model = None,
        random_init: RandomInit = False,
        overrides: Overrides = None,
        json: AsJson = False,
    ) -> None:
        """Write the features of all images into a cache; after a kill, go on with it."""
        from fastrot.extract import extract as run

        report = run(
            checkpoint,
            data,
            out,
            layers=layers.split(",") if layers else None,
            protocol=protocol,
            crops=crops,
            random_init=random_init,
            channel_order=channel_order,
            model=model,
            overrides=tuple(overrides or ()),
            progress=not json,
        )
        show(report, json)

    @app.command("eval")
    def evaluate(
        protocol: Annotated[str, typer.Argument(help="voc07-svm, or a YAML file of that kind.")],
        checkpoint: Checkpoint,
        train: Annotated[Path, typer.Option(help="Training data with labels.")],
        test: Annotated[Path, typer.Option(help="Test data of the same classes.")],
        out: Annotated[
            Path | None, typer.Option(help="Folder for caches and results (default: RUN/eval).")
        ] = None,
        channel_order: ChannelOrder = "rgb",
        model: Model = None,
        random_init: RandomInit = False,
        overrides: Overrides = None,
        json: AsJson = False,
    ) -> None:
        """Run a published protocol; what is done already is not done again."""
        from fastrot.evaluation.run import run_protocol

        folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
        report = run_protocol(
            protocol,
            checkpoint,
            train=train,
            test=test,
            out=out or folder / "eval",
            overrides=tuple(overrides or ()),
            channel_order=channel_order,
            random_init=random_init,
            model=model,
            progress=not json,
            say=lambda text: typer.echo(text, err=True),
        )
        show(report, json)
