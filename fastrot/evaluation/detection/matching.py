"""Which object an anchor is for, as in mmdetection's ``MaxIoUAssigner``."""

from __future__ import annotations

import torch
from torchvision.models.detection._utils import Matcher


class AnchorMatcher(Matcher):  # type: ignore[misc]
    """torchvision's matcher of anchors, with a least IoU for the best anchors of an object.

    torchvision takes the anchors with the largest IoU with an object as positive whatever that IoU
    is, so an object that no anchor fits teaches with anchors that lie mostly beside it. Also, a
    best anchor of an object is for that object, even if it overlaps another one more; of several
    such objects, it is for the last one.

    Args:
        high: least IoU of any positive anchor with its object.
        low: IoU below which an anchor is negative.
        least: least IoU of the best anchors of an object to be positive.
    """

    def __init__(self, high: float, low: float, least: float) -> None:
        super().__init__(high, low, allow_low_quality_matches=True)
        self.least = least

    def set_low_quality_matches_(
        self, matches: torch.Tensor, all_matches: torch.Tensor, match_quality_matrix: torch.Tensor
    ) -> None:
        """Match the best anchors of each object to it, in place.

        Args:
            matches: object of each of A anchors, or a negative number, of shape (A,).
            all_matches: not used; the object that each anchor overlaps most.
            match_quality_matrix: IoU of objects and anchors, of shape (objects, A).
        """
        best = match_quality_matrix.amax(1, keepdim=True)
        objects, anchors = torch.where((match_quality_matrix == best) & (best >= self.least))
        matches[anchors] = self.BELOW_LOW_THRESHOLD  # less than any object, for the maximum
        matches.scatter_reduce_(0, anchors, objects, "amax")
