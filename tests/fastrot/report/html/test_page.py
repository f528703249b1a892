"""What run folders and datasets hold is shown as text, whatever it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

from fastrot.evaluation.result import Score
from fastrot.report.html.text import clean
from fastrot.report.run.make import make_report

SCRIPT = "<script>alert(3)</script>"


def elements(text: str) -> tuple[set[str], set[str], str]:
    """Tags, names of attributes, and text."""
    tags: set[str] = set()
    names: set[str] = set()
    words: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.add(tag)
            names.update(key for key, _ in attrs)

        def handle_data(self, data: str) -> None:
            words.append(data)

    Reader().feed(text)
    return tags, names, "".join(words)


def test_hostile_names_of_classes_are_text(run: Path) -> None:
    text = make_report(run).path.read_text()
    tags, names, words = elements(text)
    assert "script" not in tags and "onerror" not in names
    assert "<img src=x onerror=" in words and "<script>alert(2)" in words
    assert "{{ 7 * 7 }}" in words and "49" not in text.split("Nearest neighbours")[-1][:200]
    assert "\u202e" not in text and "\u732b" in words


def test_hostile_files_of_a_run_are_text(
    run: Path, write_result: Callable[..., Path], tmp_path: Path
) -> None:
    for name in ("status.json", "environment.json"):
        tree = json.loads((run / name).read_text())
        tree |= {"state": SCRIPT, "host": SCRIPT, "commit": SCRIPT, "time": SCRIPT, SCRIPT: SCRIPT}
        tree |= {"command": ["fastrot", SCRIPT, "\ud800"], "folder": f"{SCRIPT}\x1b[2J"}
        (run / name).write_text(json.dumps(tree))
    scores = [Score(f"layer1 {SCRIPT}", f"top1{SCRIPT}", 10.0, "layer1")]
    write_result(run, SCRIPT.replace("/", ""), SCRIPT, scores, label='"><svg onload=alert(4)>')
    scores = [Score(f"{k}-shot {SCRIPT}", "mAP", 10.0) for k in (1, 2)]
    write_result(run, "low", "voc07-lowshot", scores)
    tags, names, words = elements(make_report(run, tmp_path / "page.html").path.read_text())
    assert "script" not in tags and "onload" not in names
    assert words.count(SCRIPT) > 10 and "\x1b" not in words


def test_cleaned_text_keeps_what_people_read() -> None:
    assert clean("Käse 猫 🐈 a\nb") == "Käse 猫 🐈 a\nb"
    assert clean("a\0b\x1b\u202ec\ud800d") == "a�b��c�d"
    assert len(clean("x" * 10_000, 50)) == 50
