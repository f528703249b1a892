"""Commands that evaluate a backbone: ``fastrot extract``, ``eval`` and ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastrot.cli.launch import on_ranks, repeated_words, slurm_settings, submit
from fastrot.cli.options import (
    AsJson,
    ChannelOrder,
    Checkpoint,
    Cluster,
    FollowSymlinks,
    Gpus,
    Model,
    Nodes,
    Overrides,
    Pair,
    RandomInit,
    Ranks,
    Slurm,
    Wait,
    Weights,
)
from fastrot.cli.show import fill, show
from fastrot.errors import UsageError

app = typer.Typer()

_SETS = (
    *("voc07", "imagenet", "places205", "inat18"),
    *("voc0712", "coco", "voc12aug", "cityscapes"),
)
"""Options of a suite: data of one benchmark each."""


@app.command()
def extract(
    checkpoint: Checkpoint,
    data: Annotated[Path, typer.Option(help="Images: a .beton file, a folder or tar shards.")],
    out: Annotated[Path, typer.Option(help="Folder of the feature cache.")],
    layers: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Layers to extract (default: all).")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="Use the layers and test transform of this protocol.")
    ] = None,
    crops: Annotated[
        int, typer.Option(min=0, help="Random crops per image; 0: the test transform.")
    ] = 0,
    channel_order: ChannelOrder = "rgb",
    model: Model = None,
    weights: Weights = None,
    follow_symlinks: FollowSymlinks = False,
    random_init: RandomInit = False,
    gpus: Ranks = 1,
    overrides: Overrides = None,
    json: AsJson = False,
) -> None:
    """Write the features of all images to a cache; the same command resumes after a kill."""
    options = locals()
    on_ranks(options.pop("gpus"))
    from fastrot.distributed.world import read_world
    from fastrot.evaluation import extract as extraction

    del options["json"]
    request = fill(
        extraction.ExtractRequest,
        options,
        layers=tuple(layers.split(",")) if layers else None,
        progress=not json,
    )
    report = extraction.extract(request)
    if read_world().is_main:
        show(report, json)


@app.command("eval")
def evaluate(
    context: typer.Context,
    protocol: Annotated[
        str,
        typer.Argument(
            help="voc07-svm, voc07-lowshot, in1k-linear-mhead, in1k-linear-avgpool, "
            "places205-linear, inat18-linear, in1k-knn, linear, knn, voc0712-det, coco-det, "
            "voc12aug-seg, cityscapes-seg, a YAML file, or suite (every protocol that the given "
            "data allows)."
        ),
    ],
    checkpoint: Checkpoint,
    train: Annotated[
        Path | None,
        typer.Option(
            help="Training data with labels; FOLDER:SPLIT for a part (-det and -seg: see above)."
        ),
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="Test data of the same classes, named likewise.")
    ] = None,
    voc07: Pair = None,
    imagenet: Pair = None,
    places205: Pair = None,
    inat18: Pair = None,
    voc0712: Pair = None,
    coco: Pair = None,
    voc12aug: Pair = None,
    cityscapes: Pair = None,
    mode: Annotated[
        str | None,
        typer.Option(
            metavar="augmented|cached-K",
            help="Linear probes: new crops and colours in every epoch, as published, or K cached "
            "crops per image (default: cached-4). suite accepts both, separated by a comma.",
        ),
    ] = None,
    beside_random: Annotated[
        bool | None,
        typer.Option(
            "--beside-random/--not-beside-random",
            help="Also measure the random initialisation (default: in a suite).",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for caches and results (default: RUN/eval, or eval/NAME beside a weight "
            "file)."
        ),
    ] = None,
    channel_order: ChannelOrder = "rgb",
    model: Model = None,
    weights: Weights = None,
    follow_symlinks: FollowSymlinks = False,
    random_init: RandomInit = False,
    gpus: Gpus = 1,
    overrides: Overrides = None,
    json: AsJson = False,
    cluster: Cluster = "local",
    nodes: Nodes = 1,
    slurm: Slurm = None,
    wait: Wait = False,
) -> None:
    """Run a published protocol; finished work is not repeated.

    --set svm.solver=fastrot|sklearn|cyanure chooses who solves the SVMs, and --set
    linear.solver=fastrot|torch|sklearn|cyanure who solves the exact optimum (linear.optimum=true).

    Detection and segmentation (-det, -seg): --set dense.train_splits and
    dense.test_split name the parts of the data, dense.steps, dense.batch,
    detection.sides and segmentation.crop change length and size. The files
    configs/eval/PROTOCOL.yaml and settings.py in fastrot/evaluation/dense,
    detection and segmentation list all settings.
    """
    options = locals()
    place = ("cluster", "nodes", "gpus", "slurm", "wait")
    for name in ("context", "json", *place):
        del options[name]
    settings = slurm_settings(context.params)
    if settings is None:
        on_ranks(gpus)
    elif json:
        raise UsageError("--json: a job writes its result into its folder; omit --json")
    from fastrot.evaluation import command
    from fastrot.evaluation.run import EvalRequest

    sets = {kind: options.pop(kind) for kind in _SETS}
    given = {kind: pair for kind, pair in sets.items() if pair is not None}
    request = fill(EvalRequest, options, sets=given, progress=not json)
    if settings is not None:
        command.check(request, ranks=nodes * (settings.tasks_per_node or max(gpus, 1)))
        words = repeated_words(context, "out", *place)
        submit(words, request.folder, context.params, settings)
        return
    report = command.evaluate(request, lambda text: typer.echo(text, err=True))
    if report is not None:
        show(report, json)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN|SWEEP", help="Folder of a run or a sweep.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Page to write (default: report.html in the folder). For a sweep it may be a "
            "folder; report.csv and report.json are written beside the page."
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="REPORT.json|SWEEP",
            help="Sweeps: an earlier sweep to compare with; exit code 79 if this one is slower.",
        ),
    ] = None,
    threshold: Annotated[
        str | None,
        typer.Option(metavar="PERCENT", help="Slowdown that is allowed (default: 5)."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Write one self-contained HTML page about a run, or about a sweep with its tables."""
    from fastrot.benchmarks.sweep.report.cells import is_sweep

    if is_sweep(run):
        from fastrot.benchmarks.sweep.report.make import make_sweep_report

        show(make_sweep_report(run, out, baseline=baseline, threshold=threshold), json)
        return
    if baseline is not None or threshold is not None:
        raise UsageError(f"{run}: --baseline and --threshold are for the folder of a sweep")
    from fastrot.report.run.make import make_report

    show(make_report(run, out, say=lambda text: typer.echo(text, err=True)), json)
