"""Detection and segmentation on the page: rows beside the published ones, and pictures."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastrot.evaluation.dense.pictures import Picture, Pictures, save_pictures
from fastrot.evaluation.result import Score
from fastrot.report.html.blocks import Figure, Strips
from fastrot.report.run.dense import dense_section
from fastrot.report.run.make import make_report
from fastrot.report.run.results import read_results
from fastrot.report.run.scores import scores_section

Write = Callable[..., Path]
COCO = [
    Score(f"{what} {name}", name, value)
    for what, value in (("box", 12.5), ("mask", 10.0))
    for name in ("AP", "AP50", "AP75")
]


def write_pictures(result: Path, *, name: str = "a<b>.jpg") -> Path:
    """Write one photo and one label map beside a result."""
    labels = Image.fromarray(np.zeros((30, 40), np.uint8), "P")
    labels.putpalette([0, 0, 142])
    row = [
        Picture("image", Image.new("RGB", (40, 30), (9, 200, 9)), name, f"{name}, the image"),
        Picture("truth", labels, "ground truth", f"{name}, ground truth: car 100%"),
    ]
    save_pictures(result.parent, Pictures([row, row], [("car", (0, 0, 142))], "Every pixel."))
    return result.parent / "pictures"


@pytest.fixture
def detected(run: Path, write_result: Write) -> Path:
    return write_result(
        run, "coco-det-coco", "coco-det", COCO, random=COCO[:1], label="fine-tuned",
        settings={"kind": "detection"},
    )  # fmt: skip


def test_scores_stand_in_one_open_table_beside_the_published_ones(
    run: Path, detected: Path
) -> None:
    found, problems = read_results(run)
    assert scores_section(found, problems).blocks == []  # which are of frozen features
    (figure,) = dense_section(found).blocks
    assert isinstance(figure, Figure) and figure.table.open
    assert list(figure.table.heads)[1:] == ["this run", "random initialisation", "gain",
                                            "published"]  # fmt: skip
    rows = {row[0]: list(row[1:]) for row in figure.table.rows}
    assert list(rows) == [score.name for score in COCO]
    assert rows["box AP"] == ["12.50", "12.50", "+0.00", "37.90"]
    assert rows["mask AP75"] == ["10.00", "", "", "36.70"]
    assert "box AP50, published: 56.50 %" in figure.drawing
    assert "FPN, 1x" in figure.note


def test_the_same_paths_with_other_data_are_told_apart_by_digests(
    run: Path, write_result: Write
) -> None:
    for name, test in (("one", "12345678ff"), ("two", "87654321ff")):
        caches = {"weights": "0" * 32, "train": "abcdef01ff", "test": test}
        file = write_result(run, name, "coco-det", COCO, label="fine-tuned", caches=caches)
        tree = json.loads(file.read_text())
        file.write_text(json.dumps({**tree, "data": {"train": "/data/coco", "test": "/data/coco"}}))
    found, _ = read_results(run)
    titles = sorted(each.title for each in found)
    assert titles == [
        f"coco-det (fine-tuned) on coco, data abcdef01 and {test}"
        for test in ("12345678", "87654321")
    ]


def test_pictures_are_inside_the_page(run: Path, detected: Path) -> None:
    folder = write_pictures(detected)
    found, _ = read_results(run)
    _, strips = dense_section(found).blocks
    assert isinstance(strips, Strips) and strips.columns == 2 and len(strips.rows) == 2
    photo, labels = strips.rows[0]
    assert photo.uri.startswith("data:image/jpeg;") and photo.caption == "a<b>.jpg"
    stored = (folder / "0-truth.png").read_bytes()
    assert base64.b64decode(labels.uri.removeprefix("data:image/png;base64,")) == stored
    assert [(key.name, key.colour) for key in strips.legend] == [("car", "#00008e")]
    page = make_report(run).path.read_text()
    assert photo.uri in page and 'fill="#00008e"' in page and "Every pixel." in page
    assert "a&lt;b&gt;.jpg" in page and "a<b>" not in page


def test_an_older_result_without_pictures_is_shown(run: Path, detected: Path) -> None:
    result = make_report(run)
    assert "dense" in result.sections
    assert not [line for line in result.missing if "pictures" in line]
    assert "Detection and segmentation" in result.path.read_text()


def _foreign(folder: Path, **changes: Any) -> None:
    tree = json.loads((folder / "pictures.json").read_text())
    tree["rows"][0][0] |= changes
    (folder / "pictures.json").write_text(json.dumps(tree))


def _narrow(folder: Path) -> None:
    tree = json.loads((folder / "pictures.json").read_text())
    tree["rows"][0].pop()
    (folder / "pictures.json").write_text(json.dumps(tree))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "0-image.jpg").unlink(), "0-image.jpg"),
        (lambda folder: (folder / "0-image.jpg").write_bytes(b"\xff\xd8 no"), "cannot identify"),
        (lambda folder: (folder / "pictures.json").write_text("["), "not JSON"),
        (lambda folder: _foreign(folder, file="../../../config.yaml"), "not the name of a picture"),
        (lambda folder: _foreign(folder, file=["a"]), "not the name of a picture"),
        (_narrow, "not of one length"),
        (
            lambda folder: Image.new("RGB", (4000, 3)).save(folder / "0-image.jpg"),
            "larger than any picture",
        ),
        (
            lambda folder: (
                (folder / "0-image.jpg").unlink(), os.mkfifo(folder / "0-image.jpg")
            ),
            "0-image.jpg",
        ),
    ],
    ids=["missing", "damaged", "list", "elsewhere", "no name", "narrow", "large", "pipe"],
)  # fmt: skip
def test_damaged_pictures_are_a_line(
    run: Path, detected: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(write_pictures(detected))
    found, _ = read_results(run)
    section = dense_section(found)
    assert [type(block) for block in section.blocks] == [Figure]
    (line,) = section.missing
    assert line.startswith("pictures of coco-det") and message in line


def test_a_random_initialisation_measured_alone_stands_beside_the_run(
    run: Path, write_result: Write
) -> None:
    """They differ in the digest of the weights, which is recorded for the whole measurement."""
    for name, source in (("seg", "run, step 6"), ("seg-random", "random initialisation, seed 0")):
        path = write_result(
            run, name, "cityscapes-seg", [Score("mIoU", "mIoU", 20.0 + len(name))],
            label="fine-tuned", settings={"kind": "segmentation"},
        )  # fmt: skip
        tree = json.loads(path.read_text())
        tree["weights"] = {"source": source, "model": {"name": "resnet18"}}
        tree["caches"] = {"weights": source, "train": "a", "test": "b", "mean": [0.5]}
        tree["key"] = name
        path.write_text(json.dumps(tree))
    found, _ = read_results(run)
    assert [one.name for one in found] == ["seg"]
    assert found[0].random == {("mIoU", "mIoU"): 30.0}
