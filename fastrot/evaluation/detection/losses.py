"""Box losses of the published protocols: L1 where torchvision's heads have a smooth L1.

Sampling, coding and suppression of torchvision's RPN and heads stay.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork

Target = dict[str, torch.Tensor]

TORCHVISION_BETA = 1 / 9
"""Where torchvision's smooth L1 goes over from a parabola to L1."""


class ProposalNetwork(RegionProposalNetwork):  # type: ignore[misc]
    """torchvision's RPN with a box loss of its own ``beta``; 0 is L1, as published."""

    beta = 0.0

    def compute_loss(
        self,
        objectness: torch.Tensor,
        pred_bbox_deltas: torch.Tensor,
        labels: list[torch.Tensor],
        regression_targets: list[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the losses of objectness and boxes of sampled anchors.

        Args:
            objectness: logits of all A anchors of the batch, of shape (A, 1).
            pred_bbox_deltas: of shape (A, 4).
            labels: 1, 0 or -1 (ignored) of each anchor, one tensor per image.
            regression_targets: of shape (anchors of an image, 4), one per image.
        """
        positive, negative = (torch.cat(part).bool() for part in self.fg_bg_sampler(labels))
        sampled = positive | negative
        count = int(sampled.sum())
        boxes = F.smooth_l1_loss(
            pred_bbox_deltas[positive].float(),
            torch.cat(regression_targets)[positive].float(),
            beta=self.beta,
            reduction="sum",
        )
        logits = objectness.flatten()[sampled]
        return (
            F.binary_cross_entropy_with_logits(logits, torch.cat(labels)[sampled].to(logits.dtype)),
            boxes / count,
        )


class Heads(RoIHeads):  # type: ignore[misc]
    """torchvision's box and mask heads with a box loss of their own ``beta``; 0 is L1."""

    beta = 0.0

    def forward(
        self,
        features: dict[str, torch.Tensor],
        proposals: list[torch.Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[Target] | None = None,
    ) -> tuple[list[Target], dict[str, torch.Tensor]]:
        """Return detections (in eval mode), or losses by name (in training mode)."""
        if not self.training:
            found: tuple[list[Target], dict[str, torch.Tensor]] = super().forward(
                features, proposals, image_shapes, targets
            )
            return found
        assert targets is not None
        proposals, matched, labels, deltas = self.select_training_samples(proposals, targets)
        pooled = self.box_roi_pool(features, proposals, image_shapes)
        logits, boxes = self.box_predictor(self.box_head(pooled))
        losses = self._box_losses(logits, boxes, torch.cat(labels), torch.cat(deltas))
        if self.has_mask():
            losses["loss_mask"] = self._mask_loss(
                features, proposals, matched, labels, image_shapes, targets
            )
        return [], losses

    def _box_losses(
        self,
        logits: torch.Tensor,
        boxes: torch.Tensor,
        labels: torch.Tensor,
        deltas: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        positive = torch.where(labels > 0)[0]
        own = boxes.view(len(labels), -1, 4)[positive, labels[positive]]
        loss = F.smooth_l1_loss(own, deltas[positive].to(own), beta=self.beta, reduction="sum")
        return {
            "loss_classifier": F.cross_entropy(logits, labels),
            "loss_box_reg": loss / len(labels),
        }

    def _mask_loss(
        self,
        features: dict[str, torch.Tensor],
        proposals: list[torch.Tensor],
        matched: list[torch.Tensor],
        labels: list[torch.Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[Target],
    ) -> torch.Tensor:
        positive = [torch.where(each > 0)[0] for each in labels]
        boxes = [each[chosen] for each, chosen in zip(proposals, positive, strict=True)]
        owners = [each[chosen] for each, chosen in zip(matched, positive, strict=True)]
        maps = self.mask_head(self.mask_roi_pool(features, boxes, image_shapes))
        parts: tuple[list[Any], list[Any]] = (
            [target["masks"] for target in targets],
            [target["labels"] for target in targets],
        )
        loss: torch.Tensor = maskrcnn_loss(self.mask_predictor(maps), boxes, *parts, owners)
        return loss
