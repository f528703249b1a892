"""What lies beside the images is counted and named; parts of a dataset are known as such."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastrot.data.beton import BetonFile, manifest
from fastrot.data.dataset import count_line
from fastrot.data.open import open_dataset
from fastrot.data.prepare.convert import prepare
from fastrot.data.prepare.options import PrepareRequest
from fastrot.data.sources.find import list_source
from fastrot.errors import BadDataError, StorageError, UsageError
from tests.fastrot.data.sources.trees import tree

FASTROT = [sys.executable, "-m", "fastrot"]


def photos(root, *names):
    """Files with an image in them."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, "JPEG")
    return root


def test_everything_beside_the_images_is_counted_with_its_first_name(tmp_path):
    root = tree(
        tmp_path,
        *("cat/1.jpg", "cat/b.heic", "cat/deep/a.HEIC", "cat/.DS_Store", "cat/.hid/2.jpg"),
        *("dog/1.jpg", "dog/noending", "dog/notes.txt", "readme.md", ".git/config", "@eaDir/1.jpg"),
    )
    os.mkfifo(root / "dog" / "pipe.jpg")
    source = list_source(root)
    assert source.paths == ("cat/1.jpg", "dog/1.jpg")
    assert source.left_out.counts == {
        ".heic": 2,
        ".md": 1,
        ".txt": 1,
        "hidden": 4,
        "no ending": 1,
        "no regular file": 1,
    }
    assert str(source.left_out) == (
        "2 .heic ('cat/b.heic', ...), 4 hidden ('.git', ...), 1 .md ('readme.md'), "
        "1 .txt ('dog/notes.txt'), 1 no ending ('dog/noending'), 1 no regular file ('dog/pipe.jpg')"
    )
    for i in range(9):
        tree(tmp_path, f"cat/x.{i}")
    assert str(list_source(tmp_path).left_out).endswith(", 7 files of 7 more kinds")
    clean = tree(tmp_path / "clean", "cat/1.jpg")
    assert not list_source(clean).left_out and str(list_source(clean).left_out) == ""


def test_what_is_left_out_changes_no_digest(tmp_path):
    root = tree(tmp_path, "cat/1.jpg")
    before = list_source(root).digest
    tree(tmp_path, "cat/notes.txt")
    assert list_source(root).digest == before


def test_prepare_names_it_in_its_last_line_in_json_and_in_the_manifest(tmp_path):
    photos(tmp_path, "in/cat/1.jpg", "in/dog/1.jpg")
    tree(tmp_path, "in/cat/2.heic", "in/dog/.hidden.jpg")
    told = "1 .heic ('cat/2.heic'), 1 hidden ('dog/.hidden.jpg')"
    command = [*FASTROT, "prepare", "in", "out.beton", "--workers", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"left out: {told}"
    command = [*command, "--overwrite", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["ignored"] == {".heic": 1, "hidden": 1}
    with BetonFile.open(tmp_path / "out.beton") as file:
        made = manifest.load(file)
    assert made is not None and made.left_out == told
    shown = subprocess.run(
        [*FASTROT, "inspect", "out.beton", "--json"], cwd=tmp_path, capture_output=True, check=True
    )
    assert json.loads(shown.stdout)["made_by"]["left_out"] == told
    samples = open_dataset(tmp_path / "out.beton")
    assert count_line(samples).endswith(f"out.beton: 2 images in 2 classes; left out: {told}")
    folder = open_dataset(tmp_path / "in")
    assert count_line(folder).endswith(f"in: 2 images in 2 classes; left out: {told}")


def test_classes_that_lose_all_images_and_lookalikes_are_named(tmp_path):
    photos(tmp_path, "in/Cat/1.jpg", "in/cat/1.jpg", "in/dog/1.jpg")
    tree(tmp_path, "in/dog/1.jpg", "in/dog/2.jpg", "in/cat/2.jpg")
    request = PrepareRequest(
        tmp_path / "in", tmp_path / "out.beton", on_bad_sample="skip", workers=0, progress=False
    )
    report = prepare(request)
    assert report.lost_classes == ("dog",) and len(report.skipped) == 3
    assert report.notes == (
        f"{tmp_path / 'in'}: classes 'Cat' and 'cat' differ only in case, Unicode form or "
        "spaces: merge them if they are the same",
    )
    assert open_dataset(tmp_path / "out.beton").left_out == "3 bad images"


def test_folders_of_classes_within_the_classes_are_told(tmp_path):
    photos(tmp_path, "one/animals/cat/1.jpg", "one/animals/dog/1.jpg")
    photos(tmp_path, "two/animals/cat/1.jpg", "two/animals/dog/1.jpg", "two/things/cup/1.jpg")
    photos(tmp_path, "deep/cat/a/b/1.jpg", "deep/dog/1/2.jpg", "flat/cat/1.jpg")
    photos(tmp_path, "mixed/cat/1.jpg", "mixed/cat/more/2.jpg", "mixed/cat/older/2.jpg")
    for name, noted in (
        *(("one", True), ("two", True)),
        *(("deep", False), ("flat", False), ("mixed", False)),
    ):
        request = PrepareRequest(
            tmp_path / name, tmp_path / f"{name}.beton", workers=0, progress=False
        )
        words = (
            f"classes are the folders of {tmp_path / name}; the folders in them (animals/cat ...) "
            f"are merged: if those are the classes, name {tmp_path / name / 'animals'}"
        )
        assert prepare(request).notes == ((words,) if noted else ())


def test_a_part_beside_what_has_the_same_classes_is_asked_about(tmp_path):
    for part in ("train", "extra"):
        tree(tmp_path, f"svhn/{part}/cat/1.jpg", f"svhn/{part}/dog/1.jpg")
    with pytest.raises(BadDataError, match=r"train and extra hold the same folders \(cat, dog"):
        list_source(tmp_path / "svhn")
    assert list_source(tmp_path / "svhn" / "train").class_names == ("cat", "dog")
    tree(tmp_path, "voc/train/1.jpg", "voc/train/old/1.jpg", "voc/bus/old/1.jpg")
    assert list_source(tmp_path / "voc").class_names == ("bus", "train")


def test_a_file_that_may_not_be_read_is_not_bad():
    with tempfile.TemporaryDirectory() as folder:  # others may not enter those of pytest
        root = photos(Path(folder) / "in", "cat/1.jpg", "dog/1.jpg")
        (root / "dog" / "1.jpg").chmod(0)
        Path(folder).chmod(0o777)
        request = PrepareRequest(
            root, Path(folder) / "x.beton", on_bad_sample="skip", workers=0, progress=False
        )
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)  # root may read everything
        try:
            with pytest.raises(StorageError, match=r"dog/1\.jpg: may not be read; ask") as told:
                prepare(request)
            assert told.value.exit_code == 74
            with pytest.raises(StorageError, match="may not be read"):
                open_dataset(root).read(1)
        finally:
            os.seteuid(user)


@pytest.mark.parametrize(
    ("folders", "split", "entered"),
    [
        (("Train", "Test"), "train", "Train"),
        (("Training", "Testing"), "test", "Testing"),
        (("seg_train", "seg_test"), "train", "seg_train"),
        (("seg_train", "seg_test"), "seg_test", "seg_test"),
        (("train2017", "val2017"), "val", "val2017"),
        (("train2014", "train2017", "val2017"), "train2014", "train2014"),
        (("TrainSet", "TestSet"), "train", "TrainSet"),
        (("training_set", "test_set"), "test", "test_set"),
        (("images-train", "images-val"), "validation", "images-val"),
        (("ILSVRC2012_img_train", "ILSVRC2012_img_val"), "val", "ILSVRC2012_img_val"),
        (("train", "dev", "test"), "val", "dev"),
        (("TRAIN",), None, "TRAIN"),
        (("train", "valid", "notes"), "val", "valid"),
    ],
)
def test_split_folders_in_any_case_and_with_affixes(tmp_path, folders, split, entered):
    for folder in folders:
        tree(tmp_path, f"{folder}/cat/1.jpg", f"{folder}/dog/1.jpg")
    source = list_source(tmp_path, split=split)
    assert source.root == tmp_path / entered and source.class_names == ("cat", "dog")
    if len(folders) > 1:
        with pytest.raises((UsageError, BadDataError), match="--split"):
            list_source(tmp_path)


@pytest.mark.parametrize(
    "classes",
    [
        ("bus", "train"),
        ("bullet_train", "steam_train"),
        ("test_tube", "train_station"),
        ("bus", "test", "testimony"),
        ("contest", "restrain"),
    ],
)
def test_classes_named_like_parts_are_classes(tmp_path, classes):
    for name in classes:
        tree(tmp_path, f"{name}/1.jpg")
    assert list_source(tmp_path).class_names == classes


def test_a_layout_with_two_meanings_is_asked_about(tmp_path):
    tree(tmp_path, "train/cat/1.jpg", "val/cat/2.jpg", "notes/3.jpg")
    with pytest.raises(BadDataError, match=r"train, val are beside notes.*--split") as asked:
        list_source(tmp_path)
    assert asked.value.exit_code == 65
    source = list_source(tmp_path, split="train")
    assert source.class_names == ("cat",) and source.left_out.counts == {"beside the split": 1}


def test_folders_without_images_beside_images_are_left_out(tmp_path):
    root = tree(tmp_path, "1.jpg", "2.jpg", "__MACOSX/._1.jpg", "lists/a.txt")
    (root / "empty").mkdir()
    source = list_source(root)
    assert source.paths == ("1.jpg", "2.jpg") and source.class_names is None
    assert source.left_out.counts == {".txt": 1, "folder without images": 2, "hidden": 1}


def test_splits_within_the_classes_would_mix_training_and_test_images(tmp_path):
    tree(tmp_path, "bottle/train/1.jpg", "bottle/test/2.jpg", "cable/train/1.jpg")
    with pytest.raises(BadDataError, match=r"bottle: holds .*mixed in one class"):
        list_source(tmp_path)


def test_archives_that_unpack_into_a_folder_of_their_own_name(tmp_path):
    for part in ("seg_train", "seg_test"):
        tree(tmp_path, f"{part}/{part}/forest/1.jpg", f"{part}/{part}/sea/1.jpg")
    source = list_source(tmp_path, split="train")
    assert source.class_names == ("forest", "sea")
    assert source.root == tmp_path / "seg_train" / "seg_train"
    tree(tmp_path, "seg_train/seg_train/loose.jpg")  # would make one class of both folders
    with pytest.raises(BadDataError, match=r"has images \('loose.jpg'\) beside a folder of images"):
        list_source(tmp_path, split="train")


def test_an_asked_split_must_be_clear(tmp_path):
    tree(tmp_path, "train2014/1.jpg", "train2017/1.jpg", "val2017/1.jpg")
    with pytest.raises(UsageError, match="train2014, train2017 all match; name one of them"):
        list_source(tmp_path, split="train")
    with pytest.raises(UsageError, match="it has train2014, train2017, val2017"):
        list_source(tmp_path, split="test")


@pytest.mark.parametrize("kind", ["to_root", "to_itself", "mutual", "to_class"])
def test_a_circle_is_named_by_its_link(tmp_path, kind):
    root = tree(tmp_path / "root", "a/1.jpg", "b/1.jpg", "b/deep/2.jpg")
    link, target = {
        "to_root": ("a/loop", root),
        "to_itself": ("loop", root),
        "mutual": ("b/deep/back", root / "a"),
        "to_class": ("b/deep/up", root / "b"),
    }[kind]
    if kind == "mutual":
        (root / "a" / "there").symlink_to(root / "b" / "deep")
    (root / link).symlink_to(target)
    with pytest.raises(BadDataError, match="in a circle; remove the link") as refused:
        list_source(root)
    named = str(refused.value).partition(":")[0]
    assert os.path.islink(named)
    os.unlink(named)  # the message's advice repairs it without losing an image
    source = list_source(root)
    assert {os.path.realpath(source.file(i)) for i in range(len(source))} == {
        str(root / name) for name in ("a/1.jpg", "b/1.jpg", "b/deep/2.jpg")
    }
