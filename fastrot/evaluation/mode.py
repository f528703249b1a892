"""How training rows of a linear probe are made: live augmented crops, or K cached ones."""

from __future__ import annotations

from typing import NamedTuple

from fastrot.errors import UsageError

_MOST_CROPS = 10_000


class Mode(NamedTuple):
    """A mode by name.

    Attributes:
        name: ``augmented`` (as published: each epoch decodes, crops and colours anew), or
            ``cached-K`` (features of K random crops of each image, taken in turn; 0: the test
            transform).
        crops: K; None: augmented.
    """

    name: str
    crops: int | None

    @property
    def label(self) -> str:
        """As results say it."""
        return "test transform" if self.crops == 0 else self.name


TEST_TRANSFORM = Mode("cached-0", 0)


def parse_mode(text: str) -> Mode:
    """The mode that a user named.

    Raises:
        UsageError: there is no such mode.

    Example:
        >>> parse_mode("cached-4").crops
        4
    """
    if text == "augmented":
        return Mode(text, None)
    kind, _, number = text.partition("-")
    if kind == "cached" and number.isdecimal() and int(number) <= _MOST_CROPS:
        return Mode(f"cached-{int(number)}", int(number))
    raise UsageError(
        f"mode {text!r} is not known; choose augmented, or cached-K for K crops an image"
    )
