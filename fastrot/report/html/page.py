"""Rendering of blocks as one HTML page that needs no other file and may load none."""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from fastrot.errors import UsageError
from fastrot.report.html.blocks import Block, Section, Tile
from fastrot.report.html.style import STYLE
from fastrot.report.html.template import TEMPLATE
from fastrot.report.html.text import clean


@dataclass(frozen=True)
class Page:
    """The content of a page, in order.

    Attributes:
        title: title of the page.
        subtitle: one line below the title.
        tiles: the summary.
        notes: remarks about the whole run, such as files that could not be read.
        sections: sections of the page.
        footer: last line.
    """

    title: str
    subtitle: str
    tiles: Sequence[Tile]
    notes: Sequence[str]
    sections: Sequence[Section]
    footer: str


def render(page: Page) -> str:
    """Return the page as HTML.

    Raises:
        UsageError: Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment
    except ModuleNotFoundError:
        raise UsageError("a report needs the package jinja2: pip install jinja2") from None
    environment = Environment(autoescape=True, finalize=_cleaned, trim_blocks=True)
    environment.filters["runs"] = _runs
    text: str = environment.from_string(TEMPLATE).render(
        **{name: getattr(page, name) for name in page.__dataclass_fields__},
        style=Markup(STYLE),
        policy=_policy(),
    )
    return text


def _policy() -> str:
    """Return the content security policy: only embedded pictures and this style sheet."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )


def _cleaned(value: Any) -> Any:
    if isinstance(value, str) and not isinstance(value, Markup) and not value.startswith("data:"):
        return clean(value)
    return value


def _runs(blocks: Sequence[Block]) -> Iterator[tuple[str, list[Block]]]:
    """Group neighbouring blocks of the same kind."""
    for kind, group in itertools.groupby(blocks, key=lambda block: type(block).__name__):
        yield kind, list(group)
