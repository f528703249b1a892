"""``fastrot plan`` and the measurements for it: ``fastrot bench allreduce`` and ``plan-check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastrot.cli.options import Append, Device, Json, Rounds, TrainOverrides, integers, names
from fastrot.cli.show import run_benchmark

app = typer.Typer()
bench = typer.Typer()


@app.command("plan")
def plan_run(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A YAML file or a shipped recipe.")
    ] = "resnet50_8xb16-steplr-70e",
    gpus: Annotated[
        str, typer.Option(metavar="N,...", help="Numbers of GPUs, up to 1,024.")
    ] = "1,2,4,8",
    price: Annotated[float | None, typer.Option(help="Price per GPU-hour.")] = None,
    records: Annotated[
        list[Path] | None,
        typer.Option(
            "--record",
            metavar="FILE",
            help="Records of bench train-step, train, allreduce, plan-check or sweep.",
        ),
    ] = None,
    hardware: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Part of the hardware's name in the records.")
    ] = None,
    roofline: Annotated[
        str | None,
        typer.Option(metavar="h200|TFLOPS:TB", help="Use this GPU's bound instead of a record."),
    ] = None,
    per_gpu: Annotated[
        int | None,
        typer.Option(
            "--batch-per-gpu", help="Source images per GPU (default: the global batch is shared)."
        ),
    ] = None,
    gpus_per_node: Annotated[int, typer.Option(help="GPUs per node.")] = 8,
    link: Annotated[
        float | None, typer.Option(metavar="GB/s", help="Bandwidth between two GPUs of a node.")
    ] = None,
    network: Annotated[
        float | None,
        typer.Option(metavar="GB/s", help="Bandwidth of a node, all adapters together."),
    ] = None,
    link_latency_us: Annotated[
        float | None, typer.Option(help="Latency of a hop inside a node, in us.")
    ] = None,
    latency_us: Annotated[
        float | None, typer.Option(help="Latency of a hop between nodes, in us.")
    ] = None,
    overlap: Annotated[
        float | None,
        typer.Option(
            metavar="0..1", help="Fraction of the all-reduce hidden by the backward pass."
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Dataset to take the number and size of images from.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="Number of images (default: ImageNet's training set).")
    ] = None,
    image_bytes: Annotated[float | None, typer.Option(help="Mean bytes per image.")] = None,
    overrides: TrainOverrides = None,
    json: Json = None,
) -> None:
    """Predict hours, cost, reading, network and memory of a run on 1 to 1,024 GPUs."""
    options = locals()
    from fastrot.benchmarks.plan.command import PlanRequest, plan

    run_benchmark(
        plan, PlanRequest, options, gpus=integers(gpus, "--gpus"), records=tuple(records or ())
    )


@bench.command("allreduce")
def bench_allreduce(
    ranks: Annotated[
        int, typer.Option(help="Ranks to start here (under torchrun: those it started).")
    ] = 2,
    sizes: Annotated[
        str | None, typer.Option(metavar="BYTES,...", help="Buffer sizes (default: seven).")
    ] = None,
    device: Device = "auto",
    rounds: Annotated[int, typer.Option(help="Number of rounds; each times every size.")] = 5,
    seconds: Annotated[float, typer.Option(help="Minimum seconds per size and round.")] = 0.3,
    json: Json = None,
    append: Append = None,
) -> None:
    """Measure the link between ranks, for fastrot plan --record."""
    options = locals()
    from fastrot.benchmarks.scaling.allreduce import AllReduceBenchRequest, run_allreduce

    run_benchmark(
        run_allreduce,
        AllReduceBenchRequest,
        options,
        sizes=None if sizes is None else integers(sizes, "--sizes"),
    )


@bench.command("plan-check")
def bench_plan_check(
    cases: Annotated[
        str, typer.Option(metavar="MODEL:RESOLUTION:BATCH,...", help="Models; batch per rank.")
    ] = "resnet18:64:16,resnet50:64:8",
    ranks: Annotated[int, typer.Option(help="Ranks of the real run, on this machine.")] = 2,
    threads: Annotated[int, typer.Option(help="Torch threads of each rank.")] = 1,
    rounds: Rounds = 3,
    steps: Annotated[int, typer.Option(help="Steps per run, after the warm-up.")] = 20,
    neighbours: Annotated[
        bool, typer.Option(help="Measure one rank beside others like it.")
    ] = True,
    bound: Annotated[float, typer.Option(help="Largest allowed error, in percent.")] = 15.0,
    overrides: TrainOverrides = None,
    json: Json = None,
    append: Append = None,
) -> None:
    """Predict a run of two ranks from one rank and the link, then measure the run."""
    options = locals()
    from fastrot.benchmarks.scaling.plan_check import PlanCheckRequest, run_plan_check

    run_benchmark(run_plan_check, PlanCheckRequest, options, cases=names(cases) or ())
