"""``fastrot bench kernels``, ``train-step``, ``train`` and ``extract``: benchmarks of GPU work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastrot.cli.options import (
    Append,
    Device,
    Json,
    Peers,
    Precision,
    Repeat,
    Rounds,
    Seconds,
    TrainOverrides,
    integers,
    names,
)
from fastrot.cli.show import run_benchmark

app = typer.Typer()


@app.command("kernels")
def bench_kernels(
    ops: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Operations to measure (default: all).")
    ] = None,
    resolution: Annotated[int, typer.Option(help="Side of the images, in pixels.")] = 224,
    batch: Annotated[
        int, typer.Option(help="Source images per batch; each gives four views.")
    ] = 64,
    dtype: Annotated[
        str, typer.Option(metavar="bfloat16|float16|float32", help="Data type of the tensors.")
    ] = "bfloat16",
    device: Device = "auto",
    baselines: Peers = None,
    rounds: Rounds = 5,
    runs: Annotated[int, typer.Option(help="Runs per competitor and round.")] = 20,
    json: Json = None,
    append: Append = None,
) -> None:
    """Compare each kernel with its reference, torch, torch.compile, apex and a plain copy."""
    options = locals()
    from fastrot.benchmarks.kernels.run import KernelsBenchRequest, run_kernels

    run_benchmark(
        run_kernels, KernelsBenchRequest, options, ops=names(ops), baselines=names(baselines)
    )


@app.command("train-step")
def bench_train_step(
    model: Annotated[
        str, typer.Option(help="Architecture: resnet18, resnet34, resnet50, resnet101, rotnet_nin.")
    ] = "resnet50",
    width: Annotated[int, typer.Option(help="Channels of the model's first stage.")] = 64,
    stem: Annotated[
        str, typer.Option(metavar="imagenet|small", help="First layers of the model.")
    ] = "imagenet",
    steps: Annotated[
        str, typer.Option(metavar="NAME,...", help="Step modes: eager, compile, fused, apex.")
    ] = "eager,compile,fused",
    resolution: Annotated[
        str, typer.Option(metavar="N,...", help="Side of the images, in pixels.")
    ] = "224",
    batch: Annotated[
        str,
        typer.Option(metavar="N,...", help="Source images per step; each gives four views."),
    ] = "64",
    precision: Precision = "auto",
    device: Device = "auto",
    rounds: Rounds = 5,
    seconds: Seconds = 2.0,
    parity_steps: Annotated[
        int, typer.Option(help="Number of initial steps whose losses are compared.")
    ] = 20,
    peak: Annotated[
        float | None, typer.Option(help="Peak TFLOP/s of the roofline (default: measured).")
    ] = None,
    bandwidth: Annotated[
        float | None, typer.Option(help="Memory TB/s of the roofline (default: measured).")
    ] = None,
    kernels: Annotated[bool, typer.Option(help="Show how a step spends its time.")] = True,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write traces for Perfetto.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Torch threads (default: all cores).")] = None,
    json: Json = None,
    append: Append = None,
) -> None:
    """Compare the step modes with each other and with the roofline of the model."""
    options = locals()
    from fastrot.benchmarks.train_step.run import TrainStepBenchRequest, run_train_step

    run_benchmark(
        run_train_step,
        TrainStepBenchRequest,
        options,
        steps=names(steps) or (),
        resolution=integers(resolution, "--resolution"),
        batch=integers(batch, "--batch"),
    )


@app.command("train")
def bench_train(
    data: Annotated[Path, typer.Option(help="A .beton file or a folder of images.")],
    recipe: Annotated[
        str,
        typer.Option("-c", "--config", metavar="CONFIG", help="Recipe, as for fastrot train."),
    ] = "resnet50_8xb16-steplr-70e",
    loaders: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="Loaders to compare with the synthetic one, which reads nothing.",
        ),
    ] = "native,ffcv,dali",
    rounds: Rounds = 3,
    seconds: Seconds = 20.0,
    repeat: Repeat = None,
    overrides: TrainOverrides = None,
    json: Json = None,
    append: Append = None,
) -> None:
    """Measure fastrot train on real images with each loader, and without any loading."""
    options = locals()
    from fastrot.benchmarks.train import TrainBenchRequest, run_train

    run_benchmark(run_train, TrainBenchRequest, options, loaders=names(loaders) or ())


@app.command("extract")
def bench_extract(
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint to extract with (default: random weights).")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Architecture if no checkpoint is given.")
    ] = "resnet50",
    data: Annotated[
        str | None, typer.Option(help="Also measure extraction from these images, with loading.")
    ] = None,
    resolution: Annotated[int, typer.Option(help="Side of the crops, in pixels.")] = 224,
    batch: Annotated[
        int | None, typer.Option(help="Images per pass (default: that of fastrot extract).")
    ] = None,
    precision: Precision = "auto",
    device: Device = "auto",
    rounds: Rounds = 3,
    seconds: Seconds = 3.0,
    json: Json = None,
    append: Append = None,
) -> None:
    """Measure the forward pass of fastrot extract, fused and in plain torch."""
    options = locals()
    from fastrot.benchmarks.extract import ExtractBenchRequest, run_extract

    run_benchmark(run_extract, ExtractBenchRequest, options)
