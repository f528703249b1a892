"""What a plan rests on besides its records, in lines for people."""

from __future__ import annotations

from collections.abc import Sequence

from fastrot.plan.predict import PlanInputs, Prediction
from fastrot.plan.records import LoaderRecord


def method_lines(inputs: PlanInputs, rows: Sequence[Prediction]) -> list[str]:
    """What the model takes for granted.

    Args:
        inputs: of the rows.
        rows: of the plan.
    """
    several = any(row.gpus > 1 for row in rows)
    fabric, network = inputs.fabric, inputs.network
    share = inputs.steps.backward_share
    backward = f"{100 * share:.0f} % of the step, as profiled" if share is not None else (
        f"{100 * network.backward_flops / (network.forward_flops + network.backward_flops):.0f} % "
        "of the step, its share of the FLOPs"
    )  # fmt: skip
    lines = [
        "all-reduce: latency and bandwidth (alpha-beta); the fastest of ring, tree and two levels "
        f"({fabric.gpus_per_node} GPUs a node); gradients in fp32, "
        f"{network.gradient_bytes / 1e6:.1f} MB in DDP's buckets of 25 MiB, the first of 1 MiB",
        f"overlap: each bucket is sent when its last gradient is ready, along a backward pass of "
        f"{backward}, spread over layers by FLOPs"
        if inputs.overlap
        else "overlap: none; on a CPU the cores that compute also send",
    ]
    if inputs.config.model.sync_bn:
        lines.append(
            f"synchronised batch norm: {len(network.norms)} layers, each with an all-gather "
            "(ring) forward and an all-reduce backward that the computation waits for"
        )
    if inputs.overlap and several:
        lines.append("sending takes no time from the GPU's computing (it takes a few of its SMs)")
    if inputs.steps.cuda_graph and several:
        graph = "is, too (train.cuda_graph)" if inputs.config.train.cuda_graph else (
            "is not, unless train.cuda_graph=true, and may be slower"
        )  # fmt: skip
        lines.append(f"the record's step is one CUDA graph; that of several ranks {graph}")
    if inputs.config.model.sync_bn and several and not inputs.steps.on_gpu:
        lines.append(
            "on a CPU several ranks normalise by a slower kernel, which shares statistics; the "
            "record's is that of one rank (--set model.sync_bn=false: the same for both)"
        )
    if any(row.memory is not None for row in rows):
        row = next(row for row in rows if row.memory is not None)
        lines.append(
            f"memory: the record's peak, on the line through its batches; "
            f"{row.fixed_memory / 1e6:,.0f} MB of it parameters, gradients (DDP's buckets are "
            "these) and momentum; buffers of NCCL are not in it"
        )
    else:
        lines.append(
            f"memory: not measured (parameters, gradients and momentum alone: "
            f"{3 * network.gradient_bytes / 1e6:,.0f} MB)"
        )
    return lines


def loading_line(loader: LoaderRecord | None) -> str:
    """Whether the loader was looked at."""
    if loader is None:
        return (
            "loading: taken to keep up (no record of a loader is named): /s/node is what it must "
            "read; fastrot bench loader --append FILE measures it"
        )
    return (
        f"loading: {loader.loader}, {loader.images_per_s:,.0f} images/s a node, measured on "
        f"{loader.hardware} ({loader.source})"
    )
