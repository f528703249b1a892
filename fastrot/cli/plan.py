"""``fastrot plan``, and the measurements it needs: ``fastrot bench allreduce``, ``plan-check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastrot.cli.options import Append, Device, Json, Overrides, Rounds, integers
from fastrot.cli.show import show

app = typer.Typer()
bench = typer.Typer()


@app.command()
def plan(
    config: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A YAML file or a shipped recipe.")
    ] = "resnet50_8xb16-steplr-70e",
    gpus: Annotated[
        str, typer.Option(metavar="N,...", help="Numbers of GPUs, up to 1,024.")
    ] = "1,2,4,8",
    price: Annotated[float | None, typer.Option(help="Of a GPU for an hour.")] = None,
    record: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Of bench train-step, train, allreduce, loader, or a sweep's folder.",
        ),
    ] = None,
    hardware: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Part of its name in the records.")
    ] = None,
    roofline: Annotated[
        str | None,
        typer.Option(metavar="h200|TFLOPS:TB", help="A bound for this GPU in place of a record."),
    ] = None,
    batch_per_gpu: Annotated[
        int | None,
        typer.Option(help="Source images of each GPU (default: the global batch is shared)."),
    ] = None,
    gpus_per_node: Annotated[int, typer.Option(help="Of a full node.")] = 8,
    link: Annotated[
        float | None, typer.Option(metavar="GB/s", help="Between two GPUs of a node.")
    ] = None,
    network: Annotated[
        float | None, typer.Option(metavar="GB/s", help="Of a node, all adapters together.")
    ] = None,
    link_latency_us: Annotated[
        float | None, typer.Option(help="Of a hop inside of a node.")
    ] = None,
    latency_us: Annotated[float | None, typer.Option(help="Of a hop between nodes.")] = None,
    data: Annotated[
        str | None, typer.Option(help="The images, for their number and bytes.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="How many (default: ImageNet's training set).")
    ] = None,
    image_bytes: Annotated[float | None, typer.Option(help="Mean bytes of one.")] = None,
    overrides: Overrides = None,
    json: Json = None,
) -> None:
    """Predict hours, cost, reading, network and memory of a run on 1 to 1,024 GPUs."""
    from fastrot.benchmarks.common.harness import check_outputs
    from fastrot.benchmarks.plan.command import plan as run
    from fastrot.benchmarks.plan.links import Network

    check_outputs(json)
    report = run(
        config,
        gpus=integers(gpus, "--gpus"),
        overrides=overrides or (),
        records=record or (),
        hardware=hardware,
        roofline=roofline,
        network=Network(
            gpus_per_node=gpus_per_node,
            link=link,
            network=network,
            link_latency=link_latency_us,
            latency=latency_us,
        ),
        per_gpu=batch_per_gpu,
        data=data,
        images=images,
        image_bytes=image_bytes,
        price=price,
    )
    report.save(json)
    show(report, False)


@bench.command("allreduce")
def bench_allreduce(
    ranks: Annotated[
        int, typer.Option(help="Started on this machine (under torchrun: those it started).")
    ] = 2,
    sizes: Annotated[
        str | None, typer.Option(metavar="BYTES,...", help="Of the buffer (default: seven).")
    ] = None,
    device: Device = "auto",
    rounds: Annotated[int, typer.Option(help="In which each size is timed once.")] = 5,
    seconds: Annotated[float, typer.Option(help="Least length of a turn.")] = 0.3,
    json: Json = None,
    append: Append = None,
) -> None:
    """Measure the link between ranks, for fastrot plan --record."""
    from fastrot.benchmarks.common.harness import check_outputs
    from fastrot.benchmarks.scaling.allreduce import SIZES, run_allreduce

    check_outputs(json, append)
    report = run_allreduce(
        ranks=ranks,
        sizes=SIZES if sizes is None else integers(sizes, "--sizes"),
        device=device,
        rounds=rounds,
        seconds=seconds,
    )
    report.save(json, append)
    show(report, False)


@bench.command("plan-check")
def bench_plan_check(
    cases: Annotated[
        str, typer.Option(metavar="MODEL:RESOLUTION:BATCH,...", help="Batch of each rank.")
    ] = "resnet18:64:16,resnet50:64:8",
    ranks: Annotated[int, typer.Option(help="Of the real run, on this machine.")] = 2,
    threads: Annotated[int, typer.Option(help="Of torch, for each rank.")] = 1,
    rounds: Rounds = 3,
    steps: Annotated[int, typer.Option(help="Of a run, once it is warm.")] = 20,
    neighbours: Annotated[
        bool, typer.Option(help="Measure one rank beside others like it.")
    ] = True,
    bound: Annotated[float, typer.Option(help="Largest error, in percent.")] = 15.0,
    patience: Annotated[
        float, typer.Option(help="Seconds to wait for others to leave the machine alone.")
    ] = 0.0,
    overrides: Overrides = None,
    json: Json = None,
    append: Append = None,
) -> None:
    """Predict a run of two ranks from one rank and the link, then measure the run."""
    from fastrot.benchmarks.common.harness import check_outputs
    from fastrot.benchmarks.scaling.plan_check import run_plan_check

    check_outputs(json, append)
    report = run_plan_check(
        cases=cases.split(","),
        ranks=ranks,
        threads=threads,
        rounds=rounds,
        steps=steps,
        neighbours=neighbours,
        bound=bound / 100,
        patience=patience,
        overrides=overrides or (),
    )
    report.save(json, append)
    show(report, False)
