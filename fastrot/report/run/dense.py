"""Detection and segmentation: scores beside the published ones, and pictures of test images."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from fastrot.errors import FastrotError
from fastrot.evaluation.dense.pictures import FOLDER, INDEX, LONGEST
from fastrot.report.html.blocks import Key, Picture, Section, Strips
from fastrot.report.html.text import clean
from fastrot.report.run.results import Found, is_dense
from fastrot.report.run.scores import score_figure
from fastrot.system.files import read_regular
from fastrot.system.jsonl import read_object

_MOST_ROWS = 12
_MOST_BYTES = 2 * 2**20
_FILE = re.compile(r"[\w-]{1,40}\.(jpg|png)")
_COLOUR = re.compile(r"#[0-9a-f]{6}")


def dense_section(found: Sequence[Found]) -> Section:
    """Show the scores of all measurements, then the pictures of those that have any."""
    section = Section("dense", "Detection and segmentation")
    section.lead = (
        "Whole models, trained from the backbone on and measured on test images. The random "
        "initialisation is the same training without pretrained weights."
    )
    shown = [one for one in found if is_dense(one.result)]
    section.blocks += [score_figure(one, "scores, %", "", one.result.scores) for one in shown]
    for one in shown:
        folder = one.measurement.file.parent / FOLDER
        if one.measurement.earlier or not (folder / INDEX).exists():
            continue  # of a version that made none
        try:
            section.blocks.append(_strips(one, folder))
        except (FastrotError, OSError, KeyError, TypeError, ValueError) as error:
            section.missing.append(f"pictures of {one.title}: {clean(str(error), 200)}")
    return section


def _strips(one: Found, folder: Path) -> Strips:
    """Return the pictures of a measurement.

    Raises:
        FastrotError: a file cannot be read.
        OSError: a file is missing, or not a picture.
        KeyError, TypeError, ValueError: the list is damaged.
    """
    tree = read_object(folder / INDEX)
    if isinstance(tree, str):
        raise ValueError(tree)
    rows = [[_picture(folder, each) for each in row] for row in tree["rows"][:_MOST_ROWS]]
    legend = []
    for name, colour in tree["legend"]:
        if not _COLOUR.fullmatch(colour):
            raise ValueError(f"{colour!r} is not a colour")
        legend.append(Key("", clean(name, 40), "box", colour))
    columns = max(map(len, rows), default=1)
    if columns > 3 or any(len(row) != columns for row in rows):
        raise ValueError("its rows are not of one length")
    title = f"{one.title}: ground truth and predictions"
    return Strips(rows, columns, wide=True, title=title, legend=legend, note=str(tree["about"]))


def _picture(folder: Path, entry: Mapping[str, Any]) -> Picture:
    name = str(entry["file"])
    match = _FILE.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not the name of a picture")
    data = read_regular(folder / name)
    kind = {"jpg": "JPEG", "png": "PNG"}[match[1]]
    with Image.open(io.BytesIO(data), formats=[kind]) as image:
        if max(image.size) > LONGEST or len(data) > _MOST_BYTES:
            raise ValueError(f"{name} is larger than any picture that fastrot writes")
        image.load()
    uri = f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"
    return Picture(uri, str(entry["alt"]), str(entry["caption"]))
