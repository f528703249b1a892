"""Backbones with named stages, and the rotation head.

Shapes: N views, C channels, H and W rows and columns, D features of the last stage.

ResNet (He et al., 2015; the "v1.5" variant with the stride in the 3x3 convolution): parameters
have the names of torchvision's ``resnet*`` and mmcv's ``style='pytorch'``, so
``backbone.safetensors`` of a run loads there by name. RotNet's NIN: Gidaris et al., 2018,
"Unsupervised Representation Learning by Predicting Image Rotations", section 10 of its CIFAR-10
experiments.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from fastrot.config import ModelConfig
from fastrot.models.layers import BatchNorm, FirstConv2d

TURNS = 4

DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the identity (ResNet-18 and -34)."""

    expansion = 1

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = BatchNorm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = BatchNorm(channels)
        self.downsample = _shortcut(channels_in, channels, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C_in, H, W) to (N, channels, H / stride, W / stride)."""
        out = self.conv2(self.bn1(self.conv1(x)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.bn2(out, shortcut)  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions and the identity (ResNet-50, -101)."""

    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        channels_out = channels * self.expansion
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = BatchNorm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = BatchNorm(channels)
        self.conv3 = nn.Conv2d(channels, channels_out, 1, bias=False)
        self.bn3 = BatchNorm(channels_out)
        self.downsample = _shortcut(channels_in, channels_out, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C_in, H, W) to (N, 4 * channels, H / stride, W / stride)."""
        out = self.conv3(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.bn3(out, shortcut)  # type: ignore[no-any-return]


def _shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels_in == channels_out:
        return None
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 1, stride, bias=False),
        BatchNorm(channels_out, relu=False),
    )


class ResNet(nn.Module):
    """A ResNet without its classifier.

    Args:
        name: resnet18, resnet34, resnet50 or resnet101.
        stem: ``imagenet`` (7x7 stride 2, max pool) or ``small`` (3x3 stride 1, for 32 px).
        width: channels of the first stage; 64 is the published width.

    Attributes:
        num_features: D, the length of the pooled features.
        stage_names: keys of ``stages``, in order of depth.
    """

    stage_names = ("stem", "layer1", "layer2", "layer3", "layer4", "pool")

    def __init__(self, name: str, *, stem: str = "imagenet", width: int = 64) -> None:
        super().__init__()
        block = BasicBlock if name in ("resnet18", "resnet34") else Bottleneck
        if stem == "imagenet":
            self.conv1 = FirstConv2d(3, width, 7, 2, 3, bias=False)
            self.maxpool: nn.Module = nn.MaxPool2d(3, 2, 1)
        else:
            self.conv1 = FirstConv2d(3, width, 3, 1, 1, bias=False)
            self.maxpool = nn.Identity()
        self.bn1 = BatchNorm(width)
        channels = width
        for stage, depth in enumerate(DEPTHS[name]):
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(channels, width << stage, stride))
                channels = (width << stage) * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.num_features = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the outputs of all stages for views of shape (N, 3, H, W).

        ``stem`` is taken after the ReLU and before the max pool, as in the published probes;
        ``pool`` is the global average of ``layer4``, of shape (N, D).
        """
        out: dict[str, torch.Tensor] = {"stem": self.bn1(self.conv1(x))}
        x = self.maxpool(out["stem"])
        for name in self.stage_names[1:-1]:
            x = out[name] = self.get_submodule(name)(x)
        out["pool"] = self.avgpool(x).flatten(1)
        return out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map views of shape (N, 3, H, W) to pooled features of shape (N, D)."""
        return self.stages(x)["pool"]


class NetworkInNetwork(nn.Module):
    """RotNet's network for CIFAR-10: blocks of one spatial and two 1x1 convolutions.

    Blocks 3 and later keep the 8x8 map of a 32 px image. The initialisation is PyTorch's default,
    as in the published code.

    Args:
        blocks: number of blocks, 3 to 5; the published RotNet has 4.

    Attributes:
        num_features: D = 192.
        stage_names: keys of ``stages``; ``block2`` is the published feature (ConvB2).
    """

    num_features = 192

    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        first = [
            _nin_layer(3, 192, 5, FirstConv2d),
            _nin_layer(192, 160, 1),
            _nin_layer(160, 96, 1),
        ]
        self.block1 = nn.Sequential(*first, nn.MaxPool2d(3, 2, 1))
        self.block2 = nn.Sequential(*_nin_layers(96, 5), nn.AvgPool2d(3, 2, 1))
        for index in range(3, blocks + 1):
            self.add_module(f"block{index}", nn.Sequential(*_nin_layers(192, 3)))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.stage_names = (*(f"block{index}" for index in range(1, blocks + 1)), "pool")

    def stages(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the outputs of all blocks for views (N, 3, H, W), and ``pool`` (N, 192)."""
        out: dict[str, torch.Tensor] = {}
        for name in self.stage_names[:-1]:
            x = out[name] = self.get_submodule(name)(x)
        out["pool"] = self.avgpool(x).flatten(1)
        return out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map views of shape (N, 3, H, W) to pooled features of shape (N, 192)."""
        return self.stages(x)["pool"]


def _nin_layer(
    channels_in: int, channels: int, kernel: int, convolution: type[nn.Conv2d] = nn.Conv2d
) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=convolution(channels_in, channels, kernel, 1, kernel // 2, bias=False),
            bn=BatchNorm(channels),
        )
    )


def _nin_layers(channels_in: int, kernel: int) -> list[nn.Sequential]:
    return [_nin_layer(channels_in, 192, kernel), _nin_layer(192, 192, 1), _nin_layer(192, 192, 1)]


class RotationHead(nn.Module):
    """One linear layer from pooled features to the logits of the four turns."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.fc = nn.Linear(num_features, TURNS)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map features of shape (N, D) to logits of shape (N, 4)."""
        return self.fc(features)  # type: ignore[no-any-return]


class RotationModel(nn.Module):
    """A backbone and a rotation head."""

    def __init__(self, backbone: ResNet | NetworkInNetwork) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = RotationHead(backbone.num_features)

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        """Map views of shape (N, 3, H, W) to logits of shape (N, 4)."""
        logits: torch.Tensor = self.head(self.backbone(views))
        return logits


def build_model(config: ModelConfig, *, seed: int) -> RotationModel:
    """Build the model on the CPU with weights that depend on ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.name == "rotnet_nin":
            return RotationModel(NetworkInNetwork(config.blocks))
        return RotationModel(ResNet(config.name, stem=config.stem, width=config.width))
