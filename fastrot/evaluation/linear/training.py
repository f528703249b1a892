"""The schedule of a linear probe: epochs, scores and state; the caller provides the rows.

Shapes: B samples, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch

from fastrot.distributed.world import World
from fastrot.errors import BadDataError
from fastrot.evaluation.linear.heads import LinearHeads
from fastrot.evaluation.linear.rows import FeatureBatch
from fastrot.evaluation.linear.state import Curves, Progress, load_state, save_state
from fastrot.evaluation.protocol import LinearConfig
from fastrot.evaluation.result import Score
from fastrot.system.console import Say
from fastrot.system.files import remove_temporaries

_CHECK_STEPS = 100  # between two checks of the loss, each of which waits for the device
_SAY_SECONDS = 5.0
_TOP = 5


class Source(Protocol):
    """A source of training rows."""

    @property
    def steps(self) -> int:
        """Return the number of batches per epoch."""
        ...

    def epoch(self, epoch: int, start_step: int = 0) -> Iterable[FeatureBatch]:
        """Yield every sample once, in batches, skipping the first ``start_step`` of them."""
        ...


def train_heads(
    heads: LinearHeads,
    source: Source,
    test: Callable[[], Iterable[FeatureBatch]],
    config: LinearConfig,
    state: Path | None,
    say: Say,
    *,
    save_seconds: float,
    world: World | None = None,
) -> Curves:
    """Train to the last epoch, from the saved state if there is one.

    Args:
        heads: newly initialised heads.
        source: source of training rows, the same on all ranks.
        test: returns every test sample once, at each call; of several ranks each its share.
        config: settings of the protocol.
        state: file of the state, on the main rank; None: nothing survives the process.
        say: called with each line for the user.
        save_seconds: minimum time between two saved states, in seconds.
        world: the joined ranks, which all take the same steps; None: only this process.

    Returns:
        The curve of every head.

    Raises:
        NonFiniteError: a loss is NaN or infinite.
        BadDataError: the saved state is damaged.
        StorageError: the state cannot be written.
    """
    world = world or World()
    progress = Progress({layer: [] for layer in heads.shapes})
    if state is not None:
        remove_temporaries(state.parent, state.name)
        if (saved := load_state(state)) is not None:
            progress = _taken_up(heads, *saved, source.steps, state)
            say(f"linear probe: continues after {_place(progress)} of {config.epochs}")
    heads.copy_from_main(world)
    progress = Progress.from_json(world.gather_json(asdict(progress))[0])
    began = said = saved_at = time.monotonic()
    done, seen = 0, 0
    total = source.steps * (config.epochs - progress.epoch) - progress.step
    for epoch in range(progress.epoch, config.epochs):
        rate = learning_rate(config, epoch)
        for step, rows in enumerate(source.epoch(epoch, progress.step), progress.step + 1):
            heads.step(rows.features, rows.labels, rate)
            done += 1
            seen += len(rows.labels)
            now = time.monotonic()
            if step % _CHECK_STEPS == 0 or step == source.steps:
                progress.losses.append(heads.losses())
                progress.step = step
                if state is not None and step < source.steps and now - saved_at >= save_seconds:
                    save_state(state, heads.state(), progress)
                    saved_at = time.monotonic()
            if now - said > _SAY_SECONDS:
                said = now
                left = (total - done) * (now - began) / done
                say(
                    f"linear probe: epoch {epoch + 1}/{config.epochs}  "
                    f"{seen / (now - began):,.0f} images/s  left {left:,.0f} s"
                )
        scores = score_heads(heads, test(), world)
        for layer, curve in progress.curves.items():
            curve.append([_mean(progress.losses, layer), *scores[layer]])
        progress = Progress(progress.curves)
        last = epoch + 1 == config.epochs
        if state is not None and (last or time.monotonic() - saved_at >= save_seconds):
            save_state(state, heads.state(), progress)
            saved_at = time.monotonic()
    return progress.curves


def learning_rate(config: LinearConfig, epoch: int) -> float:
    """Return the learning rate of all steps of an epoch."""
    return config.learning_rate * config.gamma ** sum(epoch >= m for m in config.milestones)


@torch.no_grad()
def score_heads(
    heads: LinearHeads, test: Iterable[FeatureBatch], world: World | None = None
) -> dict[str, tuple[float, float]]:
    """Return top-1 and top-5 in percent, by layer; equal logits rank the lower class first.

    Several ranks, each with its share of the test samples, get the scores of all.
    """
    hits = {layer: torch.zeros(2, dtype=torch.int64) for layer in heads.shapes}
    count = 0
    for rows in test:
        count += len(rows.labels)
        for layer in heads.shapes:
            rank = ranks(heads.logits(layer, rows.features[layer]), rows.labels)
            hit = torch.stack([(rank < 1).sum(), (rank < _TOP).sum()])
            hits[layer] = hits[layer].to(hit.device) + hit
    mine = torch.stack([*(hit.cpu() for hit in hits.values()), torch.tensor([count, count])])
    *found, (count, _) = (world or World()).sum(mine).tolist()
    return {
        layer: (100 * top1 / count, 100 * top5 / count)
        for layer, (top1, top5) in zip(hits, found, strict=True)
    }


def ranks(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the number of classes ranked above the true one, (B,), int64, for logits (B, K)."""
    own = logits.gather(1, labels[:, None])
    lower = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    return ((logits > own) | ((logits == own) & lower)).sum(1)


def scores_of(
    curves: Curves, config: LinearConfig, mode: str, notes: Mapping[str, Any]
) -> list[Score]:
    """Return top-1 and top-5 of every head at the epoch that the protocol reports.

    Args:
        curves: curves of the finished training.
        config: settings of the protocol.
        mode: how training rows were made.
        notes: further details to record in each score.
    """
    scores = []
    for layer, curve in curves.items():
        best = max(range(len(curve)), key=lambda epoch: curve[epoch][1])  # the first on ties
        reported = best if config.report == "best" else len(curve) - 1
        for column, metric in ((1, "top1"), (2, "top5")):
            detail: dict[str, Any] = {
                "mode": mode,
                "epoch": reported + 1,
                "last": curve[-1][column],
                "best": curve[best][column],
                "best_epoch": best + 1,
                "curve": [round(epoch[column], 4) for epoch in curve],
                "loss": [float(f"{epoch[0]:.6g}") for epoch in curve],
                **notes,
            }
            if config.report == "best":
                detail["selected_on"] = "test"
            scores.append(Score(layer, metric, curve[reported][column], layer, detail))
    return scores


def mode_gap(augmented: Sequence[Score], cached: Sequence[Score]) -> dict[str, float]:
    """Return the cost of caching features: augmented minus cached in points, by "layer metric".

    Raises:
        BadDataError: the scores are of other modes, or of different heads.
    """
    values = []
    for scores, wanted in ((augmented, "augmented"), (cached, "cached-")):
        probes = [score for score in scores if "strength" not in score.detail]  # not the optimum
        wrong = [s.detail["mode"] for s in probes if not s.detail["mode"].startswith(wanted)]
        if wrong or not probes:
            raise BadDataError(
                f"scores of mode {wrong[0] if wrong else '(none)'!r}, not {wanted}...: give the "
                "augmented result first and the cached one second"
            )
        values.append({f"{score.name} {score.metric}": score.value for score in probes})
    if values[0].keys() != values[1].keys():
        only = sorted(values[0].keys() ^ values[1].keys())
        raise BadDataError(
            f"{', '.join(only)}: only in one of the two results; run both with the same settings"
        )
    return {name: values[0][name] - values[1][name] for name in values[0]}


def _mean(losses: list[tuple[dict[str, float], int]], layer: str) -> float:
    """Return the mean loss of an epoch from its stretches, weighted by their samples."""
    total = sum(samples for _, samples in losses)
    return sum(means[layer] * samples for means, samples in losses) / total


def _place(progress: Progress) -> str:
    return f"epoch {progress.epoch}" + (f" and {progress.step} steps" if progress.step else "")


def _taken_up(
    heads: LinearHeads,
    tensors: dict[str, torch.Tensor],
    progress: Progress,
    steps: int,
    path: Path,
) -> Progress:
    """Load a saved state into these heads, after checking that it belongs to them."""
    if not progress.fits(heads.shapes, steps):
        raise BadDataError(f"{path}: damaged; remove it, and the probe starts from scratch")
    heads.load(tensors, str(path))
    # In the order of the heads, which JSON need not preserve.
    progress.curves = {layer: progress.curves[layer] for layer in heads.shapes}
    return progress
