"""Features of real photos: the right rows, from one pass, whatever was killed or is wrong."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as V

from fastrot.data.loader import Batch, LoaderSpec, build_loader
from fastrot.data.sampling.crops import Crop
from fastrot.data.sampling.sampler import Sampler
from fastrot.data.sources.dataset import FolderDataset
from fastrot.data.subset import DatasetSubset
from fastrot.errors import BadDataError, FastrotError, MismatchError, NonFiniteError, UsageError
from fastrot.evaluation.extract import protocol_spec, scoring_crop
from fastrot.evaluation.protocol import EvalConfig, load_protocol
from fastrot.features.cache import FeatureCache
from fastrot.features.extract import ExtractOptions, extract_features
from fastrot.features.forward import FeatureNetwork
from fastrot.features.pooling import pool
from fastrot.features.spec import FeatureSpec
from fastrot.weights.load import Backbone, load_backbone
from tests.program import run_python

LAYERS = ("stem", "layer1", "layer2", "layer3", "layer4", "pool")
CENTER = Crop("center", 64, resize=73)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def backbone(small_run: Path) -> Backbone:
    return load_backbone(small_run)


@pytest.fixture(scope="module")
def samples(photos: Path) -> FolderDataset:
    return FolderDataset(photos)


def extract(backbone: Backbone, samples: Any, out: Path, **changed: Any) -> FeatureCache:
    how = ExtractOptions(workers=1, progress=False, batch=changed.pop("batch", None))
    usual: dict[str, Any] = {"layers": LAYERS, "crop": CENTER}
    spec = FeatureSpec.settle(backbone, samples, CPU, **(usual | changed))
    return extract_features(backbone, samples, out, spec, how)


def protocol(**features: Any) -> EvalConfig:
    return EvalConfig.model_validate({"protocol": "knn", "kind": "knn", "features": features})


def bytes_of(cache: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in cache.glob("*.npy")
    }


@pytest.fixture(scope="module")
def whole(backbone, samples, tmp_path_factory) -> FeatureCache:
    """The features of all photos, seven images per batch."""
    return extract(backbone, samples, tmp_path_factory.mktemp("whole") / "cache", batch=7)


def loop(backbone: Backbone, samples: Any, crop: Crop, epoch: int = 0) -> dict[str, torch.Tensor]:
    """What features are: the reference loader, the forward pass, the pooling; in float32."""
    order = Sampler(len(samples), 5, mode="sequential", drop_last=False)
    loader = build_loader("reference", LoaderSpec(samples, order, crop, 0, CPU, 0))
    loader.set_epoch(epoch)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.mean, backbone.std))
    rows: dict[str, list[torch.Tensor]] = {}
    for batch in loader:
        images = (batch.images.permute(0, 3, 1, 2) / 255 - mean) / std
        images = torch.where(batch.flips.view(-1, 1, 1, 1), images.flip(-1), images)
        with torch.inference_mode():
            stages = backbone.model.stages(images)
        for name, maps in stages.items():
            rows.setdefault(name, []).append(pool(name, maps))
    return {name: torch.cat(parts) for name, parts in rows.items()}


def assert_near(features: np.ndarray, expected: torch.Tensor, *, share: float = 1e-4) -> None:
    """Within the rounding to float16, and ``share`` of a row's norm for sums in another order."""
    values = expected.numpy()
    slack = share * np.linalg.norm(values, axis=1, keepdims=True) / np.sqrt(values.shape[1])
    assert features.shape == values.shape
    assert (np.abs(features.astype(np.float32) - values) <= np.abs(values) / 2048 + slack).all()


# What the rows are


@pytest.mark.parametrize(("loader", "share"), [("reference", 1e-4), ("native", 0.1)])
def test_rows_are_those_of_a_plain_loop_in_the_order_of_the_data(
    loader, share, backbone, samples, tmp_path
):
    """The native loader's pixels are at most one level from the reference's."""
    cache = extract(backbone, samples, tmp_path / "cache", batch=7, loader=loader)
    expected = loop(backbone, samples, CENTER)
    for name in LAYERS:
        assert cache.features(name).dtype == np.float16
        assert_near(cache.features(name), expected[name], share=share)
    assert np.array_equal(cache.labels, samples.labels)
    assert cache.class_names == samples.class_names
    assert len({row.tobytes() for row in cache.features("pool")}) == len(samples)


@pytest.mark.parametrize("batch", [1, 20, 64])
def test_the_batch_may_be_larger_than_the_data(batch, backbone, samples, whole, tmp_path):
    cache = extract(backbone, samples, tmp_path / "cache", batch=batch, layers=("layer2",))
    expected = torch.from_numpy(whole.features("layer2").astype(np.float32))
    assert_near(cache.features("layer2"), expected, share=1e-3)


def test_one_decode_and_one_forward_pass_for_all_layers(backbone, samples, tmp_path, monkeypatch):
    decoded: list[int] = []
    seen: list[int] = []
    read = FolderDataset.read
    monkeypatch.setattr(
        FolderDataset, "read", lambda self, i: (decoded.append(i), read(self, i))[1]
    )
    hook = backbone.model.conv1.register_forward_hook(lambda _m, x, _y: seen.append(len(x[0])))
    extract(backbone, samples, tmp_path / "cache", batch=8)
    hook.remove()
    assert sorted(decoded) == list(range(len(samples)))
    assert seen == [1, 8, 8, 4]  # one blank image for the shapes of the layers


def test_the_backbone_is_left_as_it_is_to_the_bit(backbone, samples, tmp_path):
    model = copy.deepcopy(backbone.model).requires_grad_(True).train()
    model.layer2.eval()
    trained = backbone.__class__(**(vars(backbone) | {"model": model}))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [(module.training) for module in model.modules()]
    random = torch.get_rng_state()
    cache = extract(trained, samples, tmp_path / "cache")
    assert [module.training for module in model.modules()] == flags
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    after = model.state_dict()
    assert list(before) == list(after)
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) and tensor.stride() == after[name].stride(), name
    assert torch.equal(random, torch.get_rng_state())
    # Extracted in eval mode all the same.
    assert bytes_of(cache.path) == bytes_of(extract(backbone, samples, tmp_path / "eval").path)


def test_random_crops_are_drawn_by_epoch_and_the_same_again(backbone, samples, tmp_path):
    arguments = {"crops": 3, "layers": ("layer3", "pool"), "batch": 6}
    cache = extract(backbone, samples, tmp_path / "a", **arguments)
    assert cache.crops == 3 and cache.features("pool").shape == (20, 3, 128)
    crop = Crop("random_resized", 64, flip=0.5)
    for k in range(3):
        for name, expected in loop(backbone, samples, crop, epoch=k).items():
            if name in cache.layers:
                assert_near(cache.features(name)[:, k], expected, share=0.1)
    again = extract(backbone, samples, tmp_path / "b", **arguments)
    assert bytes_of(again.path) == bytes_of(cache.path)
    other = extract(backbone, samples, tmp_path / "c", **arguments, seed=1)
    assert not np.array_equal(other.features("pool"), cache.features("pool"))
    assert other.fingerprint["seed"] == 1 and cache.fingerprint["seed"] == 0


@pytest.mark.parametrize(("precision", "apart"), [("fp32", 1e-5), ("bf16", 0.02)])
def test_the_fused_network_gives_the_same_features(precision, apart, backbone, samples):
    """What a GPU runs, by its reference."""
    what = {"layers": LAYERS, "crop": CENTER, "precision": precision}
    spec = FeatureSpec.settle(backbone, samples, CPU, **what)
    images = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)
    nothing = torch.zeros(4, dtype=torch.int64)
    batch = Batch(images, nothing, torch.arange(4), nothing.bool(), nothing[:, None].byte())
    found = {}
    for engine in ("torch", "fused"):
        with FeatureNetwork(backbone, spec, CPU, engine=engine) as network:
            views = network.views(batch)
            assert views.shape[1] == (4 if engine == "fused" else 3)
            found[engine] = network.features(views)
    assert not torch.equal(found["fused"]["pool"], found["torch"]["pool"])  # it is another way
    for name, expected in found["torch"].items():
        assert (found["fused"][name] - expected).norm() < apart * expected.norm()


# The test transforms beside Pillow's


@pytest.mark.parametrize(("name", "transform", "levels", "largest", "share"), [
    ("imagenet-300", "center", 2.5, 100, 0.03), ("imagenet-300", "squash", 2.0, 100, 0.06),
    ("imagenette-128", "center", 0.4, 60, 0.02), ("imagenette-128", "squash", 1.6, 60, 0.08),
])  # fmt: skip
def test_transforms_are_near_pillows_two_steps(
    name, transform, levels, largest, share, backbone, test_data: Callable[[str], Path]
):
    """As features/spec.py states it: mean and largest difference in levels, and of features."""
    data = FolderDataset(test_data(name) if name == "imagenet-300" else test_data(name) / "val")
    data = DatasetSubset(data, np.linspace(0, len(data) - 1, 16).astype(np.int64))
    order = Sampler(16, 16, mode="sequential", drop_last=False)
    crop = scoring_crop(protocol(transform=transform, resolution=224), backbone)
    loader = build_loader("native", LoaderSpec(data, order, crop, 0, CPU, 1, exact=True))
    (batch,) = loader
    loader.close()
    theirs = []
    for sample in range(16):
        image = V.resize(Image.fromarray(data.decode(sample)), 256)
        image = V.resize(image, [224, 224]) if transform == "squash" else V.center_crop(image, 224)
        theirs.append(torch.from_numpy(np.array(image)))
    difference = (batch.images.int() - torch.stack(theirs)).abs()
    assert 0 < difference.float().mean() < levels and difference.max() <= largest
    with torch.inference_mode():
        ours, published = (
            backbone.model.stages((images.permute(0, 3, 1, 2) / 255 - 0.45) / 0.22)
            for images in (batch.images, torch.stack(theirs))
        )
    for layer in LAYERS:
        a, b = pool(layer, ours[layer]), pool(layer, published[layer])
        assert ((a - b).norm(dim=1) / b.norm(dim=1)).mean() < share


# Kills and ranks


@pytest.mark.slow
def test_killed_at_any_moment_the_rerun_gives_the_same_bytes(
    small_run, photos, backbone, samples, tmp_path
):
    """Each start is killed a little later than the one before; the last one ends the work."""
    done = run_python(
        [sys.executable, "-m", "tests.fastrot.features.kill_extract", str(small_run), str(photos),
         str(tmp_path), "0", "2"],
        cwd=Path(__file__).parents[3], timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(line) for line in done.stdout.splitlines()]
    for crops in (0, 2):
        starts = [record for record in records if record["crops"] == crops]
        assert [start["killed"] for start in starts] == [True] * (len(starts) - 1) + [False]
        assert not starts[-3]["complete"]
        left = [start["left"] for start in starts]
        assert left == sorted(left, reverse=True)  # what is recorded is never lost ...
        assert len(set(left)) >= 4, left  # ... and a later start has less to do
        whole = extract(backbone, samples, tmp_path / f"whole-{crops}", batch=4, crops=crops,
                        layers=("layer1", "pool"))  # fmt: skip
        assert bytes_of(tmp_path / str(crops)) == bytes_of(whole.path)
        found = FeatureCache.open(tmp_path / str(crops), expect=whole.fingerprint)
        names = [{path.name for path in cache.path.iterdir()} for cache in (found, whole)]
        assert names[0] - {"run.lock"} == names[1]  # a dead process's lock locks nothing
        assert np.array_equal(found.labels, whole.labels)


def test_what_is_done_is_not_computed_again(backbone, samples, tmp_path):
    class Broken(FolderDataset):
        def read(self, sample: int):
            if sample == 13:
                raise self._bad(sample, OSError(5, "Input/output error"))
            return super().read(sample)

        decode = None  # type: ignore[assignment]

    broken = Broken(samples.path)
    broken.decode = broken.read  # the judge of what the decoder refused sees the same
    with pytest.raises(
        BadDataError, match=r"bad sample 13 .*Input/output error.*is kept in"
    ) as bad:
        extract(backbone, broken, tmp_path / "cache", batch=4)
    assert "--on-bad-sample" not in str(bad.value)
    seen: list[int] = []
    hook = backbone.model.conv1.register_forward_hook(lambda _m, x, _y: seen.append(len(x[0])))
    cache = extract(backbone, samples, tmp_path / "cache", batch=9)  # another batch is no matter
    again = extract(backbone, samples, tmp_path / "cache")
    hook.remove()
    assert seen == [1, 4, 4]
    whole = extract(backbone, samples, tmp_path / "whole", batch=4)
    assert bytes_of(cache.path) == bytes_of(whole.path)
    assert again.manifest == cache.manifest


# Refusals


def fails(kind: type[FastrotError], match: str, *arguments: Any, **changed: Any) -> None:
    with pytest.raises(kind, match=match) as caught:
        extract(*arguments, **changed)
    assert "\n" not in str(caught.value)


def test_another_cache_in_the_folder_is_refused_by_the_fields_that_differ(
    backbone, samples, small_run, whole, monkeypatch
):
    before = bytes_of(whole.path)
    random = load_backbone(small_run, random_init=True)
    fewer = DatasetSubset(samples, np.arange(19))
    short = DatasetSubset(samples, np.arange(20)[::-1].copy())
    out = whole.path
    fails(MismatchError, f"weights: {backbone.digest} -> {random.digest}", random, samples, out)
    fails(MismatchError, "data: .*; samples: 20 -> 19", backbone, fewer, out)
    fails(MismatchError, r"different features: data: \w+ -> \w+ \w+; name", backbone, short, out)
    squash = Crop("whole", 64)
    fails(MismatchError, "crop.kind: center -> whole", backbone, samples, out, crop=squash)
    larger = Crop("center", 64, resize=80)
    fails(MismatchError, "crop.resize: 73 -> 80", backbone, samples, out, crop=larger)
    fails(MismatchError, "layers: .* -> .*pool", backbone, samples, out, layers=("pool",))
    fails(MismatchError, "crops: 0 -> 2", backbone, samples, out, crops=2)
    fails(MismatchError, "decoding: native", backbone, samples, out, loader="reference")
    fails(MismatchError, "precision: fp32 -> bf16", backbone, samples, out, precision="bf16")
    swapped = load_backbone(small_run, channel_order="bgr")
    fails(MismatchError, "mean: .* -> .*; std: .*; weights", swapped, samples, out)
    monkeypatch.setattr("fastrot.features.spec.DEFINITION", 99)
    fails(MismatchError, r"definition: \d+ -> 99; name", backbone, samples, out)
    assert MismatchError.exit_code == 78 and bytes_of(out) == before


def test_unfinished_features_of_something_else_are_refused_too(
    backbone, samples, photos, small_run, tmp_path
):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    file = sorted(folder.rglob("*.jpg"))[13]
    good = file.read_bytes()
    file.write_bytes(good[: len(good) // 2] + bytes(len(good) - len(good) // 2))
    fails(BadDataError, "bad sample 13", backbone, FolderDataset(folder), tmp_path / "c", batch=4)
    random = load_backbone(small_run, random_init=True)
    fails(MismatchError, "weights: ", random, FolderDataset(folder), tmp_path / "c")
    file.write_bytes(good)
    mended = extract(backbone, FolderDataset(folder), tmp_path / "c")
    whole = extract(backbone, samples, tmp_path / "whole", batch=4)
    assert bytes_of(mended.path) == bytes_of(whole.path)


def test_other_files_are_not_written_over(backbone, samples, tmp_path):
    (tmp_path / "thesis.txt").write_text("final version 7")
    fails(UsageError, "but other files .thesis.txt", backbone, samples, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("value", [float("nan"), 1e30])
def test_features_that_are_not_finite_name_layer_and_sample(value, backbone, samples, tmp_path):
    model = copy.deepcopy(backbone.model)
    with torch.no_grad():
        model.layer2[0].bn2.weight[3] = value
    broken = backbone.__class__(**(vars(backbone) | {"model": model}))
    what = "nan is not a finite" if np.isnan(value) else "larger than float16 holds"
    fails(NonFiniteError, f"layer 'layer2' of sample 0: .*{what}", broken, samples, tmp_path / "c")
    assert NonFiniteError.exit_code == 70 and not (tmp_path / "c" / "manifest.json").exists()


def test_a_list_of_labels_of_the_wrong_length_is_refused_first(backbone, photos, tmp_path):
    samples = FolderDataset(photos)
    samples.labels = samples.labels[:-1]
    fails(BadDataError, "19 labels for 20 samples", backbone, samples, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_wrong_arguments_are_named(backbone, samples, tmp_path):
    for match, changed in (
        ("layers layer9: this backbone has stem", {"layers": ("layer9",)}),
        ("0 layers, 20 samples", {"layers": ()}),
        ("crop 'random_resized' is random", {"crop": Crop("random_resized", 64)}),
        ("precision 'fp16' is not for a cpu", {"precision": "fp16"}),
        ("'synthetic' reads no images", {"loader": "synthetic"}),
        ("0 samples", {}),
    ):
        data = samples if changed else DatasetSubset(samples, np.arange(0))
        fails(UsageError, match, backbone, data, tmp_path / "c", **changed)
    with pytest.raises(UsageError, match=r"features.resize=60 must be at least the resolution"):
        scoring_crop(protocol(resize=60), backbone)
    with pytest.raises(UsageError, match=r"features\.transform"):
        load_protocol("linear", ["features.transform=middle"])
    assert not (tmp_path / "c").exists()


def test_the_fingerprint_is_known_before_anything_is_computed(backbone, samples, whole):
    spec = FeatureSpec.settle(backbone, samples, CPU, layers=LAYERS, crop=CENTER)
    assert spec.fingerprint == whole.fingerprint
    assert protocol_spec(protocol(layers=LAYERS), backbone, samples, CPU) == spec
    assert scoring_crop(protocol(), backbone) == CENTER
    assert scoring_crop(protocol(resolution=224), backbone).resize == 256


def test_a_specification_is_for_one_backbone_and_one_data_set(
    backbone, samples, small_run, tmp_path
):
    spec = FeatureSpec.settle(backbone, samples, CPU, layers=LAYERS, crop=CENTER)
    random = load_backbone(small_run, random_init=True)
    fewer = DatasetSubset(samples, np.arange(19))
    for network, data in ((random, samples), (backbone, fewer)):
        with pytest.raises(UsageError, match="made for another backbone or other samples"):
            extract_features(network, data, tmp_path / "c", spec)
    assert not (tmp_path / "c").exists()
