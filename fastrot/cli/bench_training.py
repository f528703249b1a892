"""``fastrot bench kernels``, ``train-step``, ``train`` and ``extract``: what a GPU does all day."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastrot.cli.options import (
    Append,
    Device,
    Json,
    Numbers,
    Overrides,
    Peers,
    Precision,
    Rounds,
    Seconds,
    integers,
    names,
)
from fastrot.cli.show import show

app = typer.Typer()


@app.command("kernels")
def bench_kernels(
    ops: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Operations (default: all).")
    ] = None,
    resolution: Annotated[int, typer.Option(help="Side of the images, in pixels.")] = 224,
    batch: Annotated[int, typer.Option(help="Source images; four views of each.")] = 64,
    dtype: Annotated[str, typer.Option(metavar="bfloat16|float16|float32")] = "bfloat16",
    device: Device = "auto",
    peers: Peers = None,
    rounds: Rounds = 5,
    runs: Annotated[int, typer.Option(help="Of a contender in a round.")] = 20,
    json: Json = None,
    append: Append = None,
) -> None:
    """Measure each kernel beside its reference, torch, its compiler, apex and a plain copy."""
    from fastrot.benchmarks.common.harness import check_outputs
    from fastrot.benchmarks.kernels.cases import OPS
    from fastrot.benchmarks.kernels.implementations import NAMES
    from fastrot.benchmarks.kernels.run import run_kernels

    check_outputs(json, append)
    report = run_kernels(
        ops=names(ops) or tuple(OPS),
        resolution=resolution,
        batch=batch,
        dtype=dtype,
        device=None if device == "auto" else device,
        peers=NAMES[1:] if peers is None else names(peers) or (),
        rounds=rounds,
        runs=runs,
    )
    report.save(json, append)
    show(report, False)


@app.command("train-step")
def bench_train_step(
    model: Annotated[str, typer.Option(help="resnet18, 34, 50, 101 or rotnet_nin.")] = ("resnet50"),
    width: Annotated[int, typer.Option(help="Channels of its first stage.")] = 64,
    stem: Annotated[str, typer.Option(metavar="imagenet|small")] = "imagenet",
    steps: Annotated[
        str, typer.Option(metavar="NAME,...", help="eager, compile, fused, apex.")
    ] = "eager,compile,fused",
    resolution: Numbers = "224",
    batch: Annotated[
        str, typer.Option(metavar="N,...", help="Source images; four views of each.")
    ] = "64",
    precision: Precision = "auto",
    device: Device = "auto",
    rounds: Rounds = 5,
    seconds: Seconds = 2.0,
    parity_steps: Annotated[int, typer.Option(help="First steps, whose losses are compared.")] = 20,
    peak: Annotated[
        float | None, typer.Option(help="TFLOP/s of the roofline (default: measured).")
    ] = None,
    bandwidth: Annotated[
        float | None, typer.Option(help="TB/s of the roofline (default: measured).")
    ] = None,
    kernels: Annotated[bool, typer.Option(help="Say where the time of a step goes.")] = True,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep traces for Perfetto.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Of torch (default: all cores).")] = None,
    json: Json = None,
    append: Append = None,
) -> None:
    """Measure a training step, eager, compiled and fused, against the roofline of its model."""
    from fastrot.benchmarks.common.harness import check_outputs
    from fastrot.benchmarks.train_step.run import run_train_step

    check_outputs(json, append)
    report = run_train_step(
        model=model,
        width=width,
        stem=stem,
        steps=steps.split(","),
        resolution=integers(resolution, "--resolution"),
        batch=integers(batch, "--batch"),
        precision=precision,
        device=device,
        rounds=rounds,
        seconds=seconds,
        parity_steps=parity_steps,
        peak=None if peak is None else peak * 1e12,
        bandwidth=None if bandwidth is None else bandwidth * 1e12,
        kernels=kernels,
        trace=trace,
        threads=threads,
    )
    report.save(json, append)
    show(report, False)


@app.command("train")
def bench_train(
    data: Annotated[Path, typer.Option(help="A .beton file or a folder of images.")],
    recipe: Annotated[
        str, typer.Option("-c", "--config", metavar="CONFIG", help="As of fastrot train.")
    ] = "resnet50_8xb16-steplr-70e",
    loaders: Annotated[
        str, typer.Option(metavar="NAME,...", help="Beside synthetic, which reads nothing.")
    ] = "native,ffcv,dali",
    rounds: Rounds = 3,
    seconds: Seconds = 20.0,
    repeat: Annotated[
        int | None, typer.Option(help="Copies of the data (default: up to 3,000 images).")
    ] = None,
    overrides: Overrides = None,
    json: Json = None,
    append: Append = None,
) -> None:
    """Measure fastrot train on real images with each loader, beside no loading at all."""
    from fastrot.benchmarks.common.harness import check_outputs
    from fastrot.benchmarks.train import run_train

    check_outputs(json, append)
    report = run_train(
        data,
        recipe=recipe,
        overrides=overrides or (),
        loaders=loaders.split(","),
        rounds=rounds,
        seconds=seconds,
        repeat=repeat,
    )
    report.save(json, append)
    show(report, False)


@app.command("extract")
def bench_extract(
    checkpoint: Annotated[
        Path | None, typer.Option(help="As of fastrot extract (default: random weights).")
    ] = None,
    model: Annotated[str, typer.Option(help="Architecture, without a checkpoint.")] = ("resnet50"),
    data: Annotated[
        str | None, typer.Option(help="Also from these images, through the loader.")
    ] = None,
    resolution: Annotated[int, typer.Option(help="Side of the crops, in pixels.")] = 224,
    batch: Annotated[int | None, typer.Option(help="Images a pass.")] = None,
    precision: Precision = "auto",
    device: Device = "auto",
    rounds: Rounds = 3,
    seconds: Seconds = 3.0,
    json: Json = None,
    append: Append = None,
) -> None:
    """Measure the forward pass of fastrot extract, fused and by torch."""
    from fastrot.benchmarks.common.harness import check_outputs
    from fastrot.benchmarks.extract import run_extract

    check_outputs(json, append)
    report = run_extract(
        checkpoint,
        model=model,
        data=data,
        resolution=resolution,
        batch=batch,
        precision=precision,
        device=device,
        rounds=rounds,
        seconds=seconds,
    )
    report.save(json, append)
    show(report, False)
