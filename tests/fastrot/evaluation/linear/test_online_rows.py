"""Online training rows of real photos against Pillow's and a plain forward pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fastrot.config import ModelConfig
from fastrot.data.loader import LoaderSpec, build_loader
from fastrot.data.open import open_dataset
from fastrot.data.sampling.crops import Crop
from fastrot.data.sampling.sampler import Sampler
from fastrot.data.subset import DatasetSubset, spread
from fastrot.distributed.world import World
from fastrot.errors import BadDataError
from fastrot.evaluation.extract import scoring_crop, training_crop
from fastrot.evaluation.linear import colour_reference
from fastrot.evaluation.linear.colour import draw_colours
from fastrot.evaluation.linear.online_rows import OnlineRows
from fastrot.evaluation.protocol import EvalConfig
from fastrot.features.forward import FeatureNetwork
from fastrot.features.pooling import pool
from fastrot.features.spec import FeatureSpec
from fastrot.kernels.decode.crop_reference import crop_and_resize
from fastrot.models.backbones import build_model
from fastrot.weights.load import Backbone, load_backbone

CPU = torch.device("cpu")
LAYERS = ("stem", "layer2", "pool")
MODEL = ModelConfig(name="resnet18", width=8)
SEED = 5


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    save_file(build_model(MODEL, seed=0).backbone.state_dict(), path)
    return load_backbone(path, model=MODEL)


@pytest.fixture(scope="module")
def photos(test_data: Callable[[str], Path]) -> DatasetSubset:
    return spread(open_dataset(test_data("imagenette-128") / "train"), 30)


def settings(augment: str, **features: Any) -> EvalConfig:
    features = {"layers": LAYERS, "resolution": 48, "resize": 56, **features}
    return EvalConfig.model_validate(
        {
            "protocol": "linear",
            "kind": "linear",
            "features": features,
            "linear": {"augment": augment, "seed": SEED, "batch": 16},
        }
    )


def rows_of(
    backbone: Backbone,
    photos: DatasetSubset,
    config: EvalConfig,
    epoch: int,
    *,
    images_a_pass: int = 100,
) -> list[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    order = Sampler(len(photos), 16, seed=SEED, drop_last=False)
    crop = training_crop(config, backbone)
    reader = build_loader("reference", LoaderSpec(photos, order, crop, SEED, CPU, workers=0))
    test = scoring_crop(config, backbone)
    spec = FeatureSpec.settle(backbone, photos, CPU, layers=LAYERS, crop=test)
    with FeatureNetwork(backbone, spec, CPU) as network:
        rows = OnlineRows(
            network,
            reader,
            backbone,
            seed=SEED,
            coloured=config.linear.augment == "rrc_jitter_lighting",
            images_a_pass=images_a_pass,
            world=World(),
        )
        assert rows.steps == 2
        made = [(dict(batch.features), batch.labels) for batch in rows.epoch(epoch)]
    reader.close()
    return made


@pytest.mark.parametrize("augment", ["none", "rrc", "rrc_jitter_lighting", "center_random"])
def test_rows_are_those_of_the_plain_way(
    backbone: Backbone, photos: DatasetSubset, augment: str
) -> None:
    """The reference's crops, Pillow's flips and colours, the model in eval mode."""
    config, epoch = settings(augment), 3
    crop = training_crop(config, backbone)
    order = Sampler(len(photos), 16, seed=SEED, drop_last=False)
    assert augment == "none" or crop.flip == 0.5
    for ids, (features, labels) in zip(
        order.batches(epoch), rows_of(backbone, photos, config, epoch), strict=True
    ):
        sizes = photos.sizes(ids)
        boxes = crop.boxes(SEED, epoch, ids, sizes[:, 0], sizes[:, 1])
        pixels = [
            crop_and_resize(photos.decode(int(i)), b, 48) for i, b in zip(ids, boxes, strict=True)
        ]
        images = torch.from_numpy(np.stack(pixels))
        colours = draw_colours(SEED, epoch, ids)
        if augment != "rrc_jitter_lighting":
            colours = colours._replace(
                factors=np.ones_like(colours.factors), light=np.zeros_like(colours.light)
            )
        flips = torch.from_numpy(crop.flips(SEED, epoch, ids))
        views = colour_reference.coloured_views(images, flips, colours, backbone.mean, backbone.std)
        with torch.inference_mode():
            stages = backbone.model.stages(views)
        assert torch.equal(labels, torch.from_numpy(photos.labels[ids]))
        for layer in LAYERS:
            # The same images; convolutions of another memory layout round in another order.
            torch.testing.assert_close(
                features[layer], pool(layer, stages[layer]), rtol=1e-4, atol=1e-4
            )


def test_an_epoch_can_be_made_again_and_the_next_is_another(
    backbone: Backbone, photos: DatasetSubset
) -> None:
    config = settings("rrc_jitter_lighting")
    first, again, other = (rows_of(backbone, photos, config, epoch) for epoch in (1, 1, 2))
    for (a, _), (b, _), (c, _) in zip(first, again, other, strict=True):
        for layer in LAYERS:
            assert torch.equal(a[layer], b[layer])
            assert not torch.equal(a[layer], c[layer])


def test_the_size_of_a_pass_changes_nothing_but_rounding(
    backbone: Backbone, photos: DatasetSubset
) -> None:
    config = settings("rrc_jitter_lighting")
    whole = rows_of(backbone, photos, config, 0)
    parts = rows_of(backbone, photos, config, 0, images_a_pass=3)
    for (a, _), (b, _) in zip(whole, parts, strict=True):
        for layer in LAYERS:
            torch.testing.assert_close(a[layer], b[layer], rtol=1e-4, atol=1e-4)


def test_the_crops_of_the_protocols(backbone: Backbone) -> None:
    rrc = Crop("random_resized", 48, flip=0.5)
    assert training_crop(settings("rrc"), backbone) == rrc
    assert training_crop(settings("rrc_jitter_lighting"), backbone) == rrc
    assert training_crop(settings("none"), backbone) == Crop("center", 48, resize=56)
    centre = Crop("center_random", 48, resize=56, flip=0.5)
    assert training_crop(settings("center_random"), backbone) == centre
    squash = settings("center_random", transform="squash", resize=None)
    assert training_crop(squash, backbone) == Crop("center_random", 48, resize=55, flip=0.5)
    assert scoring_crop(squash, backbone) == Crop("whole", 48)


def test_a_bad_image_is_named(backbone: Backbone, tmp_path: Path, photos: DatasetSubset) -> None:
    for number in range(20):
        folder = tmp_path / f"class{number % 2}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(photos.decode(number)).save(folder / f"{number}.jpg")
    damaged = tmp_path / "class1" / "7.jpg"
    damaged.write_bytes(damaged.read_bytes()[:600])
    with pytest.raises(BadDataError, match=r"bad sample \d+ \(.*7\.jpg\): .* run the same command"):
        rows_of(backbone, open_dataset(tmp_path), settings("rrc"), 0)  # type: ignore[arg-type]
