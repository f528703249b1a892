"""What a page is made of: sections of figures, tables, pictures and commands, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from markupsafe import Markup

Mark = Literal["", "good", "bad"]


@dataclass(frozen=True)
class Table:
    """Rows of text; the first cell of a row is its head.

    Attributes:
        heads: one a column.
        rows: cells of text, as many as heads; the last cell of a shorter row takes what is left.
        title: shown above it, or what opens it beside a figure.
        numeric: all columns but the first are numbers, which are set to the right.
        open: shown at once, not only when its title is opened.
        noted: the last column is text, which is broken into lines; no other one is.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = "Numbers"
    numeric: bool = True
    open: bool = False
    noted: bool = False


@dataclass(frozen=True)
class Key:
    """One line of a legend.

    Attributes:
        style: of the series: a class of the style sheet, ``s1`` ...
        name: of the series.
        shape: how it is drawn.
    """

    style: str
    name: str
    shape: Literal["line", "dash", "box", "open"] = "line"


@dataclass(frozen=True)
class Figure:
    """A plot with its legend, what it says in words, and its numbers.

    Attributes:
        title: what is shown, with the unit.
        drawing: an ``<svg>`` element.
        alt: what a reader who cannot see it should know.
        table: its numbers.
        legend: series by style.
        note: one or two sentences below it.
    """

    title: str
    drawing: Markup
    alt: str
    table: Table
    legend: Sequence[Key] = ()
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """An image inside the page.

    Attributes:
        uri: ``data:`` URI.
        alt: what it shows.
        caption: below it; may be empty.
        mark: whether what the caption says is right.
    """

    uri: str
    alt: str
    caption: str = ""
    mark: Mark = ""


@dataclass(frozen=True)
class Strips:
    """Rows of pictures that belong together.

    Attributes:
        rows: as many pictures in each.
        columns: how many.
        wide: the pictures are one sheet each, not thumbnails.
        pixelated: the images are small: show their pixels.
        queries: the first picture of a row is what the others are compared with.
    """

    rows: Sequence[Sequence[Picture]]
    columns: int
    wide: bool = False
    pixelated: bool = False
    queries: bool = False


@dataclass(frozen=True)
class Commands:
    """What to type, one command a line."""

    lines: Sequence[str]
    title: str = ""


Block = Figure | Table | Strips | Commands


@dataclass
class Section:
    """One part of the page.

    Attributes:
        id: anchor.
        title: heading.
        lead: one or two sentences on what is shown.
        blocks: in order.
        missing: what is not shown, and why, one line each.
        warnings: what to know before reading on, one line each.
    """

    id: str
    title: str
    lead: str = ""
    blocks: list[Block] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Tile:
    """A figure of the summary: a number, what it is, and a word on it."""

    value: str
    name: str
    note: str = ""
