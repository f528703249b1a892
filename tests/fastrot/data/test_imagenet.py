from __future__ import annotations

import shutil

import numpy as np
import pytest
from scipy.io import savemat

from fastrot.data.sources import find_layout, list_source
from fastrot.errors import BadDataError, UsageError

WNIDS = ("n01440764", "n01443537", "n02102040")
VAL = [f"ILSVRC2012_val_{i:08}.JPEG" for i in range(1, 6)]
LABELS = [2, 0, 1, 1, 2]


@pytest.fixture
def root(tmp_path, test_data):
    """ImageNet's layout with a flat ``val`` and no labels of it, of real photos."""
    photo = next((test_data("imagenette-128") / "val").rglob("*.*"))
    for name in [*(f"train/{w}/{w}_{i}.JPEG" for i, w in enumerate(WNIDS)),
                 *(f"val/{name}" for name in VAL)]:  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, tmp_path / name)
    return tmp_path


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
    numbers = {WNIDS[2]: 1, WNIDS[0]: 2, WNIDS[1]: 3, "n00001740": 1001}
    table = np.zeros(4, [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")])
    for row, (wnid, number) in zip(table, numbers.items(), strict=True):
        row["ILSVRC2012_ID"], row["WNID"], row["words"] = float(number), wnid, "x, y"
    savemat(folder / "meta.mat", {"synsets": table})
    text = "".join(f"{numbers[WNIDS[label]]}\n" for label in LABELS)
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(text)


@pytest.mark.parametrize("write", [write_meta, write_kaggle, write_devkit])
@pytest.mark.parametrize("train", ["with train", "without train"])
def test_labels_of_a_flat_val(root, write, train):
    write(root)
    assert find_layout(root) == "imagenet"
    if train == "without train":
        shutil.rmtree(root / "train")
    source = list_source(root, kind="imagenet", split="val")
    assert source.paths == tuple(VAL) and source.labels.tolist() == LABELS
    numbered = write is write_meta and train == "without train"
    assert source.class_names == (("0", "1", "2") if numbered else WNIDS)
    assert source.load(0)[:2] == b"\xff\xd8"


def test_kaggles_folders(root, tmp_path_factory):
    outer = tmp_path_factory.mktemp("kaggle")
    shutil.copytree(root, outer / "ILSVRC" / "Data" / "CLS-LOC", dirs_exist_ok=True)
    write_kaggle(outer)
    for path in (outer, outer / "ILSVRC"):
        source = list_source(path, split="val")
        assert source.kind == "imagenet" and source.labels.tolist() == LABELS
    assert len(list_source(outer, split="train")) == 3


def test_class_folders_are_numbered_as_in_train(root):
    shutil.rmtree(root / "val")
    shutil.copytree(root / "train", root / "val")
    shutil.rmtree(root / "val" / WNIDS[1])
    assert find_layout(root) == "folder"
    source = list_source(root, kind="imagenet", split="val")
    assert source.labels.tolist() == [0, 2] and source.class_names == WNIDS
    (root / "val" / "n99999999").mkdir()
    with pytest.raises(BadDataError, match="'n99999999' is none of the 3 classes"):
        list_source(root, kind="imagenet", split="val")


def test_imagenette_as_imagenet_is_as_by_its_folders(test_data):
    root = test_data("imagenette-128")
    one, other = (list_source(root, kind=k, split="val") for k in ("imagenet", "folder"))
    assert one.paths == other.paths and one.class_names == other.class_names
    assert np.array_equal(one.labels, other.labels)


def test_a_flat_val_needs_a_list(root):
    assert find_layout(root) == "folder"
    with pytest.raises(UsageError, match=r"put meta/val\.txt .* beside val/"):
        list_source(root, kind="imagenet", split="val")
    with pytest.raises(UsageError, match="choose --split train or val"):
        list_source(root, kind="imagenet")
    with pytest.raises(UsageError, match="not ImageNet"):
        list_source(root / "train", kind="imagenet", split="train")


def test_damaged_lists(root):
    write_meta(root)
    path = root / "meta" / "val.txt"
    whole = path.read_text()
    path.write_text(whole.replace(" 2\n", " 3\n"))
    with pytest.raises(BadDataError, match="label below 3"):
        list_source(root, split="val")
    path.write_text(whole + "x.JPEG 0\n")
    with pytest.raises(BadDataError, match=r"names 1 of 6 images .*'x\.JPEG'"):
        list_source(root, split="val")
    write_kaggle(root)
    path = root / "LOC_val_solution.csv"
    path.write_text(path.read_text().replace(WNIDS[1], "n12345678"))
    with pytest.raises(BadDataError, match="'n12345678' is no class of train/"):
        list_source(root, split="val")


def test_a_damaged_devkit(root):
    write_devkit(root)
    folder = root / "ILSVRC2012_devkit_t12" / "data"
    text = (folder / "ILSVRC2012_validation_ground_truth.txt").read_text()
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(text.replace("3", "9"))
    with pytest.raises(BadDataError, match="are not those of ImageNet's devkit"):
        list_source(root, split="val")
    (folder / "meta.mat").write_bytes(b"MATLAB 5.0 MAT-file, but no more")
    with pytest.raises(BadDataError, match="are not those of ImageNet's devkit"):
        list_source(root, split="val")
    (folder / "meta.mat").unlink()
    with pytest.raises(BadDataError, match=r"meta\.mat: missing"):
        list_source(root, split="val")
