"""The schedule of a linear probe: epochs, scores, state; where rows come from is its caller's.

Shapes: B samples, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from fastrot.errors import BadDataError
from fastrot.evaluation.journal import Journal
from fastrot.evaluation.linear_data import Rows
from fastrot.evaluation.linear_heads import LinearHeads
from fastrot.evaluation.linear_state import Curves, load_state, remove_dead_writes, save_state
from fastrot.evaluation.protocol import LinearConfig
from fastrot.evaluation.result import Score

_CHECK_STEPS = 100  # between two looks at the loss, each of which waits for the device
_SAY_SECONDS = 5.0
_TOP = 5


class Source(Protocol):
    """Where training rows come from."""

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        ...

    def epoch(self, epoch: int) -> Iterable[Rows]:
        """Every sample once."""
        ...


def train_heads(
    heads: LinearHeads,
    source: Source,
    test: Callable[[], Iterable[Rows]],
    config: LinearConfig,
    state: Path | None,
    say: Callable[[str], None],
    *,
    save_seconds: float,
) -> Curves:
    """Train to the last epoch, from the saved state if there is one.

    Args:
        heads: fresh.
        source: of training rows.
        test: every test sample once, at each call.
        config: of the protocol.
        state: file of the state between epochs; None: a kill loses everything.
        say: shows a line.
        save_seconds: least time between two saved states.

    Returns:
        The curve of every head.

    Raises:
        NonFiniteError: a loss is NaN or infinite.
        BadDataError: the saved state is damaged.
        StorageError: the state cannot be written.
    """
    curves: Curves = {layer: [] for layer in heads.shapes}
    if state is not None:
        remove_dead_writes(state)
        if (saved := load_state(state)) is not None:
            heads.load(saved[0], str(state))
            curves = _checked(saved[1], curves, state)
    first = len(next(iter(curves.values())))
    if first:
        say(f"linear probe: continues after epoch {first} of {config.epochs}")
    began = said = saved_at = time.monotonic()
    done, seen, total = 0, 0, source.steps * (config.epochs - first)
    for epoch in range(first, config.epochs):
        rate = learning_rate(config, epoch)
        losses = _Mean()
        for number, rows in enumerate(source.epoch(epoch), 1):
            heads.step(rows.features, rows.labels, rate)
            done += 1
            seen += len(rows.labels)
            if number % _CHECK_STEPS == 0 or number == source.steps:
                losses.add(heads.losses())
            now = time.monotonic()
            if now - said > _SAY_SECONDS:
                said = now
                left = (total - done) * (now - began) / done
                say(
                    f"linear probe: epoch {epoch + 1}/{config.epochs}  "
                    f"{seen / (now - began):,.0f} images/s  left {left:,.0f} s"
                )
        scores = score_heads(heads, test())
        for layer, curve in curves.items():
            curve.append([losses.mean(layer), *scores[layer]])
        last = epoch + 1 == config.epochs
        if state is not None and (last or time.monotonic() - saved_at >= save_seconds):
            save_state(state, heads.state(), curves)
            saved_at = time.monotonic()
    return curves


def learning_rate(config: LinearConfig, epoch: int) -> float:
    """Of all steps of an epoch."""
    return config.learning_rate * config.gamma ** sum(epoch >= m for m in config.milestones)


def remembered(
    journal: Journal, unit: str, train: Callable[[Path | None], list[Score]]
) -> list[Score]:
    """What a finished probe scored, or what ``train`` does, given the file for its state."""
    saved = journal.get(unit)
    if saved is None:
        state = journal.file(unit, ".safetensors")
        saved = {"scores": [score.to_json() for score in train(state)]}
        journal.put(unit, saved)
        if state is not None:
            state.unlink(missing_ok=True)
    return [Score.from_json(score) for score in saved["scores"]]


@torch.no_grad()
def score_heads(heads: LinearHeads, test: Iterable[Rows]) -> dict[str, tuple[float, float]]:
    """Top-1 and top-5 in percent, by layer; among equal logits the lower class wins."""
    hits = {layer: torch.zeros(2, dtype=torch.int64) for layer in heads.shapes}
    count = 0
    for rows in test:
        count += len(rows.labels)
        for layer in heads.shapes:
            rank = ranks(heads.logits(layer, rows.features[layer]), rows.labels)
            hit = torch.stack([(rank < 1).sum(), (rank < _TOP).sum()])
            hits[layer] = hits[layer].to(hit.device) + hit
    return {layer: (100 * int(h[0]) / count, 100 * int(h[1]) / count) for layer, h in hits.items()}


def ranks(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How many classes stand before the right one, of shape (B,), int64, for logits (B, K)."""
    own = logits.gather(1, labels[:, None])
    lower = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    return ((logits > own) | ((logits == own) & lower)).sum(1)


def scores_of(
    curves: Curves, config: LinearConfig, mode: str, notes: dict[str, Any]
) -> list[Score]:
    """Top-1 and top-5 of every head at the epoch that the protocol reports.

    Args:
        curves: of the finished training.
        config: of the protocol.
        mode: how training rows were made.
        notes: more that each score is to say.
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
    """What caching the features costs: augmented minus cached, in points, by "layer metric".

    Raises:
        BadDataError: the scores are not of these modes, or of other heads.
    """
    values = []
    for scores, wanted in ((augmented, "augmented"), (cached, "cached-")):
        probes = [score for score in scores if "mode" in score.detail]
        wrong = [s.detail["mode"] for s in probes if not s.detail["mode"].startswith(wanted)]
        if wrong or not probes:
            raise BadDataError(
                f"scores of mode {wrong[0] if wrong else '(none)'!r}, not {wanted}...: give the "
                "augmented result first and the cached one second"
            )
        values.append({f"{score.name} {score.metric}": score.value for score in probes})
    if values[0].keys() != values[1].keys():
        only = sorted(values[0].keys() ^ values[1].keys())
        raise BadDataError(f"{', '.join(only)}: only in one of the two results; run both alike")
    return {name: values[0][name] - values[1][name] for name in values[0]}


class _Mean:
    """Mean loss of an epoch by layer, over equally long stretches and a last shorter one."""

    def __init__(self) -> None:
        self._parts: list[tuple[dict[str, float], int]] = []

    def add(self, part: tuple[dict[str, float], int]) -> None:
        self._parts.append(part)

    def mean(self, layer: str) -> float:
        total = sum(samples for _, samples in self._parts)
        return sum(losses[layer] * samples for losses, samples in self._parts) / total


def _checked(found: Curves, expected: Curves, path: Path) -> Curves:
    lengths = {len(curve) for curve in found.values()} if isinstance(found, dict) else set()
    if found.keys() != expected.keys() or len(lengths) != 1:
        raise BadDataError(f"{path}: damaged; remove it, and the probe starts anew")
    return {layer: found[layer] for layer in expected}
