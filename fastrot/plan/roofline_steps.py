"""Where nothing was measured, and only when asked for: the bound of the roofline as a step."""

from __future__ import annotations

from dataclasses import dataclass

from fastrot.benchmarks.roofline import REFERENCE, bounds, layers_of
from fastrot.config import Config
from fastrot.errors import UsageError
from fastrot.plan.step_times import Estimate

ROOFLINES = {"h200": REFERENCE}


@dataclass(frozen=True)
class RooflineSteps:
    """What no step can beat on a GPU of given speeds: asked for, where nothing was measured.

    Attributes:
        name: of the GPU.
        view_seconds: of one view.
        views: of an image.
        precision: of it.
    """

    name: str
    view_seconds: float
    views: int
    precision: str
    on_gpu: bool = True
    cuda_graph: bool = False
    backward_share: float | None = None

    @property
    def hardware(self) -> str:
        """As in ``StepTimes``."""
        return f"{self.name}, roofline"

    def seconds(self, batch: int) -> Estimate:
        """At least."""
        return Estimate(self.view_seconds * self.views * batch, "bound")

    def memory(self, batch: int) -> float | None:
        """Not measured."""
        return None

    def describe(self) -> list[str]:
        """That it is a bound."""
        return [
            f"STEP OF ONE GPU: NOT MEASURED. It is the roofline's bound for {self.name} "
            f"({self.precision}, fused): no run is that fast; hours, cost and efficiency are "
            "bounds, not predictions",
        ]


def roofline_steps(name: str, config: Config) -> RooflineSteps:
    """The bound of the fused step.

    Args:
        name: key of ``ROOFLINES``, or ``PEAK:BANDWIDTH`` in TFLOP/s and TB/s.
        config: of the run.

    Raises:
        UsageError: the name says neither.
    """
    speeds = ROOFLINES.get(name.lower())
    if speeds is None:
        peak, colon, bandwidth = name.partition(":")
        try:
            speeds = {"peak": float(peak) * 1e12, "bandwidth": float(bandwidth) * 1e12}
        except ValueError:
            speeds = {"peak": 0.0, "bandwidth": 0.0}
        if not colon or not all(0 < value < float("inf") for value in speeds.values()):
            raise UsageError(
                f"--roofline {name}: name {' or '.join(ROOFLINES)}, or TFLOP/s and TB/s of the "
                "GPU, as in --roofline 790:4.3"
            )
        name = f"{peak} TFLOP/s, {bandwidth} TB/s"
    precision = config.train.precision
    wide = precision == "fp32"
    bound = bounds(
        layers_of(config.model, config.data.resolution),
        peak=speeds["peak"], bandwidth=speeds["bandwidth"], batch=256,
        value_bytes=4 if wide else 2, levels=("a2",),
    )["a2"]  # fmt: skip
    views = 4 if config.pretext.views == "all" else 1
    return RooflineSteps(name, bound.seconds, views, "bf16" if precision == "auto" else precision)
