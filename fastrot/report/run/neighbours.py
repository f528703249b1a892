"""Nearest neighbours: the images that are most similar by the network's pooled features.

Shapes: M images of the bank, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from fastrot.data.labels import Labels
from fastrot.data.open import open_dataset
from fastrot.errors import FastrotError
from fastrot.features.cache import FeatureCache
from fastrot.report.html.blocks import Mark, Picture, Section, Strips
from fastrot.report.html.pictures import picture_uri
from fastrot.report.html.text import clean, percent
from fastrot.report.run.files import RunFiles
from fastrot.report.run.network import Images, Network, chosen, open_reader
from fastrot.report.run.views import PIXELATED_UP_TO
from fastrot.system.console import Say
from fastrot.training.data import val_crop
from fastrot.weights.load import weights_digest

_QUERIES = 8
_NEIGHBOURS = 5
_MOST_IMAGES = 600
_MOST_ROWS = 20_000
_LAYER = "pool"


@dataclass(frozen=True)
class _Bank:
    """Features of unit length, of shape (M, D), of the samples ``ids`` of a dataset."""

    images: Images
    ids: NDArray[np.int64]
    features: torch.Tensor
    whence: str


def neighbours_section(
    run: RunFiles, network: Network | None, images: Images | None, why: str, say: Say
) -> Section:
    """Show a few queries and their nearest neighbours among the other images of the same set."""
    section = Section("neighbours", "Nearest neighbours")
    bank = None if network is None else _from_caches(run, network, images)
    if network is not None and images is not None and bank is None:
        bank = _computed(network, images, say)
    if network is None or bank is None:
        section.missing.append(f"nearest neighbours: {why}")
        return section
    count = len(bank.ids)
    if count < 2:
        section.missing.append("nearest neighbours: there is only one image")
        return section
    queries = np.unique(np.linspace(0, count - 1, min(_QUERIES, count)).astype(np.int64))
    top, values = _nearest(bank.features, min(_NEIGHBOURS, count - 1))
    labels = bank.images.samples.labels[bank.ids]
    pixels = _pixels(bank, network, np.unique([queries, *top[queries].T]), say)
    names = bank.images.samples.class_names
    rows = []
    for query in queries.tolist():
        row = [_picture(pixels[query], "query", bank, query, labels, names, "")]
        for place, other in enumerate(top[query].tolist()):
            mark: Mark = ""
            if (alike := _alike(labels[query], labels[other])) is not None:
                mark = "good" if alike else "bad"
            what = f"neighbour {place + 1}, similarity {values[query, place]:.2f}"
            row.append(_picture(pixels[other], what, bank, other, labels, names, mark))
        rows.append(row)
    section.lead = (
        f"Queries (left) and their {top.shape[1]} nearest neighbours among {count - 1:,} other "
        f"{bank.images.name}, by cosine similarity of pooled features {bank.whence}."
    )
    section.lead += _shared(labels, top)
    size = bank.images.crop.size
    section.blocks.append(
        Strips(rows, 1 + top.shape[1], pixelated=size <= PIXELATED_UP_TO, queries=True)
    )
    return section


def _computed(network: Network, images: Images, say: Say) -> _Bank:
    ids = chosen(images, network, _MOST_IMAGES)
    say(f"nearest neighbours: {len(ids):,} {images.name}")
    with open_reader(images, ids, network, say) as loader, torch.no_grad():
        parts = [
            F.normalize(network.task.embed(network.model, batch), dim=1).cpu() for batch in loader
        ]
    return _Bank(images, ids, torch.cat(parts), f"from the checkpoint at step {network.step:,}")


def _from_caches(run: RunFiles, network: Network, images: Images | None) -> _Bank | None:
    """Return features that an evaluation has extracted with these weights from the same images.

    If the run's own images cannot be read, features of other images that can be read serve too.
    """
    digest = weights_digest(network.model.backbone)
    for path in sorted((run.path / "eval" / "cache").glob("*/manifest.json")):
        try:
            cache = FeatureCache.open(path.parent)
            usable = _LAYER in cache.layers and not cache.crops and cache.num_samples >= 2
            if not usable or cache.fingerprint.get("weights") != digest:
                continue
            of = images or _images_of(cache, network)
            if cache.fingerprint.get("data") == of.samples.digest:
                return _cached(cache, of)
        except (FastrotError, KeyError, TypeError):
            continue  # try the next cache; without one the features are computed
    return None


def _images_of(cache: FeatureCache, network: Network) -> Images:
    data = str(cache.manifest["made_by"]["data"])
    samples = open_dataset(data, follow_symlinks=True)  # the evaluation was allowed to
    return Images(samples, val_crop(network.config), f"images of {data}", False)


def _cached(cache: FeatureCache, images: Images) -> _Bank:
    count = min(cache.num_samples, _MOST_ROWS)
    ids = np.linspace(0, cache.num_samples - 1, count).astype(np.int64)
    rows = torch.from_numpy(cache.features(_LAYER)[ids].astype(np.float32))
    whence = f"from the cache {cache.path.name}"
    return _Bank(images, ids, F.normalize(rows, dim=1), whence)


def _nearest(features: torch.Tensor, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return positions and similarities, of shape (M, count), of the rows nearest to each row."""
    places, values = [], []
    for start in range(0, len(features), 1024):
        rows = features[start : start + 1024]
        similarity = rows @ features.T
        similarity[torch.arange(len(rows)), torch.arange(start, start + len(rows))] = -2
        top = similarity.topk(count, dim=1)
        places.append(top.indices)
        values.append(top.values)
    return torch.cat(places).numpy(), torch.cat(values).numpy()


def _pixels(
    bank: _Bank, network: Network, positions: NDArray[np.int64], say: Say
) -> dict[int, NDArray[np.uint8]]:
    """Return the crops of some rows of the bank, by position."""
    crops: dict[int, NDArray[np.uint8]] = {}
    with open_reader(bank.images, bank.ids[positions], network, say) as loader:
        for batch in loader:
            for place, image in zip(batch.index.tolist(), batch.images.cpu().numpy(), strict=True):
                crops[int(positions[place])] = image
    return crops


def _picture(
    pixels: NDArray[np.uint8],
    what: str,
    bank: _Bank,
    position: int,
    labels: Labels,
    names: tuple[str, ...] | None,
    mark: Mark,
) -> Picture:
    label = _label(labels[position], names)
    alt = f"{what}: image {int(bank.ids[position])}{f', {label}' if label else ''}"
    alt += {"": "", "good": ", same class as the query", "bad": ", not the query's class"}[mark]
    return Picture(picture_uri(pixels), alt, label, mark)


def _label(label: NDArray[np.int8] | np.int64, names: tuple[str, ...] | None) -> str:
    present = np.flatnonzero(label == 1) if np.ndim(label) else np.atleast_1d(label)
    words = []
    for number in present.tolist():
        if number >= 0:
            known = names is not None and number < len(names)
            words.append(clean(names[number], 24) if known and names else f"class {number}")
    return ", ".join(words)


def _alike(one: NDArray[np.int8] | np.int64, other: NDArray[np.int8] | np.int64) -> bool | None:
    """Return whether two images share a class; None if unknown."""
    if np.ndim(one):
        return bool(((one == 1) & (other == 1)).any())
    return None if int(one) < 0 or int(other) < 0 else bool(one == other)


def _shared(labels: Labels, top: NDArray[np.int64]) -> str:
    """Describe how often neighbours share a class, and how often they would by chance."""
    if labels.ndim != 1 or labels.min() < 0 or len(np.unique(labels)) < 2:
        return ""
    share = float((labels[top] == labels[:, None]).mean())
    counts = np.unique(labels, return_counts=True)[1].astype(np.float64)
    chance = float((counts * (counts - 1)).sum() / (counts.sum() * (counts.sum() - 1)))
    return (
        f" Over all images, {percent(100 * share)} of the neighbours have the class of the image "
        f"(chance: {percent(100 * chance)}); training used no labels."
    )
