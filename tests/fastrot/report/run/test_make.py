"""From a real run to a page, and what the page says when something is missing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fastrot.errors import StorageError, UsageError
from fastrot.evaluation.result import Score
from fastrot.report.html.style import STYLE
from fastrot.report.run.make import make_report

VOID = {"meta", "link", "img", "br", "hr"}
ALL = {
    *("curves", "throughput", "confusion", "views", "filters", "neighbours"),
    *("settings", "environment", "commands"),
}


class Tree(HTMLParser):
    """All elements with their attributes; tags must close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({key for key, _ in attrs}) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(run: Path) -> tuple[Tree, tuple[str, ...]]:
    result = make_report(run)
    return Tree(result.path.read_text()), result.missing


def test_a_run_becomes_a_page_with_every_part_that_it_has_data_for(run: Path) -> None:
    said: list[str] = []
    result = make_report(run, say=said.append)
    assert result.path == run / "report.html" and result.bytes == result.path.stat().st_size
    assert set(result.sections) == ALL
    assert {line.split(":")[0] for line in result.missing} == {"scores", "low-shot curve"}
    assert json.loads(json.dumps(result.to_json()))["sections"] == list(result.sections)
    assert any("16 held-out images" in line for line in said)
    tree = Tree(result.path.read_text())
    plots = [a for a in tree.all("svg") if a.get("class") == "plot"]
    assert len(plots) == 8  # five curves, two of the throughput, one matrix
    assert len(tree.all("table")) >= len(plots) + 6  # numbers beside each, six parts of settings
    assert len([a for a in tree.all("div") if a.get("role") == "img" and a["aria-label"]]) == 8
    assert len(tree.all("img")) == 8 * 4 + 2 + 8 * 6
    assert all(a["alt"] and str(a["src"]).startswith("data:image/") for a in tree.all("img"))
    anchors = {a["id"] for a in tree.all("section")}
    assert anchors >= ALL
    assert {str(a["href"])[1:] for a in tree.all("a")} == anchors


def test_the_page_needs_and_may_reach_nothing_else(run: Path) -> None:
    tree, _ = page_of(run)
    for tag, attributes in tree.elements:
        assert tag not in ("script", "iframe", "object", "embed", "form", "base")
        assert not any(key.startswith("on") or key == "style" for key in attributes)
        for key in ("src", "href"):
            assert (attributes.get(key) or "data:").startswith(("data:", "#"))
    (policy,) = (a["content"] for a in tree.all("meta") if a.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy and "url(" not in STYLE and "@import" not in STYLE


def test_the_same_files_give_the_same_bytes(run: Path) -> None:
    first = make_report(run).path.read_bytes()
    assert make_report(run, run.parent / "again.html").path.read_bytes() == first


def test_what_is_not_trained_yet_is_said(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.jsonl").unlink()
    (run / "environment.json").unlink()
    (run / "status.json").write_text('{"state": "running", "step": 0, "epoch": 0}')
    tree, missing = page_of(run)
    text = " ".join(missing)
    for part in ("metrics", "environment", "training curves", "throughput", "sample views"):
        assert part in text
    assert "first-layer filters: the run has no checkpoint" in text
    assert "The run had not ended when this page was written" in tree.text
    assert "Settings" in tree.text and "resnet18 of width 8" in tree.text


def test_moved_data_leave_the_recorded_matrix(run: Path, trained: Path) -> None:
    config = run / "config.yaml"
    gone = str(trained.parent / "val")
    for state in (run / "checkpoints").glob("*/state.json"):
        assert gone in state.read_text()
    os.rename(gone, f"{gone}-moved")
    try:
        tree, missing = page_of(run)
    finally:
        os.rename(f"{gone}-moved", gone)
    assert gone in config.read_text()
    assert [m for m in missing if m.startswith("confusion matrix") and "no such file" in m]
    assert "As recorded by the last validation after step 6" in tree.text
    assert "First-layer filters" in tree.text and any("nearest neighbours" in m for m in missing)


def test_images_that_cannot_be_read_are_a_line(run: Path, trained: Path) -> None:
    good = trained.parent / "val"
    aside = good.rename(good.with_name("val-aside"))
    try:
        for source in aside.rglob("*.png"):
            target = good / source.relative_to(aside)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes()[:60])
        result = make_report(run)
    finally:
        shutil.rmtree(good)
        aside.rename(good)
    assert "filters" in result.sections and "curves" in result.sections
    for part in ("confusion matrix", "sample views", "nearest neighbours"):
        assert [line for line in result.missing if line.startswith(part)]
    assert Tree(result.path.read_text()).text


def test_a_damaged_checkpoint_gives_way_to_the_one_before(run: Path) -> None:
    tensors = run / "checkpoints" / "step-00000006" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"\xff")
    tree, _ = page_of(run)
    assert "The checkpoint at step 3 on 16 of 16 held-out images" in tree.text


def test_broken_settings_are_a_note(run: Path) -> None:
    (run / "config.yaml").write_text("train: [")
    (run / "status.json").write_text("[" * 100_000)
    tree, missing = page_of(run)
    assert any(line.startswith("settings: ") for line in missing)
    assert "status: status.json is damaged: not JSON" in missing
    assert "The checkpoint at step 6" in tree.text  # it knows its settings


def test_a_run_without_held_out_images_shows_training_images(small_run: Path) -> None:
    result = make_report(small_run, small_run.parent / "page.html")
    tree = Tree(result.path.read_text())
    assert "the run has no held-out images" in " ".join(result.missing)
    assert "8 training images at 64 px" in tree.text
    assert "19 other training images" in tree.text


@pytest.mark.parametrize("name", ["nowhere", "file", "empty"])
def test_what_is_no_run_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"(not a run|no such) folder .*; name one made"):
        make_report(tmp_path / name)
    assert not (tmp_path / "empty" / "report.html").exists()


def test_a_page_that_cannot_be_written(run: Path) -> None:
    with pytest.raises(StorageError, match="name another file with --out"):
        make_report(run, run / "nowhere" / "page.html")


def test_commands_are_those_that_were_typed(run: Path, write_result: Callable[..., Path]) -> None:
    write_result(run, "linear", "linear", [Score("layer1", "top1", 50.0, "layer1")])
    tree, _ = page_of(run)
    assert "python -m fastrot train --out" in tree.text
    assert "fastrot eval linear 'a run'" in tree.text
    assert f"fastrot report {run}" in tree.text
