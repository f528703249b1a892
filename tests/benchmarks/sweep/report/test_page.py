"""The page of a sweep in a real browser, with hostile names in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastrot.benchmarks.sweep.record import CellRecord
from fastrot.benchmarks.sweep.report.make import make_sweep_report

SCRIPT = "<script>document.title = 'ran'</script>"
WORKERS, BATCHES = (1, 2, 4), (16, 32)


@pytest.fixture(scope="module")
def page(cell: Callable[..., CellRecord], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two axes, ranks, loaders, two environments, a baseline, and everything that can go wrong."""
    folder, old = (tmp_path_factory.mktemp(name) for name in ("sweep", "old"))
    expected = {}
    for loader in ("native", f"ffcv{SCRIPT}"):
        for workers in WORKERS:
            for batch in BATCHES:
                axes = {"data.loader": loader, "data.workers": workers, "batch_per_rank": batch}
                rate = 100.0 * workers
                key = f"k{len(expected)}"
                expected[key] = axes
                busy = 0.5 if workers == 2 else 0.0
                failed = f"{SCRIPT} " + "long" * 60 if (workers, batch) == (4, 32) else None
                record = cell(axes, (rate, rate + 1), key=key, failed=failed, busy=busy)
                record.save(folder)
                cell(axes, (2 * rate,), key=key, host="EPYC").save(old)
    for ranks in (1, 2, 4):
        axes = {"data.loader": "native", "data.workers": 1, "batch_per_rank": 8, "ranks": ranks}
        expected[f"r{ranks}"] = axes
        cell(axes, (90.0 * ranks, 91.0 * ranks), key=f"r{ranks}").save(folder)
    cell({"data.loader": "native"}, key="b", host=SCRIPT, code=SCRIPT).save(folder)
    (folder / "cells" / "torn.json").write_text("{")
    expected["never"] = {"data.loader": SCRIPT, "data.workers": 9, "batch_per_rank": 16}
    tree = {"cells": [{"key": key, "axes": axes} for key, axes in expected.items()]}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(tree))
    return make_sweep_report(folder, baseline=old).paths[0]


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_is_quiet_and_alone_and_fits(page: Path, browser: Any, width: int, dark: bool) -> None:
    browser.open(page, width=width, dark=dark)
    assert browser.complaints() == []
    assert [url for url in browser.requests() if not url.startswith("data:")] == [page.as_uri()]
    assert browser.value("document.title") == "tried: fastrot report"
    browser.value("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert browser.value("document.documentElement.scrollWidth") <= width


def test_every_cell_is_shown_at_once(page: Path, browser: Any) -> None:
    browser.open(page, width=1280)
    rows = "[...document.querySelectorAll('#cells tbody tr')]"
    assert browser.value(f"{rows}.every(row => row.checkVisibility())")
    texts = browser.value(f"{rows}.map(row => row.innerText)")
    assert len(texts) == 2 * len(WORKERS) * len(BATCHES) + 3 + 1 + 1 + 1
    assert sum("✗ failed: <script>" in text for text in texts) == 2
    assert sum("✗ damaged" in text for text in texts) == 1
    assert sum("– not measured" in text for text in texts) == 1
    assert sum("contaminated: others used 50 %" in text for text in texts) == 4
    ends = browser.value("[...document.querySelectorAll('#cells td.rest div')]"
                         ".map(div => div.getBoundingClientRect().right)")  # fmt: skip
    assert len(ends) == 4 and max(ends) <= 1280  # a reason is seen without scrolling


def test_the_maps_and_curves_are_there(page: Path, browser: Any) -> None:
    browser.open(page, width=1280)
    titles = browser.value("[...document.querySelectorAll('#map h3')].map(h => h.innerText)")
    assert "workers x batch per rank" in titles[0]
    texts = browser.value("[...document.querySelectorAll('#map figure:first-child .small')]"
                          ".map(t => t.textContent)")  # fmt: skip
    assert sorted(texts) == ["1,602", "402", "402", "802*", "802*", "failed"]
    scaling = browser.value("document.querySelector('#scaling').innerText")
    assert "weak, 8 images per rank" in scaling and "ideal" in scaling


def test_a_baseline_from_another_host_is_told(page: Path, browser: Any) -> None:
    browser.open(page, width=1280)
    text = browser.value("document.querySelector('#baseline').innerText")
    assert "from another host" in text and "✗ slower" in text and "✗ failed now" in text


def test_hostile_text_is_text(page: Path) -> None:
    text = page.read_text()
    assert "<script" not in text and "&lt;script&gt;" in text
