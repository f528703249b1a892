from __future__ import annotations

import io
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastrot.data.beton import BetonFile, BetonWriter, Field, Kind, manifest
from fastrot.data.beton.dataset import BetonDataset
from fastrot.data.dataset import BadSampleError
from fastrot.errors import BadDataError, UsageError

FIELDS = [Field("image", Kind.IMAGE), Field("label", Kind.INT), Field("blob", Kind.BYTES)]
COUNT = 12


def picture(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (20 + i, 31, 3), dtype=np.uint8)


def jpeg(i: int) -> bytes:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side: ignored in a .beton
    Image.fromarray(picture(i)).save(file, "JPEG", exif=exif)
    return file.getvalue()


def write(path: Path, fields=FIELDS, labels=None, **commit) -> Path:
    with BetonWriter(path, fields, capacity=COUNT, page_size=2**21) as writer:
        for i in range(COUNT):
            label = i % 3 if labels is None else labels[i]
            values = {
                "image": jpeg(i) if i % 2 else picture(i),
                "label": label,
                "fine": i,
                "blob": bytes(i),
            }
            writer.add(*(values[field.name] for field in fields))
        writer.commit(**commit)
    return path


@pytest.fixture
def beton(tmp_path) -> Path:
    return write(tmp_path / "x.beton", class_names=["a", "b", "c"])


def overwrite(path: Path, offset: int, data: bytes) -> None:
    """Change bytes, but neither size nor time, as a disk does."""
    status = path.stat()
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def payload_start(path: Path, sample: int) -> int:
    with BetonFile.open(path) as file:
        return int(file.data_pointers[sample])


def test_images_and_labels_come_back(beton):
    samples = BetonDataset(beton)
    assert len(samples) == COUNT
    assert samples.path == beton
    assert samples.class_names == ("a", "b", "c")
    assert samples.labels.dtype == np.int64
    assert samples.labels.tolist() == [i % 3 for i in range(COUNT)]
    assert not samples.applies_exif and samples.has_checksums
    assert samples.name(4) == f"{beton} sample 4"
    sizes = samples.sizes(np.array([3, 0]))
    assert sizes.dtype == np.int32 and sizes.tolist() == [[31, 23], [31, 20]]
    for i in range(COUNT):
        encoded = samples.read(i)
        assert (encoded.width, encoded.height) == (31, 20 + i)
        pixels = samples.decode(i)
        assert pixels.flags.writeable and pixels.dtype == np.uint8
        if i % 2:
            assert (encoded.kind, encoded.data) == ("file", jpeg(i))
            np.testing.assert_array_equal(pixels, np.asarray(Image.open(io.BytesIO(jpeg(i)))))
        else:
            assert encoded.kind == "raw"
            np.testing.assert_array_equal(pixels, picture(i))


def test_labels_where_there_are_none(tmp_path):
    assert set(BetonDataset(write(tmp_path / "x.beton", [FIELDS[0]])).labels) == {-1}
    path = write(tmp_path / "y.beton", labels=[-1] * COUNT)
    samples = BetonDataset(path)
    assert set(samples.labels) == {-1} and samples.class_names is None


def test_the_first_int_field_is_the_label(tmp_path):
    fields = [Field("label", Kind.INT), FIELDS[0], Field("fine", Kind.INT)]
    samples = BetonDataset(write(tmp_path / "x.beton", fields))
    assert samples.labels.tolist() == [i % 3 for i in range(COUNT)]


def test_label_without_a_class_name_is_refused(beton, tmp_path):
    manifest_of = manifest.manifest_path(beton)
    document = manifest._read_document(manifest_of)
    document["class_names"] = ["a", "b"]
    text = document | {"manifest_xxh3_128": manifest._document_hash(document)}
    manifest_of.write_text(manifest.json.dumps(text))
    with pytest.raises(BadDataError, match=r"sample 2: label 2 is not in \[0, 2\)"):
        BetonDataset(beton)


def test_file_without_images_is_refused(tmp_path):
    path = write(tmp_path / "x.beton", [FIELDS[1], FIELDS[2]])
    with pytest.raises(BadDataError, match="has no image field, only 'label', 'blob'"):
        BetonDataset(path)


def test_digest_identifies_the_content(beton, tmp_path):
    known = BetonDataset(beton).digest
    assert BetonDataset(beton, checksums=False).digest == known
    same = write(tmp_path / "same.beton", class_names=["a", "b", "c"])
    assert BetonDataset(same).digest == known
    other = write(tmp_path / "other.beton", class_names=["a", "b", "d"])
    assert BetonDataset(other).digest != known
    manifest.manifest_path(beton).unlink()
    bare = BetonDataset(beton).digest
    assert bare != known
    manifest.manifest_path(same).unlink()
    assert BetonDataset(same).digest == bare
    labels = write(tmp_path / "labels.beton", labels=[0] * COUNT)
    manifest.manifest_path(labels).unlink()
    assert BetonDataset(labels).digest != bare


@pytest.mark.parametrize("sample", [2, 3])  # raw, JPEG
def test_changed_bytes_are_a_bad_sample_and_only_that_one(beton, sample):
    overwrite(beton, payload_start(beton, sample) + 700, b"\x55\xaa")
    samples = BetonDataset(beton)
    for look in (samples.read, samples.decode):
        with pytest.raises(BadSampleError, match="do not match the manifest's checksum") as caught:
            look(sample)
        assert caught.value.sample == sample
        assert str(caught.value).startswith(f"bad sample {sample} ({beton} sample {sample}): ")
    for i in set(range(COUNT)) - {sample}:
        samples.decode(i)


def test_changed_bytes_of_another_field_count_too(beton):
    with BetonFile.open(beton) as file:
        pointer = int(file.metadata["2"]["ptr"][5])
    overwrite(beton, pointer, b"\x01")
    with pytest.raises(BadSampleError, match="checksum"):
        BetonDataset(beton).read(5)


def test_without_checksums_the_decoder_is_the_only_guard(beton):
    raw, jpg = payload_start(beton, 2), payload_start(beton, 3)
    overwrite(beton, raw, b"\x55")
    with BetonFile.open(beton) as file:
        half = int(file.data_sizes[3]) // 2
        overwrite(beton, jpg + half, bytes(half - 2))
    samples = BetonDataset(beton, checksums=False)
    assert not samples.has_checksums
    assert samples.decode(2)[0, 0, 0] == 0x55
    with pytest.raises(BadSampleError):
        samples.decode(3)


def test_pickled_copy_opens_the_same_file_later(beton, tmp_path):
    samples = BetonDataset(beton)
    data = pickle.dumps(samples)
    copy = pickle.loads(data)
    descriptors = len(os.listdir("/proc/self/fd"))
    np.testing.assert_array_equal(copy.labels, samples.labels)
    assert (len(copy), copy.digest) == (COUNT, samples.digest)
    assert len(os.listdir("/proc/self/fd")) == descriptors  # nothing opened so far
    np.testing.assert_array_equal(copy.decode(3), samples.decode(3))
    assert len(os.listdir("/proc/self/fd")) == descriptors + 1
    copy.close()
    write(tmp_path / "y.beton", class_names=["a", "b", "c"]).rename(beton)
    with pytest.raises(BadDataError, match="changed while in use"):
        pickle.loads(data).read(0)
    with pytest.raises(BadDataError, match="changed while in use"):
        samples.check_unchanged()


def test_many_threads_read_at_once(beton):
    samples = pickle.loads(pickle.dumps(BetonDataset(beton)))
    descriptors = len(os.listdir("/proc/self/fd"))
    ids = np.random.default_rng(0).integers(0, COUNT, 400).tolist()
    with ThreadPoolExecutor(8) as pool:
        for i, pixels in zip(ids, pool.map(samples.decode, ids), strict=True):
            assert pixels.shape == (20 + i, 31, 3)
            if i % 2 == 0:
                np.testing.assert_array_equal(pixels, picture(i))
    assert len(os.listdir("/proc/self/fd")) == descriptors + 1  # opened once


def test_forked_child_reads_without_disturbing_its_parent(beton):
    samples = BetonDataset(beton)
    expected = samples.decode(3)
    child = os.fork()
    if not child:
        code = 1
        try:
            code = 0 if all(samples.decode(i).shape[1] == 31 for i in range(COUNT)) else 2
        finally:
            os._exit(code)
    for _ in range(20):
        np.testing.assert_array_equal(samples.decode(3), expected)
    assert os.waitpid(child, 0)[1] == 0


def test_missing_file(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        BetonDataset(tmp_path / "none.beton")
