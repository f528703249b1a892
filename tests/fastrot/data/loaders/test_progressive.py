"""Crops that grow: each epoch has its side, and the same samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fastrot.config import load_config
from fastrot.data.digits import write_digits
from fastrot.data.loader import LoaderSpec, build_loader
from fastrot.data.loaders.progressive import ProgressiveLoader
from fastrot.data.open import open_dataset
from fastrot.data.sampling.crops import Crop
from fastrot.data.sampling.sampler import Sampler
from fastrot.errors import UsageError

GROWTH = [(0, 16), (1, 24), (3, 32)]


def loader_of(path: Path, side: int) -> object:
    samples = open_dataset(str(path))
    spec = LoaderSpec(
        samples, Sampler(len(samples), 500), Crop("whole", side), 0, torch.device("cpu"), 0
    )
    return build_loader("reference", spec)


def test_each_epoch_has_its_side_and_the_samples_of_a_plain_loader(tmp_path: Path) -> None:
    path = write_digits(tmp_path)[0]
    loader = ProgressiveLoader(GROWTH, lambda side: loader_of(path, side))  # type: ignore[arg-type, return-value]
    plain = loader_of(path, 32)
    for epoch, side in enumerate((16, 24, 24, 32, 32)):
        for each in (loader, plain):
            each.set_epoch(epoch, 1)  # type: ignore[attr-defined]
        ours, theirs = list(loader), list(plain)  # type: ignore[call-overload]
        assert [batch.images.shape[1:3] for batch in ours] == [(side, side)] * len(ours)
        assert (
            all(torch.equal(a.index, b.index) for a, b in zip(ours, theirs, strict=True))
            and len(ours) == len(loader) - 1
        )
        if side == 32:
            assert torch.equal(ours[0].images, theirs[0].images)
    loader.set_epoch(0)  # back, as after a resume
    assert next(iter(loader)).images.shape[1] == 16
    loader.close()


@pytest.mark.parametrize(
    ("growth", "words"),
    [
        ("[[1, 64], [2, 128]]", "must increase from 0"),
        ("[[0, 64], [0, 128]]", "must increase from 0"),
        ("[[0, 64], [2, 96]]", "the last one must be data.resolution=128"),
        ("[[0, 4], [2, 128]]", "at least 8"),
    ],
)
def test_what_does_not_grow_is_refused(growth: str, words: str) -> None:
    with pytest.raises(UsageError, match=words.replace("=", ".")):
        load_config(None, ["data.resolution=128", f"data.progressive={growth}"])


def test_the_shipped_recipe_is_the_published_one_but_for_the_sides() -> None:
    ours = load_config("fastrot_resnet50_progressive").model_dump()
    published = load_config("resnet50_8xb16-steplr-70e").model_dump()
    assert ours["data"].pop("progressive")[-1][1] == published["data"]["resolution"]
    published["data"].pop("progressive")
    assert json.dumps(ours) == json.dumps(published)
