"""The page in a real browser: quiet, alone, and as wide as the window."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fastrot.evaluation.dense.pictures import Picture, Pictures, save_pictures
from fastrot.evaluation.result import Score
from fastrot.report.run.make import make_report


@pytest.fixture(scope="module")
def page(
    trained: Path, tmp_path_factory: pytest.TempPathFactory, write_result: Callable[..., Path]
) -> Path:
    """A page with everything on it, and long words."""
    run = shutil.copytree(trained, tmp_path_factory.mktemp("browser") / "run")
    stages = ("stem", "layer1", "layer2", "layer3", "layer4", "pool")
    scores = [Score(name, "top1", 50.0, name) for name in stages]
    write_result(run, "linear" + "-long" * 20, "in1k-linear-mhead", scores, label="cached-10" * 12)
    shots = [Score(f"{k}-shot layer3", "mAP", 20.0, "layer3") for k in (1, 2, 4, 8, 16, 32, 64, 96)]
    write_result(run, "low", "voc07-lowshot", shots)
    write_result(run, "broken", "x", []).write_text("{")
    boxes = [Score(f"{what} AP75", "AP75", 20.0) for what in ("box", "mask")]
    settings = {"kind": "detection"}
    detected = write_result(run, "det", "coco-det", boxes, label="fine-tuned", settings=settings)
    save_pictures(detected.parent, scenes(2))
    labelled = [Score("mean accuracy", "mAcc", 20.0)]
    settings = {"kind": "segmentation"}
    detected = write_result(
        run, "seg", "cityscapes-seg", labelled, label="fine-tuned", settings=settings
    )
    save_pictures(detected.parent, scenes(3))
    return make_report(run).path


def scenes(columns: int) -> Pictures:
    """Two rows of large pictures with long words, and a legend of many colours."""
    image = Image.new("RGB", (640, 320), (0, 90, 0))
    word = "frankfurt_000001_077092_leftImg8bit.png" * 3
    row = [Picture(f"part{i}", image, word, f"part {i} of {word}") for i in range(columns)]
    legend = [(f"class of number {k}", (12 * k, 0, 255 - 12 * k)) for k in range(20)]
    return Pictures([row, row], legend, "What is shown.")


@pytest.mark.parametrize("width", [320, 390, 1400])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_is_quiet_and_alone_and_fits(page: Path, browser: Any, width: int, dark: bool) -> None:
    browser.open(page, width=width, dark=dark)
    assert browser.complaints() == []
    asked = browser.requests()
    assert asked[0] == page.as_uri()
    assert all(address.startswith("data:") for address in asked[1:])
    browser.value("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value("[...document.images].every(i => i.complete && i.naturalWidth > 0)")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_can_be_told_from_the_paper(page: Path, browser: Any, dark: bool) -> None:
    """WCAG 2 AA: 4.5 for text, 3 for what is drawn."""
    browser.open(page, dark=dark)
    paper = luminance(browser, "paper")
    assert (paper < 0.1) is dark
    for name, least in (("ink", 7), ("soft", 4.5), ("good", 4.5), ("bad", 4.5), ("s1", 4.5),
                        ("s2", 3), ("s3", 3), ("s4", 3)):  # fmt: skip
        other = luminance(browser, name)
        ratio = (max(paper, other) + 0.05) / (min(paper, other) + 0.05)
        assert ratio >= least, f"{name}: {ratio:.2f}"


@pytest.mark.parametrize(("width", "across"), [(1400, [2, 3]), (390, [1, 2])])
def test_pictures_stand_side_by_side_where_there_is_room(
    page: Path, browser: Any, width: int, across: list[int]
) -> None:
    """On a telephone boxes have the whole width, and of three pictures the image has it."""
    browser.open(page, width=width)
    found = browser.value(
        "[...document.querySelectorAll('#dense .strips')].map(strips => "
        "[...strips.querySelector('.strip').querySelectorAll('img')].map("
        "i => { const r = i.getBoundingClientRect(); return [r.top, r.width] }))"
    )
    for pictures, columns in zip(found, across, strict=True):
        rows: dict[float, list[float]] = {}
        for top, wide in pictures:
            rows.setdefault(top, []).append(wide)
        assert max(map(len, rows.values())) == columns
        assert sum(max(rows.values(), key=len)) >= 0.8 * min(width - 40, 1080)
    first = found[1][0][1]
    assert first >= 0.3 * 1080 if width == 1400 else first >= 340
    swatch = "getComputedStyle(document.querySelector('#dense .swatch'))"
    assert browser.value(f"{swatch}.fill") == "rgb(0, 0, 255)"


def luminance(browser: Any, name: str) -> float:
    code = f"getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()"
    colour = browser.value(code)
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return float(0.2126 * red + 0.7152 * green + 0.0722 * blue)


def test_numbers_are_printed_too(page: Path, browser: Any) -> None:
    table = "document.querySelector('figure details table')"
    shown = f"{table}.checkVisibility({{contentVisibilityAuto: true}})"
    browser.open(page, width=780, dark=True, media="print")
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.value(shown)
    browser.open(page, width=780)
    assert not browser.value(shown)


def test_the_policy_stops_what_would_get_in(page: Path, browser: Any) -> None:
    """Even if something were not escaped: no script runs and nothing is fetched."""
    text = page.read_text()
    planted = "<script>document.title = 'ran'</script><img src='http://127.0.0.1:9/x.png'>"
    changed = page.with_name("changed.html")
    changed.write_text(text.replace("</main>", f"{planted}</main>"))
    browser.open(changed)
    assert browser.value("document.title") == "run: fastrot report"
    refused = " ".join(browser.complaints())
    assert "script" in refused and "x.png" in refused
