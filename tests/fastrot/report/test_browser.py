"""The page in a real browser: quiet, alone, and as wide as the window."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
    return make_report(run).path


@pytest.mark.parametrize("width", [320, 400, 1200])
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
