"""A backbone as dense tasks use it: trainable, with the maps of its stages, dilated if need be."""

from __future__ import annotations

import copy
from collections import OrderedDict

import torch
from torch import nn

from fastrot.errors import MismatchError
from fastrot.models.backbones import ResNet
from fastrot.models.layers import use_batch_norm
from fastrot.weights.load import Backbone

LAYERS = ("layer1", "layer2", "layer3", "layer4")


class Stages(nn.Module):
    """The stages of a ResNet up to ``last``; parameters keep the names that they have there.

    Args:
        network: the ResNet, whose modules are used, not copied.
        last: the last of ``LAYERS`` to compute.

    Attributes:
        channels: number of channels of each map, by layer.
    """

    def __init__(self, network: ResNet, last: str = "layer4") -> None:
        super().__init__()
        self.conv1, self.bn1, self.maxpool = network.conv1, network.bn1, network.maxpool
        self._names = LAYERS[: LAYERS.index(last) + 1]
        self.channels: dict[str, int] = {}
        for name in self._names:
            stage = network.get_submodule(name)
            self.add_module(name, stage)
            self.channels[name] = channels_of(stage)

    def forward(self, images: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        """Map images (N, 3, H, W) to the maps of all stages, by layer, in order of depth."""
        x = self.maxpool(self.bn1(self.conv1(images)))
        maps: OrderedDict[str, torch.Tensor] = OrderedDict()
        for name in self._names:
            x = maps[name] = self.get_submodule(name)(x)
        return maps


def trainable(backbone: Backbone) -> ResNet:
    """Return a copy of the network of a backbone with all parameters to be trained.

    Raises:
        MismatchError: it is not a ResNet.
    """
    if not isinstance(backbone.model, ResNet):
        raise MismatchError(
            f"{backbone.source}: {backbone.config.name} has no stages for dense tasks; use a ResNet"
        )
    return copy.deepcopy(backbone.model).requires_grad_(True).train()


def ready_to_test(model: nn.Module) -> None:
    """Set a model to eval mode, with the same arithmetic however it was trained.

    On CPUs, ranks that share statistics train with a batch norm of our own, whose last bits differ.
    """
    model.eval()
    use_batch_norm(model, "torch")


def channels_of(stage: nn.Module) -> int:
    """Return the number of channels that a stage of a ResNet computes."""
    block = stage[-1]  # type: ignore[index]
    last = block.conv3 if hasattr(block, "conv3") else block.conv2
    return int(last.out_channels)


def stride_of(network: ResNet, layer: str) -> int:
    """Return how many pixels of the image one row of a layer's map stands for."""
    stride = int(network.conv1.stride[0]) * (2 if isinstance(network.maxpool, nn.MaxPool2d) else 1)
    return stride << LAYERS.index(layer)


def dilate(stage: nn.Module, dilation: int) -> None:
    """Replace the stride of a stage by a dilation, so that its map keeps the size of its input.

    The first block has half the dilation of the others, as in mmseg's ``contract_dilation`` and
    torchvision's ``replace_stride_with_dilation``. A block of ResNet-18 and -34 dilates the first
    of its two 3x3 convolutions alone, as mmseg's; torchvision has no dilated ones.
    """
    for index, block in enumerate(stage.children()):
        for layer in block.modules():
            if isinstance(layer, nn.Conv2d):
                layer.stride = (1, 1)
        size = max(1, dilation // 2) if index == 0 else dilation
        dilated = block.conv2 if hasattr(block, "conv3") else block.conv1
        assert isinstance(dilated, nn.Conv2d) and dilated.kernel_size == (3, 3)
        dilated.dilation = dilated.padding = (size, size)
