from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fastrot.data.beton import BetonFile, BetonWriter, Field, Kind
from fastrot.data.beton.inspect import inspect
from fastrot.data.beton.manifest import manifest_path
from fastrot.data.beton.verify import verify
from fastrot.data.prepare.convert import prepare
from fastrot.data.prepare.options import PrepareRequest
from fastrot.errors import BadDataError, UsageError


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """700 noisy JPEGs in two classes: enough for verify to use processes."""
    folder = tmp_path_factory.mktemp("verify")
    rng = np.random.default_rng(0)
    for i in range(700):
        path = folder / "set" / "ab"[i % 2] / f"{i:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 20 + i % 3, 3), dtype=np.uint8)).save(path)
    prepare(
        PrepareRequest(folder / "set", folder / "good.beton", copy=True, workers=0, progress=False)
    )
    return folder / "good.beton"


@pytest.fixture
def copied(photos, tmp_path):
    """A copy of the file and of its manifest, to be damaged."""
    for path in photos.parent.glob("good.beton*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path / photos.name


def without_manifest(path):
    manifest_path(path).unlink()
    return path


def overwrite(path, sample, offset, data):
    """Change bytes of one sample's image."""
    with BetonFile.open(path) as file:
        place = int(file.data_pointers[sample]) + offset
    with open(path, "r+b") as raw:
        raw.seek(place)
        raw.write(data)


def text_of(report):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))
    report.show(console)
    return console.export_text()


@pytest.mark.parametrize("workers", [0, 2])
def test_sound_file(photos, workers):
    report = verify(photos, workers=workers, progress=False)
    assert report.exit_code == 0 and report.num_samples == 700 and report.has_manifest
    assert "sound; structure, checksums and pixels of 700 samples" in text_of(report)
    assert json.loads(json.dumps(report.to_json()))["ok"] is True


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_listed_with_their_reasons(copied, workers):
    overwrite(copied, 17, 300, b"\xff\xd9")
    overwrite(copied, 650, 0, b"<html>")
    report = verify(copied, workers=workers, progress=False)
    assert report.exit_code == 65
    assert [bad.sample for bad in report.bad_samples] == [17, 650]
    assert "checksum" in report.bad_samples[0].reason
    assert "BAD, 2 of 700 samples" in text_of(report)
    document = report.to_json()
    assert document["ok"] is False and document["bad_samples"][1]["sample"] == 650


def test_without_a_manifest_the_decoder_decides(copied):
    without_manifest(copied)
    overwrite(copied, 17, 400, b"\xff\xd9" * 20)  # ends the scan early: libjpeg warns
    report = verify(copied, progress=False)
    assert [bad.sample for bad in report.bad_samples] == [17]
    assert not report.has_manifest
    assert "no manifest" in text_of(report)


def test_broken_structure_and_foreign_manifest(copied):
    good = copied.read_bytes()
    copied.write_bytes(good[:-24])
    report = verify(copied, progress=False)
    assert report.exit_code == 65 and "allocation table" in report.error
    assert text_of(report) == f"{report.error}\n"
    copied.write_bytes(b"\xff\xd8\xff\xe0" + good[4:])
    report = verify(copied, progress=False)
    assert "JPEG" in report.error and text_of(report) == f"{report.error}\n"
    copied.write_bytes(good)
    manifest_path(copied).write_text("{}")
    report = verify(copied, progress=False)
    assert report.exit_code == 65 and "manifest" in report.error and not report.bad_samples


def test_missing_file_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        verify(tmp_path / "x.beton")


def test_a_folder_is_a_usage_error_that_says_what_to_type(photos, tmp_path):
    with pytest.raises(UsageError, match=r"a folder; .*fastrot verify .*/good\.beton$"):
        verify(photos.parent)
    with pytest.raises(UsageError, match=rf"fastrot prepare {tmp_path} OUT\.beton$"):
        verify(tmp_path)


def test_progress_counts_every_sample_once(photos, capsys):
    verify(photos, workers=2)
    assert "verify: 700/700" in capsys.readouterr().err


def test_a_negative_number_of_workers_is_a_usage_error(photos):
    with pytest.raises(UsageError, match=r"--workers=-3 must be at least 0"):
        verify(photos, workers=-3)


def test_every_field_type_is_checked(tmp_path):
    path = tmp_path / "f.beton"
    fields = [Field("image", Kind.IMAGE), Field("note", Kind.JSON), Field("raw", Kind.BYTES)]
    with BetonWriter(path, fields, capacity=3) as writer:
        for i in range(3):
            writer.add(np.full((4, 5, 3), i, np.uint8), {"i": i}, b"abc")
        writer.commit()
    assert verify(path, progress=False).exit_code == 0
    with BetonFile.open(path) as file:
        place = int(file.metadata["1"]["ptr"][1])
    with open(path, "r+b") as raw:
        raw.seek(place)
        raw.write(b"{{")
    without_manifest(path)
    report = verify(path, progress=False)
    assert [bad.sample for bad in report.bad_samples] == [1]
    assert "JSON" in report.bad_samples[0].reason
    contents = inspect(path)
    assert contents.images == {"jpg": 0, "raw": 3} and contents.labels is None
    assert "none: no checksums" in text_of(contents)


def test_inspect_tells_what_is_in_the_file(photos):
    contents = inspect(photos)
    assert contents.num_samples == 700
    assert contents.fields == (("image", "image"), ("label", "int"))
    assert contents.images == {"jpg": 700, "raw": 0}
    assert (contents.width.smallest, contents.width.largest) == (20, 22)
    assert contents.height.median == 24
    assert contents.labels == {0: 350, 1: 350} and contents.class_names == ("a", "b")
    assert contents.file_bytes == photos.stat().st_size
    text = text_of(contents)
    for part in ("700", "0 a", "1 b", "2 classes", "checksums", "fastrot"):
        assert part in text
    document = json.loads(json.dumps(contents.to_json()))
    assert document["width"]["largest"] == 22 and document["has_manifest"] is True


def test_inspect_names_what_is_no_beton(test_data):
    with pytest.raises(BadDataError, match="JPEG"):
        inspect(test_data("bad-inputs") / "hopper_gray.jpg")


def test_neither_command_imports_torch_or_sklearn():
    script = (
        "import sys, fastrot.data.beton.verify, fastrot.data.beton.inspect, fastrot.data.open, "
        "fastrot.data.prepare.convert, fastrot.data.digits\n"
        "print({'torch', 'sklearn', 'scipy', 'pandas', 'numba'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
