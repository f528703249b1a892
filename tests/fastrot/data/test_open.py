from __future__ import annotations

import pytest

from fastrot.data.beton_samples import BetonSamples
from fastrot.data.folder_samples import FolderSamples
from fastrot.data.open import open_samples
from fastrot.data.sample import write_digits
from fastrot.errors import BadDataError, UsageError


def test_the_path_decides(test_data, tmp_path):
    assert isinstance(open_samples(test_data("imagenette-128") / "val"), FolderSamples)
    train, _ = write_digits(tmp_path)
    samples = open_samples(train)
    assert isinstance(samples, BetonSamples) and samples.has_checksums
    assert not open_samples(train, checksums=False).has_checksums


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file, not a .beton"),
        (b"\xff\xd8\xff\xe0 and so on", "a JPEG image, not a .beton"),
        (b"<!DOCTYPE html><title>404</title>", "an HTML or XML page"),
        (b"PK\x03\x04 zip", "a zip archive"),
        (b"version https://git-lfs.github.com/spec/v1", "git-lfs pointer"),
        (b"\x02\x00 too short", "fewer than the header"),
    ],
)
def test_a_file_that_is_no_beton(tmp_path, content, message):
    path = tmp_path / "x.beton"
    path.write_bytes(content)
    with pytest.raises(BadDataError, match=message) as error:
        open_samples(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "coco-mini",
            r"coco-mini: COCO, not .* fastrot prepare \S+coco-mini OUT.beton --split train",
        ),
        ("voc-mini", r"voc-mini: PASCAL VOC, not .* OUT.beton --split trainval"),
    ],
)
def test_a_layout_with_lists_is_to_be_converted(test_data, name, message):
    with pytest.raises(UsageError, match=message):
        open_samples(test_data(name))


def test_wrong_paths(tmp_path):
    with pytest.raises(UsageError, match="no such file or folder"):
        open_samples(tmp_path / "nowhere.beton")
    with pytest.raises(BadDataError, match="holds no image"):
        open_samples(tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(b"x" * 3073)
    with pytest.raises(UsageError, match="fastrot prepare"):
        open_samples(tmp_path)
