"""Low-shot draws: as many as asked for, never difficult ones, and the public files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastrot.errors import BadDataError, MismatchError, UsageError
from fastrot.evaluation.svm.draws import draw_signs, possible_shots, read_targets

RNG = np.random.default_rng(0)
LABELS = RNG.choice(np.array([1, -1, 0], np.int8), (600, 3), p=[0.1, 0.85, 0.05])


def draw(shots: int = 4, number: int = 0, seed: int = 0) -> np.ndarray:
    return draw_signs(LABELS, shots, number, negatives=19, seed=seed)


@pytest.mark.parametrize("shots", [1, 4, 16])
def test_a_draw_has_k_positives_and_19_k_negatives_of_every_class(shots: int) -> None:
    signs = draw(shots)
    assert (signs == 1).sum(0).tolist() == [shots] * 3
    assert (signs == -1).sum(0).tolist() == [19 * shots] * 3
    assert (LABELS[signs == 1] == 1).all() and (LABELS[signs == -1] == -1).all()


def test_draws_differ_by_number_seed_and_shots_and_repeat() -> None:
    assert (draw() == draw()).all()
    assert (draw() != draw(number=1)).any() and (draw() != draw(seed=1)).any()
    small, large = draw(4) == 1, draw(8) == 1
    assert (small & ~large).any(), "draws of fewer shots are not part of those of more"


def test_too_few_positives_name_the_class() -> None:
    most = int((LABELS == 1).sum(0).min())
    scarce = int((LABELS == 1).sum(0).argmin())
    with pytest.raises(BadDataError, match=f"class c{scarce}: {most} positive training images"):
        draw_signs(LABELS, most + 1, 0, negatives=19, seed=0, class_names=["c0", "c1", "c2"])
    assert possible_shots(LABELS, [1, most, most + 1]) == (1, most)
    assert possible_shots(np.ones((5, 2), np.int8), [1]) == ()


def test_all_negatives_are_taken_where_there_are_too_few() -> None:
    labels = np.array([[1], [1], [-1], [-1], [0]], np.int8)
    signs = draw_signs(labels, 2, 0, negatives=19, seed=0)
    assert signs[:, 0].tolist() == [1, 1, -1, -1, 0]


def public(folder: Path, signs: np.ndarray, name: str = "train_targets_sample1_k4.npy") -> None:
    """A draw as FAIR's files have it: 1, 0 for a negative, -1 for unused."""
    targets = np.where(signs == 1, 1, np.where(signs == -1, 0, -1)).astype(np.int32)
    np.save(folder / name, targets)


def test_public_draws_are_read(tmp_path: Path) -> None:
    public(tmp_path, draw())
    assert (read_targets(tmp_path, 4, 0, LABELS) == draw()).all()


def test_public_draws_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"train_targets_sample2_k4.npy: no such file"):
        read_targets(tmp_path, 4, 1, LABELS)
    public(tmp_path, draw())
    with pytest.raises(MismatchError, match="contradicts the labels of training image"):
        read_targets(tmp_path, 4, 0, LABELS[::-1].copy())
    with pytest.raises(MismatchError, match=r"shape \(600, 3\)"):
        read_targets(tmp_path, 4, 0, LABELS[:, :2])
    np.save(tmp_path / "train_targets_sample1_k4.npy", np.full(LABELS.shape, 7))
    with pytest.raises(BadDataError, match="values other than 1, 0 and -1"):
        read_targets(tmp_path, 4, 0, LABELS)
    (tmp_path / "train_targets_sample1_k4.npy").write_bytes(b"<html>")
    with pytest.raises(BadDataError, match="not an array of numbers"):
        read_targets(tmp_path, 4, 0, LABELS)
