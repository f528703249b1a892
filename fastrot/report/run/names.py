"""Distinct names of measurements: what was measured, and how they differ from each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from fastrot.evaluation.identity import data_name
from fastrot.evaluation.measurements import Measurement, is_at_random
from fastrot.report.html.text import clean

_LONGEST = 60
_CHANGE = re.compile(r"(\S+): .* -> (.*)", re.DOTALL)
_STEP = re.compile(r".*(, step \d+)", re.DOTALL)


def name_measurements(measured: Sequence[Measurement]) -> list[str]:
    """Return a distinct title for each: protocol, mode and test data, then the differences.

    What all measurements of one protocol and mode have in common is left out. If the names and
    settings are all the same, digests of the data, the time and finally the folder are added.
    """
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for one in measured:
        groups.setdefault((one.result.protocol, one.result.label), []).append(one)
    titles: dict[Path, str] = {}
    for (protocol, label), group in groups.items():
        facets = [_facets(one) for one in group]
        common = set.intersection(*(set(words) for words in facets))
        heads = [
            f"{clean(protocol, _LONGEST)} ({clean(label, _LONGEST)}) on {_data(one, 'test')}"
            for one in group
        ]
        told = [
            ", ".join([head, *(word for word in words if word not in common)])
            for head, words in zip(heads, facets, strict=True)
        ]
        for more in (_digests, lambda one: one.time, lambda one: f"in {one.name}"):
            if len(set(told)) == len(told):
                break
            told = [
                f"{title}, {clean(more(one), _LONGEST)}" if told.count(title) > 1 else title
                for title, one in zip(told, group, strict=True)
            ]
        titles |= {one.file: title for one, title in zip(group, told, strict=True)}
    return [titles[one.file] for one in measured]


def _facets(one: Measurement) -> list[str]:
    """Return what may distinguish a measurement from others of its protocol and mode."""
    words = [f"trained on {_data(one, 'train')}"]
    subset = "all labels"
    for change in one.result.changed:
        match = _CHANGE.fullmatch(change)
        key, value = (match[1], match[2]) if match else (change, "")
        if key == "linear.subset" and _is_number(value):
            subset = f"{100 * float(value):.4g} % of the labels"
        else:
            words.append(clean(f"{key}={value}" if value else key, _LONGEST))
    words.append(subset)
    source = str(one.result.weights.get("source"))
    step = _STEP.fullmatch(source)
    words.append(clean(step[1].removeprefix(", ") if step else f"of {source}", _LONGEST))
    if is_at_random(one):
        words.append("random initialisation")
    if one.earlier:
        words.append("earlier")
    return words


def _data(one: Measurement, part: str) -> str:
    path = one.result.data.get(part)
    return clean(data_name(Path(path)), _LONGEST) if isinstance(path, str) and path else "?"


def _digests(one: Measurement) -> str:
    """Return the digests of both datasets; features have further fields beside theirs."""
    parts = [one.result.caches.get(part) for part in ("train", "test")]
    digests = [part.get("data", "") if isinstance(part, dict) else part for part in parts]
    return f"data {' and '.join(str(digest)[:8] for digest in digests)}"


def _is_number(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False
