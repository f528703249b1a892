from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from scipy.io import savemat

from fastrot.data.classes import match_classes
from fastrot.data.open import open_dataset
from fastrot.data.sources.find import find_layout, list_source
from fastrot.errors import BadDataError, UsageError

WNIDS = (
    *("n01440764", "n01443537", "n02102040"),
    *(f"n1{number:07}" for number in range(997)),
)
VAL = [f"ILSVRC2012_val_{i:08}.JPEG" for i in range(1, 1001)]
LABELS = np.random.default_rng(0).permutation(1000).tolist()


@pytest.fixture(scope="module")
def whole(lay_photos, many_files):
    """ImageNet's layout with a flat ``val`` and no labels of it, an image a class; read only."""
    names = [*(f"train/{wnid}/{wnid}_{i}.JPEG" for i, wnid in enumerate(WNIDS)),
             *(f"val/{name}" for name in VAL)]  # fmt: skip
    return lay_photos(many_files / "whole", names)


@pytest.fixture
def root(whole):
    """The same, to put lists into it."""
    yield whole
    for path in set(whole.iterdir()) - {whole / "train", whole / "val"}:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture
def copied(whole):
    """The same to change, as other hard links."""
    yield shutil.copytree(whole, whole.with_name("copied"), copy_function=os.link)
    shutil.rmtree(whole.with_name("copied"), ignore_errors=True)  # a test may have moved it


def sort_val(root):
    """Class folders in ``val``, as the usual script makes them."""
    for name, label in zip(VAL, LABELS, strict=True):
        (root / "val" / WNIDS[label]).mkdir(exist_ok=True)
        (root / "val" / name).rename(root / "val" / WNIDS[label] / name)


def write_meta(root):
    (root / "meta").mkdir()
    lines = [f"{name} {label}\n" for name, label in zip(VAL, LABELS, strict=True)]
    (root / "meta" / "val.txt").write_text("".join(lines))


def write_kaggle(root):
    lines = [f"{name[:-5]},{WNIDS[label]} 1 2 3 4 {WNIDS[label]} 5 6 7 8\n"
             for name, label in zip(VAL, LABELS, strict=True)]  # fmt: skip
    (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(lines))


def write_devkit(root):
    """The devkit numbers classes from 1 in an order of its own; 1001 and up are no leaves."""
    folder = root / "ILSVRC2012_devkit_t12" / "data"
    folder.mkdir(parents=True)
    numbers = {wnid: 1 + (7 * i) % 1000 for i, wnid in enumerate(WNIDS)} | {"n00001740": 1001}
    table = np.zeros(1001, [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")])
    for row, (wnid, number) in zip(table, numbers.items(), strict=True):
        row["ILSVRC2012_ID"], row["WNID"], row["words"] = float(number), wnid, "x, y"
    savemat(folder / "meta.mat", {"synsets": table})
    text = "".join(f"{numbers[WNIDS[label]]}\n" for label in LABELS)
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(text)


@pytest.mark.parametrize("write", [write_meta, write_kaggle, write_devkit])
@pytest.mark.parametrize("train", ["with train", "without train"])
def test_labels_of_a_flat_val(root, tmp_path, write, train):
    write(root)
    assert find_layout(root) == "imagenet"
    if train == "without train":
        for path in set(root.iterdir()) - {root / "train", root / "val"}:
            shutil.move(path, tmp_path / path.name)
        shutil.copytree(root / "val", tmp_path / "val")
        root = tmp_path
    source = list_source(root, kind="imagenet", split="val")
    assert source.paths == tuple(VAL) and source.labels.tolist() == LABELS
    numbered = write is write_meta and train == "without train"
    assert source.class_names == (tuple(map(str, range(1000))) if numbered else WNIDS)
    assert source.load(0)[:2] == b"\xff\xd8"


def test_kaggles_folders(copied):
    outer = copied.with_name("kaggle")
    (outer / "ILSVRC" / "Data").mkdir(parents=True)
    copied.rename(outer / "ILSVRC" / "Data" / "CLS-LOC")
    write_kaggle(outer)
    for path in (outer, outer / "ILSVRC"):
        source = list_source(path, split="val")
        assert source.kind == "imagenet" and source.labels.tolist() == LABELS
    assert len(list_source(outer, split="train")) == 1000


def test_class_folders(copied):
    write_meta(copied)
    flat = list_source(copied, split="val")
    sort_val(copied)
    assert find_layout(copied) == "folder"
    source = list_source(copied, kind="imagenet", split="val")
    assert source.labels.tolist() == list(range(1000)) and source.class_names == WNIDS
    named = {os.path.basename(path): i for i, path in enumerate(source.paths)}
    assert [named[name] for name in flat.paths] == flat.labels.tolist()


def test_read_in_place(root):
    write_meta(root)
    train, val = (open_dataset(f"{root}:{split}") for split in ("train", "val"))
    assert match_classes(train, val).numbers is None
    assert val.labels.tolist() == LABELS and train.labels.tolist() == list(range(1000))
    assert val.decode(3).shape == (128, 128, 3)


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_image_in_the_folder_of_another_class_fails(copied, split):
    sort_val(copied)
    one, other = (copied / split / wnid for wnid in WNIDS[5:7])
    image = next(one.iterdir())
    os.link(image, other / image.name)
    message = {
        "train": rf"named as an image of class {WNIDS[5]}, but in the folder of {WNIDS[6]}",
        "val": rf"val: 2 images of class {WNIDS[6]} and 1 of",
    }[split]
    with pytest.raises(BadDataError, match=message):
        list_source(copied, kind="imagenet", split=split)


def test_folders_must_be_those_of_train(copied):
    sort_val(copied)
    list_source(copied, kind="imagenet", split="val")
    (copied / "val" / "n99999999").mkdir()
    with pytest.raises(BadDataError, match=r"'n99999999' is not a class of .* in train/"):
        list_source(copied, kind="imagenet", split="val")
    (copied / "val" / "n99999999").rmdir()
    (copied / "val" / WNIDS[4]).rename(copied / "away")
    with pytest.raises(BadDataError, match=rf"val: no folder '{WNIDS[4]}', which is a class in"):
        list_source(copied, kind="imagenet", split="val")
    (copied / "val" / WNIDS[4]).mkdir()
    with pytest.raises(BadDataError, match=rf"{WNIDS[4]}: no image in this class folder"):
        list_source(copied, kind="imagenet", split="val")
    shutil.rmtree(copied / "train")
    (copied / "val" / "cat").mkdir()
    with pytest.raises(BadDataError, match="folder 'cat' is not a class of ImageNet; "):
        list_source(copied, kind="imagenet", split="val")


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_part_of_the_classes_fails_and_says_what_takes_it(test_data, part):
    root = test_data("imagenette-128")
    with pytest.raises(BadDataError, match=r"train: 10 classes; .* 1,000; .* --kind folder"):
        list_source(root, kind="imagenet", split=part)
    source = list_source(root, kind="folder", split=part)
    assert np.bincount(source.labels).size == 10 == len(source.class_names)
    assert find_layout(root) == "folder", "so it needs no --kind"


def test_a_flat_val_needs_a_list(root):
    assert find_layout(root) == "folder"
    with pytest.raises(UsageError, match=r"put meta/val\.txt .* beside val/"):
        list_source(root, kind="imagenet", split="val")
    with pytest.raises(UsageError, match="choose --split train or val"):
        list_source(root, kind="imagenet")
    with pytest.raises(UsageError, match="not ImageNet"):
        list_source(root / "train", kind="imagenet", split="train")


def test_one_wrong_label_fails(root, refusal):
    write_meta(root)
    path = root / "meta" / "val.txt"
    path.write_text(path.read_text().replace(f" {LABELS[7]}\n", f" {LABELS[8]}\n", 1))
    message = refusal(root, "val")
    assert f"val: 2 images of class {WNIDS[LABELS[8]]} and 0 of {WNIDS[LABELS[7]]}" in message


def test_damaged_lists(root, refusal):
    write_meta(root)
    path = root / "meta" / "val.txt"
    whole = path.read_text()
    path.write_text(whole.replace(f" {LABELS[7]}\n", " 1000\n"))
    assert "label below 1000" in refusal(root, "val")
    path.write_text(whole + "x.JPEG 0\n")
    assert "names 1 of 1,001 images that are not there, the first 'x.JPEG'" in refusal(root, "val")
    path.write_text(whole + whole.split("\n")[0] + "\n")
    assert f"names '{VAL[0]}' twice" in refusal(root, "val")
    path.write_text(whole.partition("\n")[2])
    assert f"but 1 others are there, the first '{VAL[0]}'" in refusal(root, "val")
    write_kaggle(root)
    path = root / "LOC_val_solution.csv"
    path.write_text(path.read_text().replace(WNIDS[1], "n12345678"))
    assert "'n12345678' is not a class in train/" in refusal(root, "val")


def test_a_missing_image_fails(copied, refusal):
    write_meta(copied)
    (copied / "val" / VAL[6]).unlink()
    assert f"names 1 of 1,000 images that are not there, the first '{VAL[6]}'" in refusal(
        copied, "val"
    )


def test_a_devkit_of_another_length_fails(root, refusal):
    write_devkit(root)
    path = root / "ILSVRC2012_devkit_t12" / "data" / "ILSVRC2012_validation_ground_truth.txt"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    assert f"names 999 images, but 1 others are there, the first '{VAL[-1]}'" in refusal(
        root, "val"
    )
    path.write_text("".join([*lines, lines[0]]))
    assert "names 1 of 1,001 images that are not there" in refusal(root, "val")


def test_a_damaged_devkit(root):
    write_devkit(root)
    folder = root / "ILSVRC2012_devkit_t12" / "data"
    text = (folder / "ILSVRC2012_validation_ground_truth.txt").read_text()
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(text.replace("3\n", "9999\n"))
    with pytest.raises(BadDataError, match="are not those of ImageNet's devkit"):
        list_source(root, split="val")
    (folder / "meta.mat").write_bytes(b"MATLAB 5.0 MAT-file, but no more")
    with pytest.raises(BadDataError, match="are not those of ImageNet's devkit"):
        list_source(root, split="val")
    (folder / "meta.mat").unlink()
    with pytest.raises(BadDataError, match=r"meta\.mat: missing"):
        list_source(root, split="val")
