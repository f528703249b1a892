"""Training curves, throughput and data wait from the records of ``metrics.jsonl``."""

from __future__ import annotations

import statistics

from fastrot.report.charts.curve import EPOCHS, Axis, Curve, Records, curve_figure, values
from fastrot.report.html.blocks import Section
from fastrot.report.html.text import percent, short, whole_percent
from fastrot.report.run.files import RunFiles

_HOUR = 3600.0
_IN_HOURS_FROM = 3 * _HOUR


def curves_section(run: RunFiles) -> Section:
    """Plot loss, accuracy, learning rate, quick kNN accuracy and gradient norm over epochs."""
    section = Section(
        "curves",
        "Training",
        "Training values are means over one logging interval, on augmented crops, while the "
        "network learns; held-out values cover the whole held-out set, on centre crops.",
    )
    train, val = run.training, run.validation
    for figure in (
        curve_figure(
            "Loss (cross-entropy)",
            [
                Curve("training", "s1", train, "loss"),
                Curve("held out", "s2", val, "val_loss", points=True),
            ],
        ),
        curve_figure(
            "Rotation accuracy",
            [
                Curve("training", "s1", train, "accuracy", 100),
                Curve("held out", "s2", val, "val_accuracy", 100, points=True),
            ],
            percent,
            rule=(25.0, f"chance, {whole_percent(25)}"),
            y_to=100,
        ),
        curve_figure(
            "Learning rate",
            [Curve("learning rate", "s1", train, "learning_rate")],
            smoothed=False,
            y_from=0,
        ),
        curve_figure(
            "Quick kNN accuracy",
            [Curve("held-out classes", "s3", val, "val_knn", 100, points=True)],
            percent,
            y_to=100,
            note="20 neighbours among at most 4,096 labelled training images: a trend to watch, "
            "not a benchmark.",
        ),
        curve_figure(
            "Gradient norm", [Curve("gradient norm", "s1", train, "gradient_norm")], y_from=0
        ),
    ):
        if figure is not None:
            section.blocks.append(figure)
    if not section.blocks:
        section.lead = ""
        section.missing.append("training curves: metrics.jsonl has no training records")
    elif not val:
        section.missing.append("held-out curves: the run has not recorded a validation")
    return section


def throughput_section(run: RunFiles) -> Section:
    """Plot images per second and the fraction of time spent waiting for data, over time."""
    section = Section("throughput", "Throughput")
    axis = _time(run.training)
    speed = [Curve("source images", "s1", run.training, "images_per_second")]
    wait = [Curve("data wait", "s2", run.training, "data_wait", 100)]
    for figure in (
        curve_figure("Source images per second", speed, axis=axis, y_from=0),
        curve_figure("Waiting for data", wait, percent, axis=axis, y_from=0, y_to=100),
    ):
        if figure is not None:
            section.blocks.append(figure)
    speeds = values(run.training, "images_per_second")
    if not speeds:
        section.missing.append("throughput: metrics.jsonl has no training records")
        return section
    section.lead = f"Median {short(statistics.median(speeds))} source images per second"
    views = values(run.training, "views_per_second")
    if views:
        section.lead += f", {short(statistics.median(views))} views per second"
    waits = values(run.training, "data_wait")
    if waits:
        section.lead += f"; median data wait {percent(100 * statistics.median(waits))} of the time"
    section.lead += "."
    return section


def _time(records: Records) -> Axis:
    """Return an axis of the time since the first record; of epochs if times are missing."""
    times = values(records, "time")
    if len(times) < len(records) or not times:
        return EPOCHS
    if max(times) - times[0] >= _IN_HOURS_FROM:
        return Axis("time", "hours since the first record", times[0], _HOUR)
    return Axis("time", "minutes since the first record", times[0], 60.0)
