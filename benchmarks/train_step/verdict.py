"""One line on what limits a training step."""

from __future__ import annotations

from collections.abc import Mapping

from fastrot.benchmarks.common.kernel_work import CONVS
from fastrot.benchmarks.common.roofline import Bound
from fastrot.benchmarks.train_step.time_table import TimeTable

_IDLE = 0.15  # fraction of a step without a kernel on the GPU, above which it waits for the host
_NEAR = 0.5
_PASSES = ("batch norm", "elementwise", "pooling", "copy/cast")


def verdict(
    table: TimeTable | None, seconds: float, views: int, bounds: Mapping[str, Bound]
) -> str:
    """Return a line on what limits a step.

    Args:
        table: where its time goes; None: not profiled.
        seconds: duration of the median step.
        views: views per step.
        bounds: bounds at the speeds of this machine, including that of convolutions alone.
    """
    if table is None or not table.total:
        return "not profiled"
    idle = 1 - table.total / seconds if table.device == "cuda" else 0.0
    if idle > _IDLE:
        return (
            f"no kernel runs in {100 * idle:.0f} % of the step: limited by the host, which starts "
            f"them; without the gaps it would run at {views / table.total:,.0f} views/s"
        )
    passes = sum(table.share(kind=kind) for kind in _PASSES)
    multiply = table.share(kind="convolution") + table.share(kind="matmul")
    alone = views / (multiply * table.total) if multiply else 0.0
    at_best = bounds[CONVS].views_per_second
    told = (
        f"passes over memory (batch norm {100 * table.share(kind='batch norm'):.0f} %, "
        f"elementwise {100 * table.share(kind='elementwise'):.0f} %, pools and copies "
        f"{100 * (table.share(kind='pooling') + table.share(kind='copy/cast')):.0f} %) take "
        f"{100 * passes:.0f} % of the step, convolutions {100 * multiply:.0f} %, "
        f"the rest {100 * (1 - passes - multiply):.0f} %"
    )
    if not alone:
        return f"{told}: no convolution could be identified"
    most = "passes over memory" if passes > multiply else "the convolutions"
    share = alone / at_best
    far = "" if share > _NEAR else ", far from what the hardware allows"
    return (
        f"{told}: limited mostly by {most}; the convolutions alone run at {alone:,.0f} views/s, "
        f"{100 * share:.0f} % of their roofline{far}"
    )
