"""The suite trains models too: rows beside the published and the random ones, and pictures."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from fastrot.errors import BadDataError, UsageError
from fastrot.evaluation.command import evaluate
from fastrot.evaluation.measurements import read_measurements
from fastrot.evaluation.run import EvalRequest
from fastrot.evaluation.suite import SuiteReport
from tests.fastrot.data.annotations.annotated_files import voc_object, write_voc
from tests.fastrot.evaluation.dense.test_run import DETECTION, SEGMENTATION, cityscapes

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, tuple[Path, Path]]:
    """VOC 2007 and 2012 of a few images, and two street scenes."""
    root = tmp_path / "voc"
    cat = [voc_object("cat", 3, 3, 20, 20)]
    write_voc(root, 2007, "trainval", {"000001": cat})
    write_voc(root, 2007, "test", {"000004": cat})
    write_voc(root, 2012, "trainval", {"2008_000001": cat})
    scenes = cityscapes(tmp_path / "streets")
    return {"voc0712": (root, root), "cityscapes": (scenes, scenes)}


def request(run: Path, sets: dict[str, Any], out: Path, **more: Any) -> EvalRequest:
    settings = [*DETECTION, *SEGMENTATION, "segmentation.test=slide", "segmentation.stride=24"]
    return EvalRequest(
        checkpoint=run, protocol="suite", sets=sets, overrides=settings, out=out, progress=False,
        **more,
    )  # fmt: skip


def test_each_given_data_set_is_trained_on_and_has_its_rows(
    small_run: Path, sets: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    said: list[str] = []
    report = evaluate(request(small_run, sets, out), said.append)
    assert isinstance(report, SuiteReport)
    steps = ["[1/2] voc0712-det (fine-tuned)", "[2/2] cityscapes-seg (fine-tuned)"]
    assert [line for line in said if line.startswith("[")] == steps
    rows = {
        (row["protocol"], row["name"]): row
        for row in csv.DictReader((out / "suite.csv").open(newline=""))
    }
    assert [name for name in rows if name[0] == "cityscapes-seg"] == [
        ("cityscapes-seg", name) for name in ("mIoU", "mean accuracy", "pixel accuracy")
    ]
    ap50 = rows["voc0712-det", "AP50"]
    assert (ap50["mode"], ap50["metric"], ap50["published"]) == ("fine-tuned", "AP50", "79.67")
    assert "20211213-513972ac" in ap50["source"]
    assert rows["voc0712-det", "AP50 by area"]["published"] == ""
    assert all(0 <= float(row[part]) <= 100 for row in rows.values() for part in
               ("measured", "random"))  # fmt: skip
    table = (out / "suite.md").read_text()
    assert "| voc0712-det | fine-tuned | AP50 | AP50 |" in table and "| 79.67 |" in table
    saved = json.loads((out / "suite.json").read_text())
    assert len(saved["rows"]) == len(rows) == 5 and saved["left_out"] == {}
    found, problems = read_measurements(out)
    assert {one.result.protocol for one in found} == {"voc0712-det", "cityscapes-seg"}
    assert problems == [] and len(json.loads((out / "index.json").read_text())) == 2
    for one in found:
        pictures = one.file.parent / "pictures"
        for row in json.loads((pictures / "pictures.json").read_text())["rows"]:
            assert all((pictures / each["file"]).stat().st_size for each in row)
    # What is finished is not repeated: by the suite again, or by the command of one protocol.
    states = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert states
    again = evaluate(request(small_run, sets, out), said.append)
    assert isinstance(again, SuiteReport) and again.to_json()["rows"] == report.to_json()["rows"]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == states


def test_the_random_column_can_be_left_out(
    small_run: Path, sets: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    out, streets = tmp_path / "out", {"cityscapes": sets["cityscapes"]}
    report = evaluate(request(small_run, streets, out, beside_random=False))
    assert isinstance(report, SuiteReport)
    assert [result.random for result in report.results] == [None]


def test_all_data_is_opened_before_anything_is_trained(
    small_run: Path, sets: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    next((sets["cityscapes"][0] / "gtFine").rglob("*.png")).unlink()
    with pytest.raises(BadDataError, match="label map"):
        evaluate(request(small_run, sets, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_suite_without_data_names_the_options(small_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--voc0712, --coco, --voc12aug, --cityscapes"):
        evaluate(request(small_run, {}, tmp_path / "out"))
