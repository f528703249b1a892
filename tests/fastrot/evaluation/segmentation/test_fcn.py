"""The published segmenter, what it sees in training, and how it labels an image."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastrot.config import ModelConfig
from fastrot.evaluation.dense.loader import DenseBatch
from fastrot.evaluation.segmentation.augment import IGNORED, Draws, augment, distorted, fit
from fastrot.evaluation.segmentation.fcn import Fcn
from fastrot.evaluation.segmentation.predict import SegmentationLosses, normalised, predict
from fastrot.evaluation.segmentation.settings import SegmentationConfig
from fastrot.models.backbones import ResNet, build_model

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILL = torch.tensor([124, 116, 104], dtype=torch.uint8)

# From the published configuration: FCN-d8 on a ResNet-50, 21 classes.
TABLE = {
    "backbone.layer4.2.conv3.weight": (2048, 512, 1, 1),
    "decode_head.convs.0.0.weight": (512, 2048, 3, 3),
    "decode_head.convs.1.0.weight": (512, 512, 3, 3),
    "decode_head.conv_cat.0.weight": (512, 2560, 3, 3),
    "decode_head.conv_cat.1.running_mean": (512,),
    "decode_head.conv_seg.weight": (21, 512, 1, 1),
    "auxiliary_head.convs.0.0.weight": (256, 1024, 3, 3),
    "auxiliary_head.conv_seg.weight": (21, 256, 1, 1),
}


def fcn(name: str = "resnet18", width: int = 8, classes: int = 5, align: bool = False) -> Fcn:
    torch.manual_seed(0)
    network = build_model(ModelConfig(name=name, width=width), seed=0).backbone
    assert isinstance(network, ResNet)
    return Fcn(network, classes, align_corners=align)


def test_tensors_have_the_published_shapes() -> None:
    with torch.device("meta"):
        model = fcn("resnet50", 64, 21)
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert {name: found.get(name) for name in TABLE} == TABLE
    assert not any(name.startswith("auxiliary_head.conv_cat") for name in found)


@pytest.mark.parametrize("align", [False, True])
def test_logits_have_the_size_of_the_image_and_maps_an_eighth(align: bool) -> None:
    model, image = fcn(align=align), torch.rand(2, 3, 65, 97)
    logits, auxiliary = model.train()(image)
    assert logits.shape == (2, 5, 65, 97) and auxiliary is not None
    assert auxiliary.shape == logits.shape
    assert model.backbone(image)["layer4"].shape[-2:] == (9, 13)
    assert model.eval()(image)[1] is None


def test_losses_are_means_over_all_pixels() -> None:
    """Also over those that do not count, as in mmseg; they add nothing to the sum."""
    model = fcn().train()
    images = [torch.randint(0, 256, (3, 48, 48), dtype=torch.uint8) for _ in range(2)]
    labels = [torch.randint(0, 5, (48, 48), dtype=torch.uint8) for _ in range(2)]
    labels[1][:24] = IGNORED
    batch = DenseBatch(images, labels, torch.arange(2), 0)
    torch.manual_seed(1)
    found = SegmentationLosses(MEAN, STD, auxiliary_weight=0.4)(model, batch)
    torch.manual_seed(1)
    logits = model(normalised(torch.stack(images), MEAN, STD, torch.float32))
    truth = torch.stack(labels).long()
    for name, weight, each in zip(found, (1, 0.4), logits, strict=True):
        mean = F.cross_entropy(each, truth, ignore_index=IGNORED)
        assert float(found[name]) == pytest.approx(float(weight * mean * 0.75), rel=1e-5), name
    assert list(found) == ["loss_decode", "loss_auxiliary"]
    empty = [torch.full_like(each, IGNORED) for each in labels]
    found = SegmentationLosses(MEAN, STD, auxiliary_weight=0.4)(
        model, DenseBatch(images, empty, torch.arange(2), 0)
    )
    assert [float(value) for value in found.values()] == [0, 0]


def test_windows_that_slide_give_what_the_whole_gives_where_there_is_one() -> None:
    model = fcn().eval()
    image = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8)
    whole = SegmentationConfig(scale=(96, 64), crop=96)
    slide = SegmentationConfig(scale=(96, 64), crop=96, test="slide", stride=50)
    expected = predict(model, image, whole, MEAN, STD)
    assert expected.shape == (60, 80) and expected.dtype == torch.uint8
    assert torch.equal(predict(model, image, slide, MEAN, STD), expected)
    several = SegmentationConfig(scale=(96, 64), crop=40, test="slide", stride=24)
    seen = normalised(
        F.interpolate(image[None].float(), fit(image, (96, 64)), mode="bilinear").round().byte(),
        MEAN, STD, torch.float32,
    )  # fmt: skip
    height, width = seen.shape[-2:]
    total, count = torch.zeros(1, 5, height, width), torch.zeros(height, width)
    with torch.no_grad():
        for top in {*range(0, height - 40, 24), height - 40}:
            for left in {*range(0, width - 40, 24), width - 40}:
                part = model(seen[:, :, top : top + 40, left : left + 40])[0]
                total[:, :, top : top + 40, left : left + 40] += part
                count[top : top + 40, left : left + 40] += 1
    by_hand = model.resize(total / count, (60, 80)).argmax(1)[0].byte()
    assert (predict(model, image, several, MEAN, STD) == by_hand).float().mean() > 0.99


def test_crops_and_labels_stay_together() -> None:
    """The image's red channel is its label: wherever both go, they go together."""
    labels = torch.arange(6, dtype=torch.uint8).repeat_interleave(20).expand(90, 120).contiguous()
    image = torch.stack([labels * 40] * 3)
    config = SegmentationConfig(scale=(160, 90), crop=64, distort=False)
    seen = set()
    for sample in range(30):
        crop, classes = augment(image, labels, config, Draws(1, 0, sample), FILL)
        assert crop.shape == (3, 64, 64) and classes.shape == (64, 64)
        counted = classes != IGNORED
        near = (crop[0].float() / 40 - classes.float()).abs()[counted] <= 0.6
        assert near.float().mean() > 0.9
        assert (crop[:, ~counted] == FILL[:, None]).all()
        seen.add((int(counted.sum()), bool(classes[0, 0] > classes[0, 40])))
    assert len({size for size, _ in seen}) > 3 and {flipped for _, flipped in seen} == {False, True}
    again = augment(image, labels, config, Draws(1, 0, 7), FILL)
    other = augment(image, labels, config, Draws(1, 1, 7), FILL)
    same = augment(image, labels, config, Draws(1, 0, 7), FILL)
    assert torch.equal(again[0], same[0]) and not torch.equal(again[0], other[0])


def test_a_crop_of_one_class_is_drawn_again() -> None:
    labels = torch.zeros(200, 200, dtype=torch.uint8)
    labels[:, 150:] = 1
    image = torch.zeros(3, 200, 200, dtype=torch.uint8)
    shares = []
    for most in (1.0, 0.75):
        config = SegmentationConfig(
            scale=(200, 200), ratio=(1.0, 1.0), crop=64, distort=False, most_of_a_class=most
        )
        crops = [augment(image, labels, config, Draws(0, 0, i), FILL)[1] for i in range(60)]
        shares.append(sum(float((crop == 0).float().mean()) > 0.75 for crop in crops))
    assert shares[1] < 0.35 * shares[0]


def test_an_image_keeps_its_shape_within_both_sides() -> None:
    wide, tall = torch.zeros(3, 300, 500), torch.zeros(3, 1000, 100)
    assert fit(wide, (2048, 512)) == (512, 853)
    assert fit(tall, (2048, 512)) == (2048, 205)


def test_distortion_is_that_of_hsv_and_within_bounds() -> None:
    image = torch.randint(0, 256, (3, 20, 20), dtype=torch.uint8)
    changed = [distorted(image, Draws(0, 0, i)) for i in range(40)]
    assert all(each.shape == image.shape and each.dtype == torch.uint8 for each in changed)
    untouched = sum(torch.equal(each, image) for each in changed)
    assert 0 < untouched < 10  # of 40, a sixteenth on average
    means = torch.stack([each.float().mean() for each in changed])
    assert means.min() < image.float().mean() - 10 < image.float().mean() + 10 < means.max()
    grey = torch.full((3, 4, 4), 100, dtype=torch.uint8)  # has no colour to change
    for each in (distorted(grey, Draws(0, 0, i)) for i in range(40)):
        assert (each.float() - each[0].float()).abs().max() <= 1
