"""Linear classifiers on frozen features, all layers in one step.

A head is BatchNorm2d(C, affine=False) over the pooled map (if the protocol has it), flatten,
Linear(D, K), as in MMSelfSup 0.x (``MultiLinearClsHead``) and FAIR's benchmark. Nothing below it is
trained, so the gradient of softmax regression is written out: two products per head, the second of
which is added to the momentum without a buffer for the gradient.

Shapes: B samples, C channels, g rows of the pooled map, D = C g^2 features, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import xxhash

from fastrot.distributed.world import World
from fastrot.errors import BadDataError, NonFiniteError
from fastrot.evaluation.protocol import LinearConfig

_EPSILON = 1e-5
_BN_MOMENTUM = 0.1
_INIT_STD = 0.01


@dataclass(frozen=True)
class HeadShape:
    """The input of a head.

    Attributes:
        layer: name of the layer.
        channels: C.
        grid: g; features are channel-major, (C, g, g) flattened.
    """

    layer: str
    channels: int
    grid: int

    @property
    def dim(self) -> int:
        """Return D."""
        return self.channels * self.grid**2


class LinearHeads:
    """The heads of all layers, trained side by side and independently.

    Args:
        shapes: one per head.
        classes: K.
        config: settings of the protocol.
        device: device of all tensors.
    """

    def __init__(
        self, shapes: Iterable[HeadShape], classes: int, config: LinearConfig, device: torch.device
    ) -> None:
        self.shapes = {shape.layer: shape for shape in shapes}
        self._config, self._device = config, device
        self._tensors: dict[str, torch.Tensor] = {}
        for layer, shape in self.shapes.items():
            # Keyed by the layer: a head starts the same whichever others are trained.
            key = xxhash.xxh3_64_intdigest(f"{config.seed} {layer}".encode()) >> 1
            weight = torch.empty(classes, shape.dim).normal_(
                std=_INIT_STD, generator=torch.Generator().manual_seed(key)
            )
            self._tensors[f"{layer}.weight"] = weight
            self._tensors[f"{layer}.bias"] = torch.zeros(classes)
            self._tensors[f"{layer}.weight_momentum"] = torch.zeros_like(weight)
            self._tensors[f"{layer}.bias_momentum"] = torch.zeros(classes)
            if config.batchnorm:
                self._tensors[f"{layer}.running_mean"] = torch.zeros(shape.channels)
                self._tensors[f"{layer}.running_var"] = torch.ones(shape.channels)
        self._tensors = {name: tensor.to(device) for name, tensor in self._tensors.items()}
        self._losses = torch.zeros(len(self.shapes), dtype=torch.float64, device=device)
        self._samples = 0

    @torch.no_grad()
    def step(
        self, features: Mapping[str, torch.Tensor], labels: torch.Tensor, learning_rate: float
    ) -> None:
        """Take one step of SGD with every head; the host does not wait for it.

        Args:
            features: of shape (B, D), any float dtype, by layer.
            labels: of shape (B,), int64.
            learning_rate: learning rate of this step.
        """
        rows = torch.arange(len(labels), device=self._device)
        for number, layer in enumerate(self.shapes):
            x = self._normalised(layer, features[layer].float(), train=True)
            log_p = F.log_softmax(self._linear(layer, x), dim=1)
            self._losses[number] -= log_p[rows, labels].sum(dtype=torch.float64)
            error = log_p.exp_()  # dLoss / dlogits = (p - onehot) / B
            error[rows, labels] -= 1
            error /= len(labels)
            self._descend(layer, "weight", error.T, x, learning_rate)
            self._descend(layer, "bias", error.T, None, learning_rate)
        self._samples += len(labels)

    @torch.no_grad()
    def logits(self, layer: str, features: torch.Tensor) -> torch.Tensor:
        """Return logits (B, K), float32, for features (B, D), using the running statistics."""
        return self._linear(layer, self._normalised(layer, features.float(), train=False))

    def losses(self) -> tuple[dict[str, float], int]:
        """Return each head's mean training loss since the last call, and the number of samples.

        This waits for the device.

        Raises:
            NonFiniteError: a head's loss is NaN or infinite.
        """
        mean = dict(zip(self.shapes, (self._losses / max(1, self._samples)).tolist(), strict=True))
        samples, self._samples = self._samples, 0
        self._losses.zero_()
        for layer, loss in mean.items():
            if not abs(loss) < float("inf"):
                raise NonFiniteError(
                    f"linear head {layer!r}: the loss is {loss} at learning rate "
                    f"{self._config.learning_rate:g} and batch {self._config.batch}; lower it with "
                    "--set linear.learning_rate=..., and check that the features are those of a "
                    "trained backbone"
                )
        return mean, samples

    def state(self) -> dict[str, torch.Tensor]:
        """Return a copy of every head's weights, momentum and statistics, on the CPU."""
        return {name: tensor.to("cpu", copy=True) for name, tensor in self._tensors.items()}

    def copy_from_main(self, world: World) -> None:
        """Take over the main rank's weights, momentum and statistics."""
        for tensor in self._tensors.values():
            world.copy_from_main(tensor)

    def load(self, tensors: Mapping[str, torch.Tensor], where: str) -> None:
        """Restore what ``state`` returned.

        Raises:
            BadDataError: the tensors do not fit these heads.
        """
        ours = {name: tensor.shape for name, tensor in self._tensors.items()}
        if {name: tensor.shape for name, tensor in tensors.items()} != ours:
            raise BadDataError(
                f"{where}: belongs to other heads; remove it, and the probe starts from scratch"
            )
        for name, tensor in tensors.items():
            self._tensors[name].copy_(tensor)

    def _normalised(self, layer: str, x: torch.Tensor, *, train: bool) -> torch.Tensor:
        """Return x after batch norm over (B, g, g) of each channel, of shape (B, D)."""
        if not self._config.batchnorm:
            return x
        shape = self.shapes[layer]
        # One value per channel (a last batch of one row, globally pooled) has no variance: it is
        # normalised as in evaluation, and the running statistics stay.
        train = train and len(x) * shape.grid**2 > 1
        maps = x.view(len(x), shape.channels, shape.grid, shape.grid)
        return F.batch_norm(
            maps,
            self._tensors[f"{layer}.running_mean"],
            self._tensors[f"{layer}.running_var"],
            training=train,
            momentum=_BN_MOMENTUM,
            eps=_EPSILON,
        ).view(len(x), shape.dim)

    def _linear(self, layer: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._tensors[f"{layer}.weight"], self._tensors[f"{layer}.bias"])

    def _descend(
        self, layer: str, name: str, error_kb: torch.Tensor, x: torch.Tensor | None, lr: float
    ) -> None:
        """Take the step of torch.optim.SGD (dampening 0) without storing a gradient.

        With G the gradient, v' = m v + G + d w, and w' = w - lr v', or w' = w - lr (G + d w +
        m v') for Nesterov, which is w + lr m v - lr (1 + m) v'.
        """
        w, v = self._tensors[f"{layer}.{name}"], self._tensors[f"{layer}.{name}_momentum"]
        m, decay, nesterov = (
            self._config.momentum,
            self._config.weight_decay,
            self._config.nesterov,
        )
        keep = m
        if nesterov:
            w.add_(v, alpha=lr * m)
            keep = m - decay * lr * m  # w has already moved: correct its decay for that
        if x is None:
            v.mul_(keep).add_(error_kb.sum(1))
        else:
            v.addmm_(error_kb, x, beta=keep)
        if decay:
            v.add_(w, alpha=decay)
        w.add_(v, alpha=-lr * (1 + m) if nesterov else -lr)
