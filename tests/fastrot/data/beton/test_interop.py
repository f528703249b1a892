"""Both ways between our files and the real FFCV 1.0.2."""

from __future__ import annotations

import gc
import io
import signal
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastrot.data.beton import JPEG, RAW, BetonFile, BetonWriter, Field, Kind
from fastrot.data.beton.damage import find_damage
from fastrot.data.beton.dataset import BetonDataset
from fastrot.data.beton.format import record_dtype
from fastrot.errors import BadDataError


@cache
def ffcv():
    """FFCV, imported by the first test that needs it: that compiles for ten seconds, which not
    every worker that only collects these tests should spend."""
    pytest.importorskip("ffcv.fields.decoders")
    return sys.modules["ffcv"]


# numba complains about its own compiled functions when a loader is thrown away.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

PAGE = 2**21
COUNT = 40

BOX, IDS = (np.dtype("<f4"), (2, 3)), (np.dtype("<i8"), (2,))
OURS = {
    "image": Field("image", Kind.IMAGE),
    "label": Field("label", Kind.INT),
    "weight": Field("weight", Kind.FLOAT),
    "blob": Field("blob", Kind.BYTES),
    "box": Field("box", Kind.ARRAY, *BOX),
    "note": Field("note", Kind.JSON),
    "ids": Field("ids", Kind.TENSOR, *IDS),
}


def theirs(name: str, **image):
    return {
        "image": lambda: ffcv().fields.RGBImageField(**image),
        "label": ffcv().fields.IntField,
        "weight": ffcv().fields.FloatField,
        "blob": ffcv().fields.BytesField,
        "box": lambda: ffcv().fields.NDArrayField(*BOX),
        "note": ffcv().fields.JSONField,
        "ids": lambda: ffcv().fields.TorchTensorField(torch.int64, IDS[1]),
    }[name]()


class Photos:
    """Photos and a value for each other field; ``blob_sizes`` as given."""

    def __init__(self, folder: Path, names, *, varied: bool = False, blob_sizes=None) -> None:
        self.names = names
        self.blob_sizes = blob_sizes or [5 + i % 7 for i in range(COUNT)]
        self.images = []
        for i, path in enumerate(sorted(folder.rglob("*.jpg"))[:: 1000 // COUNT][:COUNT]):
            image = np.asarray(Image.open(path).convert("RGB"))
            self.images.append(np.ascontiguousarray(image[: 128 - i] if varied else image))

    def __len__(self) -> int:
        return len(self.images)

    def value(self, i: int, name: str):
        return {
            "image": lambda: self.images[i],
            "label": lambda: i % 10 - 1,
            "weight": lambda: i / 7,
            "blob": lambda: np.arange(self.blob_sizes[i], dtype=np.uint8) + np.uint8(i),
            "box": lambda: np.full(BOX[1], i / 3, np.float32),
            "note": lambda: {"i": i, "é": "\0 and ☃"},
            "ids": lambda: torch.tensor([i, -i]),
        }[name]()

    def __getitem__(self, i: int):
        return tuple(self.value(int(i), name) for name in self.names)


@pytest.fixture(scope="module")
def folder(test_data) -> Path:
    return test_data("imagenette-128") / "val"


def write_theirs(path: Path, photos: Photos, *, page_size=PAGE, workers=1, **image) -> Path:
    fields = {name: theirs(name, **image) for name in photos.names}
    writer = ffcv().writer.DatasetWriter(
        str(path), fields, page_size=page_size, num_workers=workers
    )
    previous = signal.signal(signal.SIGALRM, _too_slow)
    signal.alarm(60)
    try:
        writer.from_indexed_dataset(photos, chunksize=5)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    return path


def _too_slow(number, frame):
    raise TimeoutError("a worker of FFCV's writer died, and it waits for ever")


def copy(source: Path, path: Path) -> Path:
    """Write the contents of a file again, with our writer."""
    with (
        BetonFile.open(source) as file,
        BetonWriter(path, file.fields, capacity=len(file), page_size=PAGE) as writer,
    ):
        for i in range(len(file)):
            values = []
            for field in file.fields:
                if field.kind is not Kind.IMAGE:
                    values.append(file.value(i, field.name))
                    continue
                data = file.payload(i, field.name)
                if file.modes[i] == RAW:
                    data = np.frombuffer(data, np.uint8).reshape(file.heights[i], -1, 3)
                values.append(data)
            writer.add(*values)
        writer.commit()
    return path


# --- our reader, their files


@pytest.mark.parametrize("names", [
    ("image",), ("image", "label"), ("label", "image"), ("blob", "image", "label"),
    ("image", "label", "weight", "blob"), ("box", "ids", "note", "weight"), tuple(OURS),
])  # fmt: skip
def test_records_have_the_layout_of_ffcv(names):
    handlers = [theirs(name) for name in names]
    expected = ffcv().types.get_metadata_type(handlers)
    actual = record_dtype([OURS[name] for name in names])
    assert actual.itemsize == expected.itemsize
    assert [actual.fields[str(i)][1] for i in range(len(names))] == [
        expected.fields[f"f{i}"][1] for i in range(len(names))
    ]


@pytest.mark.parametrize(("image", "modes"), [
    ({"write_mode": "raw"}, {RAW}),
    ({"write_mode": "jpg", "jpeg_quality": 80}, {JPEG}),
    ({"write_mode": "smart"}, {RAW}),
    ({"write_mode": "smart", "smart_threshold": 128 * 3 * 100}, {RAW, JPEG}),
    ({"write_mode": "proportion", "compress_probability": 0.5}, {RAW, JPEG}),
    ({"write_mode": "jpg", "max_resolution": 96}, {JPEG}),
])  # fmt: skip
def test_every_image_mode_of_their_writer_is_read(tmp_path, folder, image, modes):
    photos = Photos(folder, ["image", "label"], varied=True)
    path = write_theirs(tmp_path / "x.beton", photos, workers=2, **image)
    samples = BetonDataset(path)
    assert set(samples.file.modes) == modes
    assert samples.labels.tolist() == [i % 10 - 1 for i in range(COUNT)]
    for i, source in enumerate(photos.images):
        if "max_resolution" in image:
            source = ffcv().fields.rgb_image.resizer(source, 96)
        if samples.file.modes[i] == RAW:
            np.testing.assert_array_equal(samples.decode(i), source)
        else:
            quality = image.get("jpeg_quality", 90)
            data = ffcv().fields.rgb_image.encode_jpeg(source, quality).tobytes()
            assert samples.read(i).data == data
            expected = np.asarray(Image.open(io.BytesIO(data)))
            np.testing.assert_array_equal(samples.decode(i), expected)


@pytest.mark.parametrize(("page_size", "workers"), [(2**21, 1), (2**21, 3), (2**22, 2), (2**23, 2)])
def test_every_field_type_of_their_writer_is_read(tmp_path, folder, page_size, workers):
    photos = Photos(folder, list(OURS))
    path = write_theirs(tmp_path / "x.beton", photos, page_size=page_size, workers=workers)
    with BetonFile.open(path) as file:
        assert file.page_size == page_size
        assert file.fields == tuple(OURS.values())
        assert find_damage(file, None, workers=0) == {}
        for i in range(COUNT):
            for name in photos.names[1:]:
                expected = photos.value(i, name)
                expected = bytes(expected) if name == "blob" else expected
                np.testing.assert_array_equal(file.value(i, name), expected)


@pytest.mark.parametrize("names", [["blob"], ["blob", "image"], ["image", "label", "blob"]])
def test_their_empty_byte_strings_are_read(tmp_path, folder, names):
    """FFCV lets them share the pointer of what comes next, or point before the data."""
    sizes = [0, 0, 3, 0, 2**20] * (COUNT // 5)
    photos = Photos(folder, names, blob_sizes=sizes)
    path = write_theirs(tmp_path / "x.beton", photos)
    with BetonFile.open(path) as file:
        assert file.sizes("blob").tolist() == sizes
        assert find_damage(file, None, workers=0) == {}
        for i in range(COUNT):
            assert file.value(i, "blob") == bytes(photos.value(i, "blob"))


def test_file_that_their_writer_did_not_finish_is_refused(tmp_path, folder, monkeypatch):
    def disk_full(self, allocations):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ffcv().writer.DatasetWriter, "finalize", disk_full)
    with pytest.raises(OSError, match="No space"):
        write_theirs(tmp_path / "x.beton", Photos(folder, ["image", "label"]))
    taken = ffcv().reader.Reader(str(tmp_path / "x.beton"))
    assert len(taken.metadata) == COUNT  # FFCV takes it for good
    with pytest.raises(BadDataError, match="at byte 16: no allocation table: its writer was"):
        BetonFile.open(tmp_path / "x.beton")


# --- our files, their reader


def test_our_file_equals_theirs_byte_for_byte(tmp_path, folder):
    """One worker of theirs places data as we do (but may leave junk behind a full page)."""
    photos = Photos(folder, ["image", "label"], varied=True)
    for name, image in (("jpg", {"write_mode": "jpg"}), ("raw", {"write_mode": "raw"})):
        source = write_theirs(tmp_path / f"{name}.beton", photos, **image)
        ours = copy(source, tmp_path / f"{name}-ours.beton")
        assert ours.read_bytes() == source.read_bytes()


def test_their_reader_sees_what_we_wrote(tmp_path, folder):
    photos = Photos(folder, list(OURS), varied=True)
    source = write_theirs(tmp_path / "x.beton", photos, write_mode="proportion", workers=2)
    ours = copy(source, tmp_path / "ours.beton")
    reader, original = ffcv().reader.Reader(str(ours)), ffcv().reader.Reader(str(source))
    assert reader.num_samples == COUNT and reader.page_size == PAGE
    assert reader.field_names == original.field_names == list(OURS)
    assert [type(h) for h in reader.handlers.values()] == [
        type(h) for h in original.handlers.values()
    ]
    np.testing.assert_array_equal(reader.field_descriptors, original.field_descriptors)
    for name in ("mode", "width", "height"):
        np.testing.assert_array_equal(reader.metadata["f0"][name], original.metadata["f0"][name])
    for table in (reader.alloc_table, original.alloc_table):
        table.flags.writeable = True
        table.sort(order=["sample_id", "size"])
    np.testing.assert_array_equal(reader.alloc_table["size"], original.alloc_table["size"])


PIPELINES = {
    "image": "SimpleRGBImageDecoder",
    "label": "IntDecoder",
    "weight": "FloatDecoder",
    "blob": "BytesDecoder",
    "box": "NDArrayDecoder",
    "note": "BytesDecoder",
    "ids": "NDArrayDecoder",
}


def load(path: Path, names, *, os_cache: bool) -> dict[str, np.ndarray]:
    threads, decoders = torch.get_num_threads(), ffcv().fields.decoders
    try:
        loader = ffcv().loader.Loader(
            str(path),
            batch_size=COUNT // 4,
            num_workers=1,
            order=ffcv().loader.OrderOption.SEQUENTIAL,
            os_cache=os_cache,
            drop_last=False,
            pipelines={name: [getattr(decoders, PIPELINES[name])()] for name in names},
        )
        batches = [[np.array(column) for column in batch] for batch in loader]
        names = list(loader.pipeline_specs)
    finally:
        torch.set_num_threads(threads)
        # numba's finalizers run (and complain) here, not in the middle of some compilation,
        # which Python 3.11 does not bear.
        loader = None
        gc.collect()
    columns = [np.concatenate(column) for column in zip(*batches, strict=True)]
    return dict(zip(names, columns, strict=True))


@pytest.mark.slow
def test_their_loader_reads_our_file_as_theirs(tmp_path, folder):
    photos = Photos(folder, list(OURS), blob_sizes=[(3 * i) % 8 for i in range(COUNT)])
    source = write_theirs(tmp_path / "x.beton", photos, write_mode="proportion", workers=2)
    ours = copy(source, tmp_path / "ours.beton")
    assert ours.read_bytes() != source.read_bytes()
    expected, actual = (load(path, list(OURS), os_cache=True) for path in (source, ours))
    samples = BetonDataset(ours)
    assert {RAW, JPEG} == set(samples.file.modes)
    np.testing.assert_array_equal(actual["image"], expected["image"])
    for i in range(COUNT):
        # In their file, a box behind an empty byte string has the same pointer, gets the size 0
        # and comes out as whatever was in the buffer. In ours, every pointer is different.
        for name in ("label", "weight", "box", "ids"):
            value = np.asarray(photos.value(i, name)).reshape(actual[name][i].shape)
            np.testing.assert_array_equal(actual[name][i], value)
        size = photos.blob_sizes[i]  # behind it: what was in the buffer
        assert bytes(actual["blob"][i][:size]) == bytes(photos.value(i, "blob"))
        if samples.file.modes[i] == RAW:
            np.testing.assert_array_equal(actual["image"][i], samples.decode(i))
        else:  # they ask libjpeg for its fast inverse DCT
            difference = actual["image"][i].astype(int) - samples.decode(i)
            assert abs(difference).max() <= 12 and abs(difference).mean() < 2
        assert ffcv().fields.JSONField.unpack(actual["note"][i]) == photos.value(i, "note")


@pytest.mark.slow
def test_their_page_cache_reads_our_file(tmp_path, folder):
    photos = Photos(folder, ["image", "label"])
    path = write_theirs(tmp_path / "x.beton", photos, write_mode="raw")
    with BetonWriter(
        tmp_path / "ours.beton",
        [OURS["image"], OURS["label"]],
        capacity=500_000,  # room for many more: their pages count from the start of the file
        page_size=PAGE,
    ) as writer:
        for image, label in photos:
            writer.add(image, label)
        writer.commit()
    assert BetonFile.open(tmp_path / "ours.beton").data_pointers[0] == 6 * PAGE
    loaded = load(tmp_path / "ours.beton", photos.names, os_cache=False)
    np.testing.assert_array_equal(loaded["image"], photos.images)
    assert loaded["label"].ravel().tolist() == BetonDataset(path).labels.tolist()
