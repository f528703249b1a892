"""Settings of a detection protocol."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fastrot.system.yaml_config import Section

Positive = Annotated[int, Field(ge=1)]


class DetectionConfig(Section):
    """A detector and its sizes (protocols of kind detection)."""

    model: Literal["faster_rcnn_c4", "mask_rcnn_fpn"] = "faster_rcnn_c4"
    """faster_rcnn_c4: one map of stride 16, layer4 in the box head, a norm after it.
    mask_rcnn_fpn: feature pyramid, box head of four convolutions and one linear layer, masks."""
    sides: Annotated[tuple[Positive, ...], Field(min_length=1)] = tuple(range(480, 801, 32))
    """Lengths of the short side in pixels: training draws one for each image, testing uses the
    last."""
    longest_side: Positive = 1333
    """Limit of the long side in pixels."""
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability of a horizontal flip in training."""
    anchors_per_image: Positive = 256
    """Anchors that the loss of the proposals is computed on, half of them positive at most."""
    proposals_before_nms: tuple[Positive, Positive] = (12000, 6000)
    """Proposals of each map before their suppression, in training and in testing."""
    proposals: tuple[Positive, Positive] = (2000, 1000)
    """Proposals of an image after their suppression, in training and in testing."""
    regions_per_image: Positive = 512
    """Regions that the loss of the box head is computed on, a quarter of them positive at most."""
    box_loss_beta: Annotated[float, Field(ge=0)] = 0.0
    """Where the box loss goes over from a parabola to L1; 0: L1."""
    least_score: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Minimum score of a detection."""
    detections: Positive = 100
    """Most detections of an image."""

    @model_validator(mode="after")
    def _fits(self) -> DetectionConfig:
        if max(self.sides) > self.longest_side:
            raise ValueError(
                f"detection.sides={list(self.sides)} must not exceed "
                f"detection.longest_side={self.longest_side}"
            )
        return self
