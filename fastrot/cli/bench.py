"""``fastrot bench loader``, ``svm``, ``knn`` and ``linear``: beside other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastrot.cli.options import Append, Json, Limit, Overrides, Peers, Rounds, Threads, names
from fastrot.cli.show import show
from fastrot.errors import UsageError

app = typer.Typer()


@app.command("loader")
def bench_loader(
    data: Annotated[
        Path, typer.Option(help="A .beton file or a folder; for prepare: the source folder.")
    ],
    what: Annotated[
        str, typer.Option(metavar="load|prepare", help="Reading batches, or converting.")
    ] = "load",
    peers: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="(default: all that fit).")
    ] = None,
    loader: Annotated[
        str, typer.Option(metavar="native|ffcv|dali|reference", help="Which of ours is compared.")
    ] = "native",
    size: Annotated[int, typer.Option(help="Side of the crops, in pixels.")] = 224,
    batch: Annotated[int, typer.Option(help="Images a batch.")] = 128,
    crop: Annotated[str, typer.Option(metavar="random_resized|center|whole")] = "random_resized",
    exact: Annotated[
        bool, typer.Option("--exact", help="Ours decodes every crop at full resolution.")
    ] = False,
    checksums: Annotated[bool, typer.Option(help="Ours compares the manifest's checksums.")] = True,
    max_side: Annotated[int | None, typer.Option(help="prepare: as of fastrot prepare.")] = None,
    quality: Annotated[int, typer.Option(help="prepare: JPEG quality, 1 to 100.")] = 90,
    workers: Annotated[
        int | None, typer.Option(help="Cores of each contender (default: the usable ones).")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Turns of each contender.")] = 5,
    seconds: Annotated[float, typer.Option(help="Least length of a turn.")] = 3.0,
    starts: Annotated[int, typer.Option(help="Fresh processes of each, for the start-up.")] = 3,
    repeat: Annotated[
        int | None, typer.Option(help="Copies of the data (default: up to 3,000 images).")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write one object.")] = None,
    append: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Add a record for each contender.")
    ] = None,
) -> None:
    """Measure loading, or converting, beside FFCV, DALI and torchvision in one run."""
    names = tuple(peers.split(",")) if peers else None
    from fastrot.benchmarks.common.harness import check_outputs

    check_outputs(json, append)
    if what == "prepare":
        from fastrot.benchmarks.loader.prepare import bench_prepare

        report = bench_prepare(
            data,
            peers=names,
            max_side=max_side,
            quality=quality,
            workers=workers,
            rounds=rounds,
            repeat=repeat,
        )
    elif what == "load":
        from fastrot.benchmarks.loader.run import bench_loader as bench_load

        report = bench_load(
            data,
            peers=names,
            loader=loader,
            size=size,
            batch=batch,
            workers=workers,
            rounds=rounds,
            seconds=seconds,
            starts=starts,
            crop=crop,
            exact=exact,
            checksums=checksums,
            repeat=repeat,
        )
    else:
        raise UsageError(f"--what={what!r} is not known; choose load or prepare")
    report.save(json, append)
    show(report, as_json=False)


@app.command("svm")
def bench_svm(
    train: Annotated[Path, typer.Option(help="Feature cache of the training images.")],
    test: Annotated[Path, typer.Option(help="Feature cache of the test images.")],
    layer: Annotated[str, typer.Option(help="Which features.")] = "layer3",
    protocol: Annotated[
        str, typer.Option(metavar="voc07-svm|voc07-lowshot", help="Whose problems.")
    ] = "voc07-svm",
    peers: Peers = None,
    each: Annotated[
        int, typer.Option(help="Peers: tasks for each cost (and number of shots).")
    ] = 1,
    limit: Limit = 120.0,
    rounds: Annotated[int, typer.Option(help="Times that ours is run.")] = 1,
    threads: Threads = None,
    seed: Annotated[int, typer.Option(help="Of the peers' sample.")] = 0,
    overrides: Overrides = None,
    json: Json = None,
    append: Append = None,
) -> None:
    """Measure a whole SVM protocol on one layer beside LinearSVC, cyanure and liblinear."""
    from fastrot.benchmarks.common.harness import check_outputs, save_record
    from fastrot.benchmarks.solvers.svm import bench_svm as run

    check_outputs(json, append)
    report = run(
        train,
        test,
        layer=layer,
        protocol=protocol,
        peers=names(peers),
        each=each,
        limit=limit,
        rounds=rounds,
        threads=threads,
        seed=seed,
        overrides=tuple(overrides or ()),
    )
    save_record(report.to_json(), json, append)
    show(report, False)


@app.command("knn")
def bench_knn(
    data: Annotated[Path, typer.Option(help="A feature cache with labels.")],
    layer: Annotated[str, typer.Option(help="Which features.")] = "pool",
    bank: Annotated[int, typer.Option(help="Rows that are searched.")] = 50_000,
    queries: Annotated[int, typer.Option(help="Rows that are looked for.")] = 10_000,
    dims: Annotated[
        int | None, typer.Option(help="The first ones of the layer (default: all).")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", help="Neighbours.")] = 200,
    peers: Peers = None,
    rounds: Rounds = 3,
    threads: Threads = None,
    json: Json = None,
    append: Append = None,
) -> None:
    """Measure exact nearest neighbours beside faiss, scikit-learn and plain torch."""
    from fastrot.benchmarks.common.harness import check_outputs, save_record
    from fastrot.benchmarks.solvers.knn import run_knn

    check_outputs(json, append)
    report = run_knn(
        data,
        layer=layer,
        bank=bank,
        queries=queries,
        dims=dims,
        k=k,
        peers=names(peers) or ("faiss", "torch", "sklearn"),
        rounds=rounds,
        threads=threads,
    )
    save_record(report.to_json(), json, append)
    show(report, False)


@app.command("linear")
def bench_linear(
    data: Annotated[Path, typer.Option(help="A feature cache with labels.")],
    layer: Annotated[str, typer.Option(help="Which features.")] = "layer3",
    samples: Annotated[int | None, typer.Option(help="Of them (default: all).")] = None,
    peers: Peers = None,
    rounds: Rounds = 3,
    limit: Limit = 300.0,
    threads: Threads = None,
    json: Json = None,
    append: Append = None,
) -> None:
    """Measure the exact optimum of a linear probe beside cyanure, scikit-learn and torch."""
    from fastrot.benchmarks.common.harness import check_outputs, save_record
    from fastrot.benchmarks.solvers.linear import run_linear

    check_outputs(json, append)
    report = run_linear(
        data,
        layer=layer,
        samples=samples,
        peers=names(peers) or ("cyanure", "sklearn", "torch-lbfgs"),
        rounds=rounds,
        limit=limit,
        threads=threads,
    )
    save_record(report.to_json(), json, append)
    show(report, False)
