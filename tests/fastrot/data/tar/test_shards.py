"""Which members of shards are images, what is counted beside them, and which files are meant."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from fastrot.data.dataset import count_line
from fastrot.data.open import open_dataset
from fastrot.data.sources.find import list_source
from fastrot.errors import BadDataError, UsageError


def picture(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def shard(path, names):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name in names:
            data = picture("PNG" if name.endswith("png") else "JPEG")
            data = b"1" if name.endswith(("cls", "txt")) else data
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_members_that_are_not_read_are_counted_and_named(tmp_path):
    path = shard(
        tmp_path / "x.tar",
        ["1.jpg", "1.cls", "IMG_2020.01.02.jpg", "IMG_2021.01.02.JPG", "1.txt", ".2.jpg", "notes"],
    )
    samples = open_dataset(path)
    assert len(samples) == 1 and samples.labels.tolist() == [1]
    assert count_line(samples) == (
        f"{path}: 1 image; left out: 2 dotted .jpg ('x.tar: IMG_2020.01.02.jpg', ...), "
        "1 .txt ('x.tar: 1.txt'), 1 hidden ('x.tar: .2.jpg'), 1 no ending ('x.tar: notes')"
    )


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["a.1.jpg", "b.2.jpg"],
            r"2 dotted \.jpg \('a\.1\.jpg', \.\.\.\): the key of a sample ends",
        ),
        ([], "an archive with no members"),
        (["1.heic", "notes.txt"], r"no image member \(1 \.heic .*1 \.txt"),
    ],
)
def test_shards_without_images_say_why(tmp_path, names, words):
    with pytest.raises(BadDataError, match=words):
        open_dataset(shard(tmp_path / "x.tar", names))


def test_a_folder_with_shards_of_two_splits_is_asked_about(tmp_path):
    for name in ("imagenet-train-00.tar", "imagenet-train-01.tar", "imagenet-val-00.tar"):
        shard(tmp_path / name, [f"{name}-{i}.jpg".replace(".tar", "") for i in range(2)])
    with pytest.raises(BadDataError, match="holds shards of train and val") as asked:
        open_dataset(tmp_path)
    assert asked.value.exit_code == 65
    assert len(open_dataset(tmp_path / "*train*.tar")) == 4
    assert len(open_dataset(tmp_path / "*.tar")) == 6, "a pattern says that all are meant"
    (tmp_path / "imagenet-val-00.tar").unlink()
    (tmp_path / "index.json").write_text("{}")
    samples = open_dataset(tmp_path)
    assert len(samples) == 4 and samples.left_out == "1 .json ('index.json')"


@pytest.mark.parametrize("folder", ["photos [new]", "a {b,c}", "what?", "st*r", "plain"])
def test_folders_with_brackets_and_spaces(tmp_path, folder):
    for i in range(3):
        shard(tmp_path / folder / f"part [{i}]-{i}.tar", [f"{i}.jpg"])
        shard(tmp_path / folder / f"part-{i}.tar", [f"{i}.jpg", f"{i}1.jpg"])
    assert len(open_dataset(tmp_path / folder / "part-{0..2}.tar")) == 6
    assert len(open_dataset(tmp_path / folder / "part-*.tar")) == 6
    assert len(open_dataset(tmp_path / folder / "part-[01].tar")) == 4
    assert len(open_dataset(tmp_path / folder / "part [1]-1.tar")) == 1
    assert len(open_dataset(tmp_path / folder)) == 9
    with pytest.raises(UsageError, match=r"part-7\.tar: no such file"):
        open_dataset(tmp_path / folder / "part-{7..8}.tar")


def test_a_pattern_may_stand_in_the_folders(tmp_path):
    for part in ("a", "b"):
        shard(tmp_path / part / "1.tar", [f"{part}.jpg"])
    assert len(open_dataset(tmp_path / "{a,b}" / "1.tar")) == 2
    assert len(open_dataset(tmp_path / "[ab]" / "*.tar")) == 2


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.tar.zst", "x.TAR.BZ2"])
def test_compressed_archives_are_to_be_unpacked(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x1f\x8b")
    with pytest.raises(BadDataError, match=r"unpack it to x\.tar first"):
        open_dataset(tmp_path / name)


def test_a_shard_of_training_and_test_images_is_refused(tmp_path):
    path = shard(tmp_path / "x.tar", ["train/cat/1.jpg", "test/cat/2.jpg"])
    with pytest.raises(BadDataError, match="holds members of test, train"):
        open_dataset(path)
    assert len(open_dataset(shard(tmp_path / "y.tar", ["train/1.jpg", "bus/2.jpg"]))) == 2


def test_a_label_whose_image_has_another_key_names_what_is_not_read(tmp_path):
    path = shard(tmp_path / "x.tar", ["1.jpg", "p.image.jpg", "p.cls"])
    with pytest.raises(
        BadDataError, match=r"p\.cls has no image with its key \(not read: 1 dotted"
    ):
        open_dataset(path)


def test_shards_have_no_splits(tmp_path):
    shard(tmp_path / "train-0.tar", ["1.jpg"])
    shard(tmp_path / "val-0.tar", ["1.jpg"])
    with pytest.raises(UsageError, match=r"train as a pattern, for example '.*/\*train\*\.tar'"):
        open_dataset(f"{tmp_path}:train")
    with pytest.raises(UsageError, match=r"needs no conversion"):
        list_source(tmp_path / "train-0.tar")
