"""``fastrot export`` and ``fastrot import``: weights for other libraries, and from them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastrot.cli.options import AsJson, ChannelOrder, Checkpoint, Model, Weights
from fastrot.cli.show import fill, show

app = typer.Typer()


@app.command("export")
def export_weights(
    checkpoint: Checkpoint,
    out: Annotated[
        Path,
        typer.Argument(help="A file with the suffix of the format, or a folder; nothing replaced."),
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar="torchvision|timm|mmdet|mmseg|detectron2|huggingface|onnx|safetensors",
            help="Library, or format, to write for.",
        ),
    ],
    with_head: Annotated[
        bool, typer.Option("--with-head", help="Add the rotation head (4 classes).")
    ] = False,
    license: Annotated[
        str, typer.Option(help="Licence of the weights for the model card, e.g. apache-2.0.")
    ] = "unknown",
    channel_order: ChannelOrder = "rgb",
    model: Model = None,
    weights: Weights = None,
    json: AsJson = False,
) -> None:
    """Write a backbone for another library, with a model card."""
    options = locals()
    from fastrot.evaluation.measurements import stored_results
    from fastrot.weights.export.run import ExportRequest, export

    del options["json"]
    show(export(fill(ExportRequest, options, results=stored_results(checkpoint))), json)


@app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="A weight file from another codebase.")],
    out: Annotated[Path, typer.Argument(help="Run folder to write; absent or empty.")],
    turns: Annotated[
        str,
        typer.Option(
            metavar="auto|counter-clockwise|clockwise",
            help="Direction of the turns of its rotation head (auto: clockwise for MMSelfSup 1.x).",
        ),
    ] = "auto",
    channel_order: ChannelOrder = "rgb",
    model: Model = None,
    weights: Weights = None,
    seed: Annotated[int, typer.Option(help="Seed of the rotation head if the file has none.")] = 0,
    json: AsJson = False,
) -> None:
    """Make a run folder from a weight file; `fastrot train --resume` trains on from it."""
    options = locals()
    from fastrot.weights.import_file import ImportRequest, import_weights

    del options["json"]
    show(import_weights(fill(ImportRequest, options)), json)
