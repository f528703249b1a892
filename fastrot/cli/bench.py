"""``fastrot bench svm``, ``knn`` and ``linear``: solvers beside their peers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from fastrot.cli.evaluate import Overrides

Peers = Annotated[str | None, typer.Option(metavar="NAME,...", help="(default: all that fit).")]
Threads = Annotated[
    int | None, typer.Option(help="Cores of each contender (default: the usable ones).")
]
Rounds = Annotated[int, typer.Option(help="Turns of each contender.")]
Limit = Annotated[float, typer.Option(help="Seconds after which a peer's solution is given up.")]
Json = Annotated[Path | None, typer.Option(metavar="FILE", help="Write one object.")]
Append = Annotated[Path | None, typer.Option(metavar="FILE.jsonl", help="Add a record, one line.")]


def add_bench_commands(bench: typer.Typer, show: Callable[[Any, bool], None]) -> None:
    """Add the commands to ``fastrot bench``.

    Args:
        bench: the group of commands.
        show: prints the report of a command and leaves.
    """

    @bench.command("svm")
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

    @bench.command("knn")
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

    @bench.command("linear")
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


def names(peers: str | None) -> tuple[str, ...] | None:
    """What stands between the commas; None where nothing was given."""
    return None if peers is None else tuple(filter(None, peers.split(",")))
