"""``fastrot bench loader``, ``svm``, ``knn`` and ``linear``: comparisons with other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastrot.cli.options import (
    Append,
    Json,
    LabelledFeatures,
    Limit,
    Overrides,
    Peers,
    Repeat,
    Rounds,
    Seconds,
    Threads,
    names,
)
from fastrot.cli.show import run_benchmark

app = typer.Typer()


@app.command("loader")
def bench_loader(
    data: Annotated[
        Path, typer.Option(help="A .beton file or a folder (for prepare: the source folder).")
    ],
    what: Annotated[
        str, typer.Option(metavar="load|prepare", help="Load batches, or convert a dataset.")
    ] = "load",
    baselines: Peers = None,
    loader: Annotated[
        str, typer.Option(metavar="native|ffcv|dali|reference", help="fastrot loader to compare.")
    ] = "native",
    size: Annotated[int, typer.Option(help="Side of the crops, in pixels.")] = 224,
    batch: Annotated[int, typer.Option(help="Images per batch.")] = 128,
    crop: Annotated[
        str, typer.Option(metavar="random_resized|center|whole", help="How images are cropped.")
    ] = "random_resized",
    exact: Annotated[
        bool, typer.Option("--exact", help="Let fastrot decode all crops at full resolution.")
    ] = False,
    checksums: Annotated[
        bool, typer.Option(help="Let fastrot check the manifest's checksums.")
    ] = True,
    max_side: Annotated[
        int | None, typer.Option(help="prepare: longest side of a stored image, in pixels.")
    ] = None,
    quality: Annotated[int, typer.Option(help="prepare: JPEG quality, 1 to 100.")] = 90,
    workers: Threads = None,
    rounds: Rounds = 5,
    seconds: Seconds = 3.0,
    starts: Annotated[
        int, typer.Option(help="Fresh processes per competitor, to time its start-up.")
    ] = 3,
    repeat: Repeat = None,
    json: Json = None,
    append: Append = None,
) -> None:
    """Compare loading or conversion with FFCV, DALI and torchvision."""
    options = locals()
    from fastrot.benchmarks.loader.run import LoaderBenchRequest, run_loader

    run_benchmark(run_loader, LoaderBenchRequest, options, baselines=names(baselines) or None)


@app.command("svm")
def bench_svm(
    train: Annotated[Path, typer.Option(help="Feature cache of the training images.")],
    test: Annotated[Path, typer.Option(help="Feature cache of the test images.")],
    layer: Annotated[str, typer.Option(help="Layer of the features.")] = "layer3",
    protocol: Annotated[
        str, typer.Option(metavar="voc07-svm|voc07-lowshot", help="Protocol to solve.")
    ] = "voc07-svm",
    baselines: Peers = None,
    each: Annotated[
        int, typer.Option(help="Tasks that others solve for each cost (and number of shots).")
    ] = 1,
    limit: Limit = 120.0,
    rounds: Annotated[int, typer.Option(help="Number of times our solver is run.")] = 1,
    threads: Threads = None,
    seed: Annotated[int, typer.Option(help="Seed for the tasks that others solve.")] = 0,
    overrides: Overrides = None,
    json: Json = None,
    append: Append = None,
) -> None:
    """Compare a whole SVM protocol on one layer with LinearSVC, cyanure and liblinear."""
    options = locals()
    from fastrot.benchmarks.solvers.svm import SvmBenchRequest, run_svm

    run_benchmark(run_svm, SvmBenchRequest, options, baselines=names(baselines))


@app.command("knn")
def bench_knn(
    features: LabelledFeatures,
    layer: Annotated[str, typer.Option(help="Layer of the features.")] = "pool",
    bank: Annotated[int, typer.Option(help="Number of rows to search.")] = 50_000,
    queries: Annotated[int, typer.Option(help="Number of rows to look up.")] = 10_000,
    dims: Annotated[
        int | None, typer.Option(help="Use only the first N dimensions (default: all).")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", help="Number of neighbours.")] = 200,
    baselines: Peers = None,
    rounds: Rounds = 3,
    threads: Threads = None,
    json: Json = None,
    append: Append = None,
) -> None:
    """Compare exact nearest-neighbour search with faiss, scikit-learn and plain torch."""
    options = locals()
    from fastrot.benchmarks.solvers.knn import KnnBenchRequest, run_knn

    run_benchmark(run_knn, KnnBenchRequest, options, baselines=names(baselines))


@app.command("linear")
def bench_linear(
    features: LabelledFeatures,
    layer: Annotated[str, typer.Option(help="Layer of the features.")] = "layer3",
    samples: Annotated[
        int | None, typer.Option(help="Number of images to use (default: all).")
    ] = None,
    baselines: Peers = None,
    rounds: Rounds = 3,
    limit: Limit = 300.0,
    threads: Threads = None,
    json: Json = None,
    append: Append = None,
) -> None:
    """Compare solving a linear probe to its optimum with cyanure, scikit-learn and torch."""
    options = locals()
    from fastrot.benchmarks.solvers.linear import LinearBenchRequest, run_linear

    run_benchmark(run_linear, LinearBenchRequest, options, baselines=names(baselines))
