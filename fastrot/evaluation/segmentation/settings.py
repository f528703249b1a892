"""Settings of a segmentation protocol."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fastrot.system.yaml_config import Section

Positive = Annotated[int, Field(ge=1)]


class SegmentationConfig(Section):
    """A segmenter and how it sees images (protocols of kind segmentation)."""

    scale: tuple[Positive, Positive] = (2048, 512)
    """Limits of the long and the short side in pixels, which the image is resized into."""
    ratio: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.5, 2.0)
    """Range of the factor by which training multiplies the scale."""
    crop: Annotated[int, Field(ge=8)] = 512
    """Side of a training crop in pixels."""
    most_of_a_class: Annotated[float, Field(gt=0, le=1)] = 0.75
    """A crop with a larger fraction of one class is drawn again, up to ten times."""
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability of a horizontal flip in training."""
    distort: bool = True
    """Change brightness, contrast, saturation and hue in training, each with probability 0.5."""
    align_corners: bool = False
    """How logits are resized to the image: as published, false for VOC and true for Cityscapes."""
    auxiliary_weight: Annotated[float, Field(ge=0)] = 0.4
    """Weight of the loss of the auxiliary head on layer3."""
    test: Literal["whole", "slide"] = "whole"
    """whole: the resized image at once. slide: windows of the crop's side, averaged."""
    stride: Positive = 513
    """slide: pixels from one window to the next."""

    @model_validator(mode="after")
    def _fits(self) -> SegmentationConfig:
        low, high = self.ratio
        if low > high:
            raise ValueError(f"segmentation.ratio={list(self.ratio)} must increase")
        if self.test == "slide" and self.stride > self.crop:
            raise ValueError(
                f"segmentation.stride={self.stride} must not exceed segmentation.crop={self.crop}"
            )
        return self
