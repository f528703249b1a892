from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from fastrot.data.sources.find import find_layout, list_source
from fastrot.errors import BadDataError, UsageError
from tests.fastrot.data.sources.trees import tree


def test_class_folders_in_order_of_their_names(tmp_path):
    tree(tmp_path, "b/2.jpg", "b/1.JPEG", "a/deep/er/3.png", "a/0.jpg", "a/notes.txt", ".hid/x.jpg")
    source = list_source(tmp_path)
    assert source.paths == ("a/0.jpg", "a/deep/er/3.png", "b/1.JPEG", "b/2.jpg")
    assert source.labels.tolist() == [0, 0, 1, 1]
    assert source.class_names == ("a", "b")
    assert source.sizes.tolist() == [7, 15, 8, 7]
    assert source.load(0) == b"a/0.jpg"


def test_flat_folder_has_no_labels_and_one_class_is_fine(tmp_path):
    flat = list_source(tree(tmp_path / "flat", "2.jpg", "1.jpg"))
    assert flat.labels.tolist() == [-1, -1] and flat.class_names is None
    one = list_source(tree(tmp_path / "one", "cat/1.jpg"))
    assert one.labels.tolist() == [0] and one.class_names == ("cat",)


def test_splits(tmp_path):
    tree(tmp_path, "train/a/1.jpg", "val/a/2.jpg")
    assert list_source(tmp_path, split="val").paths == ("a/2.jpg",)
    assert list_source(tmp_path / "train").paths == ("a/1.jpg",)
    with pytest.raises(
        UsageError, match=r"has the splits train, val: name one, .*/train .*--split"
    ):
        list_source(tmp_path)
    with pytest.raises(UsageError, match=r"split='test'.* it has train, val"):
        list_source(tmp_path, split="test")
    with pytest.raises(UsageError, match="no split folders"):
        list_source(tmp_path / "train", split="train")


def test_single_split_needs_no_choice(tmp_path):
    source = list_source(tree(tmp_path, "train/a/1.jpg"))
    assert source.paths == ("a/1.jpg",) and source.class_names == ("a",)


def test_class_named_like_a_split_beside_other_classes_is_a_class(tmp_path):
    source = list_source(tree(tmp_path, "train/1.jpg", "bus/2.jpg"))
    assert source.class_names == ("bus", "train")


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ([], BadDataError, "holds no image"),
        (["a/1.svg"], BadDataError, r"class folder holds no image .*\(only \.svg\)"),
        (["a/1.jpg", "b/2.txt"], BadDataError, "b: the class folder holds no image"),
        (["a/1.jpg", "2.jpg"], BadDataError, "beside a folder of images \\('a'\\)"),
    ],
)
def test_layouts_that_are_refused(tmp_path, names, error, message):
    with pytest.raises(error, match=message):
        list_source(tree(tmp_path, *names))


def test_wrong_paths_and_kinds(tmp_path):
    with pytest.raises(UsageError, match="nowhere: no such folder") as missing:
        list_source(tmp_path / "nowhere")
    assert missing.value.exit_code == 64
    tree(tmp_path, "1.jpg")
    with pytest.raises(UsageError, match="a file, not a folder"):
        list_source(tmp_path / "1.jpg")
    with pytest.raises(UsageError, match="kind='voc'"):
        list_source(tmp_path, kind="voc")


def test_links_out_of_the_folder_need_permission(tmp_path):
    outside = tree(tmp_path / "outside", "x/1.jpg")
    root = tree(tmp_path / "root", "a/1.jpg")
    (root / "a" / "2.jpg").symlink_to(outside / "x" / "1.jpg")
    with pytest.raises(BadDataError, match=r"2\.jpg: a symbolic link out of the dataset"):
        list_source(root)
    assert len(list_source(root, follow_symlinks=True)) == 2
    (root / "a" / "2.jpg").unlink()
    (root / "b").symlink_to(outside / "x")
    with pytest.raises(BadDataError, match="b: a symbolic link out"):
        list_source(root)


def test_links_within_the_folder_are_followed_and_loops_refused(tmp_path):
    root = tree(tmp_path / "root", "a/1.jpg")
    (root / "a" / "2.jpg").symlink_to("1.jpg")
    assert len(list_source(root)) == 2
    (root / "a" / "loop").symlink_to(root / "a")
    with pytest.raises(BadDataError, match=r"/root/a/loop: a symbolic link to .*in a circle"):
        list_source(root)
    (root / "a" / "loop").unlink()
    (root / "a" / "gone.jpg").symlink_to("nothing")
    with pytest.raises(BadDataError, match="does not exist"):
        list_source(root)


def test_a_pipe_named_like_an_image_is_no_image(tmp_path):
    root = tree(tmp_path, "a/1.jpg")
    os.mkfifo(root / "a" / "2.jpg")
    assert list_source(root).paths == ("a/1.jpg",)


def test_a_class_has_the_same_name_and_a_folder_the_same_digest_in_every_locale(tmp_path):
    """A Latin-1 locale would read the UTF-8 of a folder's name as two letters."""
    locales, name = tmp_path / "locales", "en_US.ISO-8859-1"
    locales.mkdir()
    made = None
    if shutil.which("localedef"):
        command = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", locales / name]
        made = subprocess.run(command, capture_output=True, check=False)
    if made is None or made.returncode:
        pytest.skip("localedef cannot make a Latin-1 locale here")
    root = tree(tmp_path / "photos", "Küste/é.jpg", "Straße/1.jpg")
    program = (
        "import json, sys; from pathlib import Path; "
        "from fastrot.data.sources.find import list_source; "
        "s = list_source(Path(sys.argv[1])); "
        "print(json.dumps([sys.getfilesystemencoding(), s.class_names, s.digest, "
        "len(s.load(0))]))"
    )
    environment = {**os.environ, "LOCPATH": str(locales), "LC_ALL": name}
    environment.pop("PYTHONUTF8", None)
    done = subprocess.run(
        [sys.executable, "-c", program, root],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    encoding, names, digest, size = json.loads(done.stdout)
    assert encoding == "iso8859-1"
    here = list_source(root)
    assert tuple(names) == here.class_names == ("Küste", "Straße")
    assert digest == here.digest and size == len("Küste/é.jpg".encode())


def test_names_that_are_not_utf8(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    source = list_source(tmp_path)
    assert source.load(0) == b"x" and len(source.digest) == 32
    (tmp_path / "a").rename(tmp_path / os.fsdecode(b"\xff"))
    with pytest.raises(BadDataError, match="not named in UTF-8"):
        list_source(tmp_path)


def test_digest_is_of_names_sizes_and_classes(tmp_path):
    first = list_source(tree(tmp_path / "1", "a/1.jpg", "b/2.jpg"))
    assert first.digest == list_source(tree(tmp_path / "2", "b/2.jpg", "a/1.jpg")).digest
    (tmp_path / "2" / "a" / "1.jpg").write_bytes(b"longer than before")
    assert first.digest != list_source(tmp_path / "2").digest
    assert first.digest != list_source(tree(tmp_path / "3", "a/1.jpg", "c/2.jpg")).digest


def test_cifar10_folders(test_data):
    source = list_source(test_data("cifar10"), split="train")
    assert np.bincount(source.labels).tolist() == [5000] * 10


@pytest.mark.parametrize("names", [("cat/1.jpg",), ("train/cat/1.jpg", "test/cat/2.jpg")])
def test_what_is_no_cifar_is_refused_as_cifar(tmp_path, names):
    tree(tmp_path, *names)
    with pytest.raises(UsageError, match=r"not CIFAR's binary version.* omit --kind"):
        list_source(tmp_path, kind="cifar", split="train")


def test_cifar10_binary(tmp_path, write_cifar10):
    images = write_cifar10(tmp_path / "cifar-10-batches-bin")
    source = list_source(tmp_path, split="train")
    assert source.kind == "cifar" and len(source) == 15
    labels, planes = images["data_batch_2.bin"]
    assert source.paths[4] == "data_batch_2.bin#1"
    assert source.labels[4] == labels[1]
    assert np.array_equal(source.load(4), planes[1].transpose(1, 2, 0))
    assert source.class_names[9] == "class9"
    assert (
        list_source(tmp_path, split="test").labels.tolist() == images["test_batch.bin"][0].tolist()
    )
    with pytest.raises(UsageError, match="--split train or test"):
        list_source(tmp_path)


def test_cifar100_binary_takes_the_fine_label(tmp_path):
    record = bytes([3, 77]) + bytes(range(256)) * 12
    for name in ("train.bin", "test.bin"):
        (tmp_path / name).write_bytes(record * 2)
    (tmp_path / "fine_label_names.txt").write_text("\n".join(f"c{i}" for i in range(100)))
    source = list_source(tmp_path, split="test")
    assert source.labels.tolist() == [77, 77]
    assert source.load(1)[0, :4, 0].tolist() == [0, 1, 2, 3]


def test_damaged_cifar_is_refused(tmp_path, write_cifar10):
    root = tmp_path / "cifar-10-batches-bin"
    write_cifar10(root)
    good = (root / "data_batch_3.bin").read_bytes()
    (root / "data_batch_3.bin").write_bytes(good[:-1])
    with pytest.raises(BadDataError, match=r"_3.bin: 9218 bytes are not a multiple of 3073"):
        list_source(root, split="train")
    (root / "data_batch_3.bin").write_bytes(b"\x0a" + good[1:])
    with pytest.raises(BadDataError, match="label 10 in record 0"):
        list_source(root, split="train")
    (root / "data_batch_3.bin").unlink()
    with pytest.raises(BadDataError, match="missing"):
        list_source(root, split="train")


def test_pickled_cifar_is_refused_with_the_fix(tmp_path):
    tree(tmp_path, "cifar-10-batches-py/batches.meta", "cifar-10-batches-py/data_batch_1")
    with pytest.raises(BadDataError, match="download the binary version"):
        list_source(tmp_path)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["a/1.jpg"], "folder"),
        (["train/a/1.jpg", "val/a/1.jpg"], "folder"),
        (["VOCdevkit/VOC2007/JPEGImages/1.jpg", "VOCdevkit/VOC2007/ImageSets/Main/t.txt"], "voc07"),
        (["annotations/instances_val2017.json", "val2017/1.jpg"], "coco"),
        (["annotations/1.jpg", "val2017/1.jpg"], "folder"),
        (["trainvalsplit_places205/val_places205.csv"], "places205"),
        (["val2018.json", "train_val2018/a/b/1.jpg"], "inat18"),
        (["train/n01440764/1.JPEG", "val/1.JPEG", "meta/val.txt"], "imagenet"),
        (["train/cat/1.jpg", "val/1.jpg", "meta/val.txt"], "folder"),
        (["test_batch.bin"], "cifar"),
    ],
)
def test_the_layout_is_found_by_what_only_it_has(tmp_path, names, kind):
    assert find_layout(tree(tmp_path, *names)) == kind


@pytest.mark.parametrize("kind", ["voc07", "coco", "imagenet", "places205", "inat18"])
def test_what_is_not_of_the_kind_asked_for_is_refused_with_the_layout(tmp_path, kind):
    with pytest.raises(
        UsageError, match=r": not .*, which has .*; name (that|the) folder"
    ) as error:
        list_source(tree(tmp_path, "a/1.jpg"), kind=kind, split="train")
    assert "\n" not in str(error.value)


def test_two_versions_of_cifar_are_asked_about(tmp_path):
    for name in ("cifar-10-batches-bin/data_batch_1.bin", "cifar-100-binary/train.bin"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UsageError, match=r"several versions of CIFAR; name one: .*100-binary"):
        list_source(tmp_path, split="train")
