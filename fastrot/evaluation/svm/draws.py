"""Low-shot draws: the positive and negative images of a class that an SVM is trained on.

As published (Goyal et al., 2019; MMSelfSup 0.x): k positives and 19 k negatives, never a difficult
image, drawn separately for each draw, number of shots k and class. The tool that drew the
published ones took no seed, so every installation has its own; FAIR publishes one fixed set of
five draws, which ``read_targets`` reads.

Shapes: n training images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastrot.data.sampling.philox import Stream, philox_u64
from fastrot.errors import BadDataError, MismatchError, StorageError, TooFewImagesError, UsageError

Signs = NDArray[np.int8]
"""Of shape (n, C): 1 positive, -1 negative, 0 not drawn."""


def draw_signs(
    labels: NDArray[np.int8],
    shots: int,
    draw: int,
    *,
    negatives: int,
    seed: int,
    class_names: Sequence[str] | None = None,
) -> Signs:
    """Return one draw for all classes, a pure function of the arguments.

    If a class has fewer than ``negatives * shots`` negatives, all are used.

    Args:
        labels: of shape (n, C): 1 present, -1 absent, 0 difficult.
        shots: k, positives per class.
        draw: index of the draw, from 0.
        negatives: negatives per positive.
        seed: 64-bit key.
        class_names: C names, for the message.

    Raises:
        TooFewImagesError: a class has fewer than k positives, or no negative.
    """
    signs = np.zeros(labels.shape, np.int8)
    classes = labels.shape[1]
    for c in range(classes):
        # One counter per draw, class and number of shots: no two share a random number.
        counter = (draw * 2**10 + shots) * classes + c
        keys = philox_u64(seed, counter, np.arange(len(labels)), Stream.LOW_SHOT)
        for sign, wanted in ((1, shots), (-1, negatives * shots)):
            there = np.flatnonzero(labels[:, c] == sign)
            if len(there) < (wanted if sign > 0 else 1):
                name = class_names[c] if class_names else f"number {c}"
                what = "positive" if sign > 0 else "negative"
                raise TooFewImagesError(
                    f"class {name}: {len(there)} {what} training images are fewer than the "
                    f"{wanted if sign > 0 else 1} that {shots} shots need; set lowshot.shots to "
                    "what the data allows"
                )
            signs[there[np.argsort(keys[there], kind="stable")[:wanted]], c] = sign
    return signs


def possible_shots(labels: NDArray[np.int8], shots: Sequence[int]) -> tuple[int, ...]:
    """Return the ``shots`` for which every class has enough positives and at least one negative.

    Example:
        >>> possible_shots(np.array([[1], [1], [-1]], np.int8), [1, 2, 4])
        (1, 2)
    """
    if not labels.size or not (labels == -1).any(axis=0).all():
        return ()
    most = int((labels == 1).sum(axis=0).min())
    return tuple(k for k in shots if k <= most)


def read_targets(folder: Path, shots: int, draw: int, labels: NDArray[np.int8]) -> Signs:
    """Read a fixed public draw: ``train_targets_sample{draw + 1}_k{shots}.npy``.

    The file holds (n, C) integers in the order of the dataset's list: 1 positive, 0 negative,
    -1 not drawn.

    Args:
        folder: folder of the files.
        shots: k.
        draw: index of the draw, from 0.
        labels: labels of the training images, as for ``draw_signs``.

    Raises:
        UsageError: there is no such file.
        BadDataError: the file does not hold such an array.
        MismatchError: the draw is of other images, or of the same ones in another order.
        StorageError: the file cannot be read.
    """
    path = folder / f"train_targets_sample{draw + 1}_k{shots}.npy"
    try:
        targets = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UsageError(
            f"{path}: no such file; lowshot.targets must have one per draw and number of shots, or "
            "set lowshot.shots and lowshot.draws to those that exist"
        ) from None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError:
        raise BadDataError(f"{path}: not an array of numbers; download it again") from None
    if targets.shape != labels.shape:
        raise MismatchError(
            f"{path}: shape {targets.shape}, but the training data has {labels.shape[0]} images of "
            f"{labels.shape[1]} classes; give the dataset of the draw (VOC2007 trainval)"
        )
    if not np.issubdtype(targets.dtype, np.integer) or not np.isin(targets, (-1, 0, 1)).all():
        raise BadDataError(f"{path}: values other than 1, 0 and -1; download it again")
    signs = np.where(targets == 1, 1, np.where(targets == 0, -1, 0)).astype(np.int8)
    # If positives or negatives contradict the labels, the rows belong to other images.
    wrong = np.flatnonzero(((signs == 1) & (labels != 1) | (signs == -1) & (labels == 1)).any(1))
    if wrong.size:
        raise MismatchError(
            f"{path}: row {wrong[0]} contradicts the labels of training image {wrong[0]}; the draw "
            "follows the order of VOC2007's list trainval, which a .beton file does not keep: "
            "read the data in place, --train VOCdevkit/VOC2007:trainval"
        )
    return signs
