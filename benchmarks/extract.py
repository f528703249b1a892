"""``fastrot bench extract``: compares the engines for the forward pass of a feature extraction.

It runs the code of ``fastrot extract``: views, network, pooled float16 rows on the host. The pixels
are random and already on the device. With data, the engine that ``fastrot extract`` uses is also
fed by its loader, and the difference is the cost of loading.

The distance of each engine's features from those in float32 is reported next to its speed.

Shapes: N images per batch, S side of a crop, D values per layer.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fastrot.benchmarks.common.harness import (
    Countdown,
    Spread,
    check_positive,
    machine_record,
    ratio_fields,
    ratios,
    rotated,
    spread,
)
from fastrot.benchmarks.common.points_report import PointsReport, empty_table, say
from fastrot.config import DataConfig, load_config
from fastrot.data.loader import Batch, Loader, LoaderSpec, build_loader
from fastrot.data.open import open_dataset
from fastrot.data.sampling.crops import Crop
from fastrot.data.sampling.sampler import Sampler
from fastrot.distributed.world import World, pick_device
from fastrot.errors import UsageError
from fastrot.features.extract import pass_size
from fastrot.features.forward import FeatureNetwork, pipelined
from fastrot.features.spec import FeatureSpec
from fastrot.models.backbones import build_model
from fastrot.models.layers import Engine, fastest_batch_norm
from fastrot.models.precision import resolve_precision
from fastrot.system.machine import decoding_workers
from fastrot.weights.load import Backbone, load_backbone, weights_digest

_ENGINES: tuple[Engine, ...] = ("fused", "torch")
_FROM_DATA = "from data"


@dataclass
class EngineRates:
    """One engine: images/s in each round, and the distance of its features from float32."""

    name: str
    distance: float
    rates: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class ExtractReport(PointsReport):
    """Results of the benchmark: engines; the subject, which ``fastrot extract`` uses, is first."""

    bench = "extract"
    points: Sequence[EngineRates]

    def ratios(self) -> dict[str, Spread]:
        """Return the speed-up of the subject over each baseline."""
        subject, *baselines = self.points
        return {baseline.name: ratios(subject.rates, baseline.rates) for baseline in baselines}

    def summary(self) -> dict[str, Any]:
        """Return the ratios."""
        return ratio_fields(self.ratios())

    def plain_points(self) -> list[dict[str, Any]]:
        """Return one object per engine."""
        ratios = self.ratios()
        return [
            {
                "point": point.name,
                **{key: self.settings[key] for key in ("model", "resolution", "batch")},
                "views_per_s": float(f"{spread(point.rates).median:.5g}"),
                "images_per_second": spread(point.rates).to_json(),
                "distance": float(f"{point.distance:.3g}"),
                "subject_is_faster": (
                    ratios[point.name].to_json() if point.name in ratios else None
                ),
            }
            for point in self.points
        ]

    def show_points(self, console: Console) -> None:
        """Print the engines and the ratios."""
        table = empty_table("extract: medians of the rounds", "", "images/s", "of rounds",
                            "from float32")  # fmt: skip
        for point in self.points:
            rate = spread(point.rates)
            table.add_row(
                point.name,
                f"{rate.median:,.1f}",
                f"{rate.low:,.1f} - {rate.high:,.1f}",
                f"{point.distance:.1e}",
            )
        console.print(table)
        for name, ratio in self.ratios().items():
            say(
                console,
                f"{self.points[0].name} is {ratio.median:.2f} x as fast as {name} "
                f"({ratio.low:.2f} - {ratio.high:.2f})",
            )


@dataclass(frozen=True)
class ExtractBenchRequest:
    """Options of ``fastrot bench extract``.

    Raises:
        UsageError: a value is wrong.
    """

    checkpoint: Path | None = None
    """As for ``fastrot extract``; None: ``model`` with random weights."""
    model: str = "resnet50"  # name of an architecture
    data: str | None = None  # images to read as well, a .beton file or a folder
    resolution: int = 224  # S in pixels
    batch: int | None = None  # N; None: the batch of an extraction
    precision: str = "auto"  # auto, fp32, bf16 or fp16, as for an extraction
    device: str = "auto"  # auto, cpu or cuda
    rounds: int = 3  # number of rounds; each measures every engine once
    seconds: float = 3.0  # minimum length of one engine's measurement
    progress: bool = True  # report progress on standard error

    def __post_init__(self) -> None:
        check_positive(rounds=self.rounds, seconds=self.seconds, batch=self.batch)
        if not 32 <= self.resolution <= 4096:
            raise UsageError(f"--resolution={self.resolution} must be from 32 to 4096 pixels")


def run_extract(request: ExtractBenchRequest) -> ExtractReport:
    """Measure the forward pass.

    Raises:
        UsageError: the model, the device or the precision is not available.
    """
    resolution, rounds, data = request.resolution, request.rounds, request.data
    target = pick_device(request.device, World())
    backbone = (
        _random(request.model) if request.checkpoint is None else load_backbone(request.checkpoint)
    )
    plan = _plan(backbone, resolution, request.precision, target)
    count = request.batch or pass_size(resolution, target)
    pixels = _pixels(count, resolution, target)
    subject = fastest_batch_norm(target)[0]
    engines = sorted(_ENGINES, key=lambda engine: engine != subject)
    networks = {engine: FeatureNetwork(backbone, plan, target, engine=engine) for engine in engines}
    exact = _plan(backbone, resolution, "fp32", target)
    truth = _features(FeatureNetwork(backbone, exact, target, engine="torch"), pixels)
    points: dict[str, EngineRates] = {
        engine: EngineRates(engine, _distance(_features(network, pixels), truth))
        for engine, network in networks.items()
    }
    feeds: dict[str, Iterable[Batch]] = {engine: itertools.repeat(pixels) for engine in engines}
    reader = None if data is None else _reader(data, plan, count, target)
    with nullcontext() if reader is None else closing(reader):
        if reader is not None:
            points[_FROM_DATA] = EngineRates(_FROM_DATA, points[subject].distance)
            feeds[_FROM_DATA] = _endless(reader)
        console = Console(stderr=True) if request.progress else None
        say = Countdown(len(points) * rounds, console=console)
        for number in range(rounds):
            for name in rotated(list(points), number):
                network = networks[subject] if name == _FROM_DATA else networks[_engine(name)]
                rate = _rate(network, iter(feeds[name]), request.seconds)
                points[name].rates.append(rate)
                say.step(f"round {number + 1} {name}: {rate:,.1f} images/s")
    return ExtractReport(
        points=list(points.values()),
        settings={"model": backbone.config.name, "width": backbone.config.width,
                  "resolution": resolution, "batch": count, "precision": plan.precision,
                  "device": target.type, "layers": ",".join(plan.layers), "rounds": rounds,
                  "seconds": request.seconds,
                  **({} if data is None else {"data": Path(data).name})},
        record=machine_record(),
    )  # fmt: skip


def _reader(data: str, plan: FeatureSpec, batch: int, device: torch.device) -> Loader:
    """Return the loader of an extraction."""
    samples = open_dataset(data)
    order = Sampler(len(samples), batch, mode="sequential", drop_last=False)
    workers = decoding_workers(on_gpu=device.type == "cuda")
    spec = LoaderSpec(samples, order, plan.crop, 0, device, workers, exact=True)
    return build_loader("auto", spec)


def _endless(loader: Loader) -> Iterator[Batch]:
    while True:
        loader.set_epoch(0)
        yield from loader


def _engine(name: str) -> Engine:
    return "fused" if name == "fused" else "torch"


def _random(model: str) -> Backbone:
    config = load_config(None, [f"model.name={model}"]).model
    network = build_model(config, seed=0).backbone.eval().requires_grad_(False)
    published = DataConfig()
    return Backbone(
        network, config, weights_digest(network), f"{model}, random weights", published.mean,
        published.std, published.resolution, "rgb",
    )  # fmt: skip


def _plan(backbone: Backbone, resolution: int, precision: str, device: torch.device) -> FeatureSpec:
    crop = Crop("center", resolution, resize=round(resolution * 8 / 7))
    layers = tuple(backbone.model.stage_names)
    return FeatureSpec(layers, crop, 0, 0, "auto", resolve_precision(precision, device), {})


def _pixels(count: int, side: int, device: torch.device) -> Batch:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=random)
    return Batch(
        images=images.to(device),
        labels=torch.zeros(count, dtype=torch.int64, device=device),
        index=torch.arange(count),
        flips=torch.zeros(count, dtype=torch.bool, device=device),
        turns=torch.zeros(count, 1, dtype=torch.uint8, device=device),
    )


def _features(network: FeatureNetwork, batch: Batch) -> dict[str, torch.Tensor]:
    with network:
        return {name: f.cpu() for name, f in network.features(network.views(batch)).items()}


def _distance(found: Mapping[str, torch.Tensor], truth: Mapping[str, torch.Tensor]) -> float:
    """Return the distance of the worst layer, relative to the norm of its features."""
    return max(float((found[name] - exact).norm() / exact.norm()) for name, exact in truth.items())


def _rate(network: FeatureNetwork, batches: Iterator[Batch], seconds: float) -> float:
    """Return images/s, from batches to rows on the host, measured over at least ``seconds``."""
    with network:
        results = pipelined(network, batches)
        next(results)  # warm-up: algorithms are chosen, memory is allocated
        images, started = 0, time.perf_counter()
        while True:
            _, features = next(results)
            images += len(next(iter(features.values())))
            elapsed = time.perf_counter() - started
            if elapsed >= seconds:
                return images / elapsed
