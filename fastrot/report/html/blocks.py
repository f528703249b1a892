"""The parts of a page as plain values: sections of figures, tables, pictures and commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from markupsafe import Markup

Mark = Literal["", "good", "bad"]


@dataclass(frozen=True)
class Table:
    """Rows of text; the first cell of a row is its heading.

    Attributes:
        heads: column headings.
        rows: cells of text, one per column; the last cell of a shorter row spans the rest.
        title: title of the table, which opens and closes it.
        numeric: all columns but the first hold numbers and are right-aligned.
        open: show the table before its title is clicked.
        noted: the last column holds text and is the only one that may wrap.
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
        style: class of the series in the style sheet, ``s1`` ...
        name: name of the series.
        shape: how the series is drawn.
        colour: of a picture, as ``#rrggbb``; empty: that of the style.
    """

    style: str
    name: str
    shape: Literal["line", "dash", "box", "open"] = "line"
    colour: str = ""


@dataclass(frozen=True)
class Figure:
    """A plot with its legend, a description in words, and its numbers.

    Attributes:
        title: what is shown, with the unit.
        drawing: an ``<svg>`` element.
        alt: description for readers who cannot see the plot.
        table: the numbers behind the plot.
        legend: the series and how they are drawn.
        note: one or two sentences below the plot.
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
        alt: what the image shows.
        caption: text below the image; may be empty.
        mark: whether the caption is correct ("good") or not ("bad"); empty: unknown.
    """

    uri: str
    alt: str
    caption: str = ""
    mark: Mark = ""


@dataclass(frozen=True)
class Strips:
    """Rows of pictures that belong together.

    Attributes:
        rows: pictures, ``columns`` per row.
        columns: number of pictures per row.
        wide: the pictures are large sheets, not thumbnails.
        pixelated: enlarge the images without smoothing their pixels.
        queries: the first picture of a row is the query that the others are compared with.
        title: heading above them; may be empty.
        legend: the colours in the pictures.
        note: one or two sentences below the heading.
    """

    rows: Sequence[Sequence[Picture]]
    columns: int
    wide: bool = False
    pixelated: bool = False
    queries: bool = False
    title: str = ""
    legend: Sequence[Key] = ()
    note: str = ""


@dataclass(frozen=True)
class Commands:
    """Commands to type, one per line."""

    lines: Sequence[str]


Block = Figure | Table | Strips | Commands


@dataclass
class Section:
    """One part of the page.

    Attributes:
        id: anchor of the section.
        title: heading.
        lead: one or two sentences about what is shown.
        blocks: contents in order.
        missing: what is not shown and why, one line each.
        warnings: what readers should know first, one line each.
    """

    id: str
    title: str
    lead: str = ""
    blocks: list[Block] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Tile:
    """One number of the summary, with its name and a short note."""

    value: str
    name: str
    note: str = ""
