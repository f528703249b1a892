"""Tar shards as a dataset: the same images and labels as the folder that they were made of."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from fastrot.data.dataset import BadSampleError
from fastrot.data.loader import LoaderSpec, build_loader
from fastrot.data.open import open_dataset
from fastrot.data.sampling.crops import Crop
from fastrot.data.sampling.sampler import Sampler
from fastrot.data.sources.dataset import FolderDataset
from fastrot.data.tar.dataset import TarDataset
from fastrot.errors import BadDataError, UsageError

SHARDS, EACH = 4, 6


def write(path: Path, files) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def photos(test_data) -> list[Path]:
    found = [
        file
        for group in sorted((test_data("imagenette-128") / "val").iterdir())
        for file in sorted(group.iterdir())[:3]
    ]
    return found[: SHARDS * EACH]


@pytest.fixture(scope="module")
def shards(photos, tmp_path_factory) -> Path:
    """Four shards of six photos, and what else is found in shards; the last has no labels."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(SHARDS):
        files = []
        for i in range(shard * EACH, (shard + 1) * EACH):
            extension = "JPEG" if i % 2 else "jpg"
            files.append((f"part/{i:06d}.{extension}", photos[i].read_bytes()))
            if shard < 2:
                files.append((f"part/{i:06d}.cls", b"%d\n" % (i % 5)))
            elif shard == 2:
                files.append((f"part/{i:06d}.json", json.dumps({"label": i % 5}).encode()))
            files.append((f"part/{i:06d}.txt", b"a caption"))
            files.append((f"part/{i:06d}.pyd", b"never read"))
        files.append(("._part/.hidden.jpg", b"no image"))
        write(folder / f"shard-{shard:06d}.tar", files)
    return folder


def test_images_and_labels(shards, photos):
    samples = TarDataset(shards)
    assert len(samples) == len(photos) == SHARDS * EACH
    assert samples.labels.tolist() == [i % 5 for i in range(18)] + [-1] * 6
    assert (samples.class_names, samples.applies_exif) == (None, True)
    assert samples.stored_bytes == sum(photo.stat().st_size for photo in photos)
    ids = np.arange(len(samples))
    sizes = samples.sizes(ids)
    for i, photo in enumerate(photos):
        encoded = samples.read(i)
        assert bytes(encoded.data) == photo.read_bytes() and encoded.kind == "file"
        pixels = samples.decode(i)
        assert (encoded.width, encoded.height) == pixels.shape[1::-1] == tuple(sizes[i])
        assert f"shard-{i // EACH:06d}.tar: part/{i:06d}.jp" in samples.name(i).lower()


def test_what_names_the_shards(shards, monkeypatch):
    whole = TarDataset(shards)
    for path in (
        shards / "shard-{000000..000003}.tar",
        shards / "shard-00000{0,1,2,3}.tar",
        shards / "shard-000{00..00}{0..3}.tar",
        shards / "shard-*.tar",
        shards / "shard-00000?.tar",
    ):
        opened = open_dataset(path)
        assert isinstance(opened, TarDataset) and opened.digest == whole.digest
        assert opened.path == path
    assert len(open_dataset(shards / "shard-000001.tar")) == EACH
    backwards = open_dataset(shards / "shard-00000{3,0}.tar")
    assert backwards.labels.tolist() == [-1] * 6 + [0, 1, 2, 3, 4, 0]
    assert backwards.digest != open_dataset(shards / "shard-00000{0,3}.tar").digest
    assert isinstance(open_dataset(shards), TarDataset)
    monkeypatch.chdir(shards)
    assert len(open_dataset("shard-{000000..000001}.tar")) == 2 * EACH


def test_a_folder_with_more_than_shards_is_a_folder(shards, photos, tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.jpg").write_bytes(photos[0].read_bytes())
    (tmp_path / "download.tar").write_bytes((shards / "shard-000000.tar").read_bytes())
    assert isinstance(open_dataset(tmp_path), FolderDataset)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("shard-{000002..000005}.tar", r"shard-000004\.tar: no such file \(2 of 4 that"),
        ("none-*.tar", "0 .tar files"),
        ("shard-{3..1}.tar", r"range \{3\.\.1\} must go up"),
        ("shard-{0..99999999}.tar", "at most 65536"),
        ("{0..999}{0..999}.tar", "no such file|must be 1 to 65536"),
        ("shard-{000000,00000{1..3}}.tar", "nested braces; list"),
        ("nowhere.tar", "no such file"),
    ],
)
def test_shards_that_are_not_there(shards, pattern, words):
    with pytest.raises(UsageError, match=words):
        open_dataset(shards / pattern)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            [("a.txt", b"x")],
            "no image member \\(1 \\.txt \\('a\\.txt'\\)\\); unpack it.*fastrot prepare",
        ),
        ([("a.jpg", b"x"), ("a.png", b"x")], "'a.png' .*a second image beside 'a.jpg'"),
        ([("a.jpg", b"x"), ("a.jpg", b"x")], "a second image"),
        ([("a.jpg", b"x"), ("a.cls", b"1"), ("a.cls", b"1")], "the second with this name"),
        ([("a.jpg", b"x"), ("b.cls", b"1")], "b.cls has no image with its key"),
        ([("a.jpg", b"x"), ("a.json", b"{")], "not JSON"),
        ([("a.jpg", b"x"), ("a.json", b"[" * 10**5)], "not JSON"),
        ([("a.jpg", b"x"), ("a.json", b"\xff")], "not JSON"),
        ([("a.jpg", b"x"), ("a.json", b" " * (2**20 + 1))], "1048577 bytes, at most"),
    ],
)
def test_shards_that_contradict_themselves(files, words, tmp_path):
    path = write(tmp_path / "x.tar", files)
    with pytest.raises(BadDataError, match=words) as caught:
        TarDataset(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "shown"),
    [
        ("b.cls", b"-1", "'-1'"),
        ("b.cls", b"cat", "'cat'"),
        ("b.cls", b"n01440764\n", "'n01440764\\n'"),
        ("b.cls", b"\xff", "'\ufffd'"),
        ("b.cls", b"", "''"),
        ("b.cls", b"9" * 12, "'999999999999'"),
        ("b.cls", b"1" * 100, f"'{'1' * 32}'"),
        ("b.json", b'{"label": "dog"}', "'dog'"),
        ("b.json", b'{"label": [1, 2]}', "[1, 2]"),
        ("b.json", b'{"label": true}', "True"),
        ("b.json", b'{"label": -3}', "-3"),
        ("b.json", b'{"label": 2147483648}', "2147483648"),
        ("b.json", b'{"label": "%s"}' % (b"x" * 99), f"'{'x' * 28}..."),
    ],
)
def test_labels_that_are_no_class_numbers_are_left_out_and_told(name, text, shown, tmp_path):
    files = [("a.jpg", b"x"), ("a.cls", b"1"), ("b.jpg", b"x"), (name, text)]
    samples = TarDataset(write(tmp_path / "x.tar", files))
    assert samples.labels.tolist() == [1, -1]
    assert samples.unlabelled == (
        "1 of 2 labels are not class numbers, "
        f"the first {shown} of '{name}' in {tmp_path / 'x.tar'}"
    )


def test_labels_where_both_kinds_are(tmp_path):
    files = [("a.jpg", b"x"), ("a.json", b'{"label": 3}'), ("a.cls", b" 5\n")]
    files += [("b.json", b'{"caption": "no label"}'), ("b.jpg", b"x")]
    files += [("c.seg.png", b"x"), ("c.jpg", b"x"), ("c.json", b"[1]"), ("index.json", b"{}")]
    samples = TarDataset(write(tmp_path / "x.tar", files))
    assert samples.labels.tolist() == [5, -1, -1]
    assert [samples.name(i).split(": ")[1] for i in range(3)] == ["a.jpg", "b.jpg", "c.jpg"]


def test_a_huge_member_is_refused(tmp_path):
    path = tmp_path / "x.tar"
    member = tarfile.TarInfo("a.jpg")
    member.size = 2**28 + 1
    with open(path, "wb") as file:
        file.write(member.tobuf())
        file.truncate(512 + 2**28 + 512 + 1024)  # sparse
    with pytest.raises(BadDataError, match="268435457 bytes, at most 268435456"):
        TarDataset(path)


def test_bad_images_are_named(photos, tmp_path):
    whole = photos[0].read_bytes()
    files = [
        ("good.jpg", whole),
        ("cut.jpg", whole[:-400]),
        ("page.jpg", b"<html>404</html>"),
        ("long.jpg", whole[:2] + b"\xff\xe1\xff\xf0" + bytes(0xFFEE) + whole[2:]),
        ("line\nbreak.jpg", b""),
    ]
    samples = TarDataset(write(tmp_path / "x.tar", files))
    assert samples.sizes(np.array([0])).tolist() == samples.sizes(np.array([3])).tolist()
    assert np.array_equal(samples.decode(0), samples.decode(3))
    for sample, words in ((1, "cut.jpg"), (2, "an HTML or XML page"), (4, r"line\\nbreak")):
        with pytest.raises(BadSampleError, match=words) as caught:
            samples.decode(sample)
        assert caught.value.sample == sample and "\n" not in str(caught.value)
    for sample in (2, 4):
        with pytest.raises(BadSampleError):
            samples.sizes(np.array([sample]))
        with pytest.raises(BadSampleError):
            samples.read(sample)


@pytest.mark.parametrize(
    ("name", "workers"), [("native", 2), ("reference", 0), ("reference", 2), ("dali", 2)]
)
def test_loaders_give_what_they_give_for_a_folder(name, workers, shards, photos, tmp_path):
    """The photos, named so that they have the same order, in a flat folder."""
    for i, photo in enumerate(photos):
        (tmp_path / f"{i:06d}.jpg").write_bytes(photo.read_bytes())
    crop = Crop("random_resized", 48, flip=0.5)

    def batches(samples):
        order = Sampler(len(samples), 8, seed=3)
        spec = LoaderSpec(samples, order, crop, 3, torch.device("cpu"), workers)
        loader = build_loader(name, spec)
        found = [*loader, *loader]
        loader.close()
        return found

    folder, shard = batches(FolderDataset(tmp_path)), batches(open_dataset(shards))
    assert len(folder) == len(shard) == 6
    for a, b in zip(folder, shard, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.index, b.index)
        assert torch.equal(a.flips, b.flips)
    assert {int(label) for batch in shard for label in batch.labels} == {-1, 0, 1, 2, 3, 4}


def test_few_files_are_open_at_a_time(shards, monkeypatch):
    monkeypatch.setattr("fastrot.data.tar.dataset._OPEN_FILES", 2)
    samples = TarDataset(shards)
    before = len(os.listdir("/proc/self/fd"))
    expected = [bytes(samples.read(i).data) for i in range(len(samples))]
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    wrong = []

    def read(seed):
        for i in np.random.default_rng(seed).integers(0, len(samples), 300).tolist():
            if bytes(samples.read(i).data) != expected[i]:
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_a_copy_in_another_process_reads_the_same(shards):
    samples = TarDataset(shards)
    first = bytes(samples.read(7).data)
    again = pickle.loads(pickle.dumps(samples))
    assert bytes(again.read(7).data) == first and again.digest == samples.digest


def test_a_shard_that_changes_in_use_is_noticed(photos, tmp_path):
    path = write(tmp_path / "x.tar", [(f"{i}.jpg", photos[i].read_bytes()) for i in range(8)])
    samples = TarDataset(path)
    order = Sampler(8, 4)
    spec = LoaderSpec(samples, order, Crop("whole", 32), 0, torch.device("cpu"), 0)
    loader = build_loader("reference", spec)
    assert len(list(loader)) == 2
    unopened = pickle.loads(pickle.dumps(samples))
    os.utime(path, ns=(1, 1))
    with pytest.raises(BadDataError, match="changed while in use"):
        iter(loader)
    with pytest.raises(BadDataError, match="changed while in use"):
        unopened.read(0)
    loader.close()
