"""What a validation measures: held-out rotation accuracy, and a quick kNN on the features.

The quick kNN follows the published kNN protocol (cosine similarity of L2-normalised pooled
features, votes weighted by exp(similarity / 0.07), k = 20; Wu et al., 2018) on a bounded bank,
so its score is a trend to watch within a run, not a benchmark number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import torch
import torch.nn.functional as F

from fastrot.data.classes import ClassMatch
from fastrot.data.loader import Loader
from fastrot.distributed.world import World
from fastrot.models.backbones import TURNS, RotationModel
from fastrot.training.rotation import RotationTask

Between = Callable[[int, int], None]
"""Called before each batch of a validation with the number of finished and of all batches, which
are the same on all ranks. An exception that it raises ends the validation."""

NEIGHBOURS = 20
TEMPERATURE = 0.07


@dataclass(frozen=True)
class Validation:
    """Result over a whole validation set.

    Attributes:
        loss: mean cross-entropy over all views.
        accuracy: fraction of views whose turn is predicted, in [0, 1].
        confusion: of shape (4, 4), int64: row = true turn, column = predicted turn.
        knn_accuracy: fraction of images whose class the neighbours predict, or None without labels.
    """

    loss: float
    accuracy: float
    confusion: torch.Tensor
    knn_accuracy: float | None

    def metrics(self) -> dict[str, float]:
        """Return the metrics for the log, by name."""
        numbers = {"val_loss": self.loss, "val_accuracy": self.accuracy}
        if self.knn_accuracy is not None:
            numbers["val_knn"] = self.knn_accuracy
        return numbers


@torch.no_grad()
def validate(
    model: RotationModel,
    task: RotationTask,
    loader: Loader,
    bank: Loader | None,
    classes: ClassMatch | None = None,
    *,
    device: torch.device,
    world: World,
    between: Between = lambda done, of: None,
) -> Validation:
    """Measure ``model`` in eval mode, and restore its training mode afterwards.

    Args:
        model: backbone and head.
        task: computes the views and the loss.
        loader: yields every held-out sample exactly once over all ranks, in all four views.
        bank: labelled training samples for the kNN, the same on every rank; None: no kNN.
        classes: maps the classes of held-out samples to the bank's; None: they are equal.
        device: device of the model.
        world: the ranks to sum over.
        between: called before each batch.
    """
    was_training = model.training
    model.eval()
    try:
        counts = torch.zeros(TURNS * TURNS, dtype=torch.int64, device=device)
        loss_sum = torch.zeros(1, dtype=torch.float64, device=device)
        votes = torch.zeros(2, dtype=torch.int64, device=device)
        batches, total = count(), len(loader) + (0 if bank is None else len(bank))

        def next_batch() -> None:
            between(next(batches), total)

        numbers = None if classes is None or classes.numbers is None else classes.numbers
        table = None if numbers is None else torch.from_numpy(numbers).to(device)

        def translated(labels: torch.Tensor) -> torch.Tensor:
            return labels if table is None else table[labels]

        neighbours = None if bank is None else _Neighbours(model, task, bank, next_batch)
        loader.set_epoch(0)
        for batch in loader:
            next_batch()
            if not len(batch.images):
                continue
            prediction = task.predict(model, task.inputs(batch))
            loss_sum += prediction.loss * len(prediction.targets)
            cells = prediction.targets * TURNS + prediction.logits.argmax(1)
            counts += torch.bincount(cells, minlength=TURNS * TURNS)
            if neighbours is not None:
                hits = neighbours.classify(task.embed(model, batch)) == translated(batch.labels)
                votes += torch.stack([hits.sum(), torch.tensor(len(hits), device=device)])
        world.sum(counts), world.sum(loss_sum), world.sum(votes)
    finally:
        model.train(was_training)
    confusion = counts.view(TURNS, TURNS).cpu()
    total = int(confusion.sum())
    return Validation(
        loss=float(loss_sum) / total,
        accuracy=int(confusion.diagonal().sum()) / total,
        confusion=confusion,
        knn_accuracy=None if neighbours is None else int(votes[0]) / max(1, int(votes[1])),
    )


class _Neighbours:
    """A bank of labelled features.

    Shapes: M bank rows, N queries, D features, K classes.
    """

    def __init__(
        self, model: RotationModel, task: RotationTask, bank: Loader, next_batch: Callable[[], None]
    ) -> None:
        features, labels = [], []
        bank.set_epoch(0)
        for batch in bank:
            next_batch()
            features.append(F.normalize(task.embed(model, batch), dim=1))
            labels.append(batch.labels)
        self._features_MD = torch.cat(features)
        self._labels_M = torch.cat(labels)
        self._num_classes = int(self._labels_M.max()) + 1

    def classify(self, queries_ND: torch.Tensor) -> torch.Tensor:
        """Return the class of each query, of shape (N,); a tie goes to the lower class."""
        similarity = F.normalize(queries_ND, dim=1) @ self._features_MD.T
        top = similarity.topk(min(NEIGHBOURS, similarity.shape[1]), dim=1)
        votes = torch.zeros(len(queries_ND), self._num_classes, device=queries_ND.device)
        votes.scatter_add_(1, self._labels_M[top.indices], (top.values / TEMPERATURE).exp())
        return votes.argmax(1)
