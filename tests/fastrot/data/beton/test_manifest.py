from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xxhash

from fastrot.data.beton import BetonFile, BetonWriter, Field, Kind, manifest
from fastrot.data.beton.format import HEADER, pack_descriptors
from fastrot.data.beton.manifest import Manifest
from fastrot.errors import BadDataError

FIELDS = [Field("image", Kind.IMAGE), Field("label", Kind.INT), Field("blob", Kind.BYTES)]
NAMES = ("cat", "čáp", "dog")


def write(path: Path, shade: int = 7, count: int = 5) -> Manifest:
    with BetonWriter(path, FIELDS, capacity=count, page_size=2**21) as writer:
        for i in range(count):
            writer.add(np.full((4, 5, 3), shade + i, np.uint8), i % 3, b"x" * i)
        return writer.commit(
            class_names=NAMES, source_hash="abc", made_by={"program": "test", "quality": 90}
        )


def load(path: Path) -> Manifest | None:
    with BetonFile.open(path) as file:
        return manifest.load(file)


@pytest.fixture
def beton(tmp_path) -> Path:
    write(tmp_path / "x.beton")
    return tmp_path / "x.beton"


def binary(beton: Path) -> Path:
    [path] = beton.parent.glob(f"{beton.name}.manifest-*.bin")
    return path


def test_manifest_comes_back_whole(tmp_path):
    written = write(tmp_path / "x.beton")
    loaded = load(tmp_path / "x.beton")
    assert loaded.class_names == NAMES
    assert loaded.source_hash == "abc"
    assert loaded.made_by == {"program": "test", "quality": 90}
    assert loaded.beton_bytes == (tmp_path / "x.beton").stat().st_size
    assert loaded.digest == written.digest
    np.testing.assert_array_equal(loaded.checksums, written.checksums)


def test_checksum_is_that_of_record_and_data_in_field_order(beton):
    raw = beton.read_bytes()
    with BetonFile.open(beton) as file:
        size = file.metadata.dtype.itemsize
        start = 24 + 3 * 1041 + 3 * size
        row = raw[start : start + size]
        pointers = [int(file.metadata[column]["ptr"][3]) for column in ("0", "2")]
        data = raw[pointers[0] : pointers[0] + 60] + raw[pointers[1] : pointers[1] + 3]
        assert manifest.load(file).checksums[3] == xxhash.xxh3_64_intdigest(row + data)
        assert file.checksum(3, file.payloads(3)) == xxhash.xxh3_64_intdigest(row + data)


def test_digest_covers_everything(beton):
    known = load(beton)
    others = [
        Manifest(known.structure, known.beton_bytes, known.checksums, **options)
        for options in (
            {},
            {"class_names": NAMES},
            {"class_names": ("cat", "dog", "čáp")},
            {"source_hash": "abc"},
            {"made_by": {"quality": 90}},
        )
    ]
    others.append(Manifest("0" * 32, known.beton_bytes, known.checksums))
    others.append(Manifest(known.structure, 1, known.checksums))
    others.append(Manifest(known.structure, known.beton_bytes, known.checksums ^ np.uint64(1)))
    assert len({known.digest, *(other.digest for other in others)}) == len(others) + 1


def test_no_manifest_is_no_error(beton):
    manifest.manifest_path(beton).unlink()
    assert load(beton) is None


def test_every_byte_of_the_manifest_counts(beton):
    for path in (manifest.manifest_path(beton), binary(beton)):
        good = path.read_bytes()
        for position in range(0, len(good), 7):
            damaged = bytearray(good)
            damaged[position] ^= 1 << position % 8
            path.write_bytes(damaged)
            try:
                loaded = load(beton)
            except BadDataError as error:
                assert re.search(r"restore it, or delete .* to read without", str(error)), error
                continue
            # Only white space between the values may be exchanged without effect.
            assert json.loads(damaged) == json.loads(good)
            assert loaded is not None
        path.write_bytes(good)
    assert load(beton).class_names == NAMES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ["a", "b", "c"]}, "do not match the hash"),
        ({"format": "other"}, "no field format="),
        ({"version": 2}, "version 2; it must be 1"),
    ],
)
def test_edited_manifest_is_refused(beton, change, message):
    path = manifest.manifest_path(beton)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BadDataError, match=f"not a sound manifest: .*{message}"):
        load(beton)


@pytest.mark.parametrize(
    "change",
    [
        {"num_samples": "5"},
        {"num_samples": True},
        {"class_names": "abc"},
        {"class_names": [1]},
        {"made_by": {"a": []}},
        {"structure_xxh3_128": "../../etc"},
        {"checksums_xxh3_128": "/" * 32},
        {"more": 1},
    ],
)
def test_manifest_of_wrong_types_is_refused_even_with_a_fitting_hash(beton, change):
    path = manifest.manifest_path(beton)
    document = json.loads(path.read_text()) | change
    del document["manifest_xxh3_128"]
    document["manifest_xxh3_128"] = manifest._document_hash(document)
    path.write_text(json.dumps(document))
    with pytest.raises(BadDataError, match="missing, unknown or of the wrong type"):
        load(beton)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "not a sound manifest"),
        (b"[]", "no field format="),
        (b"[" * 100_000, "not a sound manifest"),
        (b"\xff\xfe", "not a sound manifest"),
    ],
)
def test_files_that_are_no_manifest_are_refused(beton, contents, message):
    manifest.manifest_path(beton).write_bytes(contents)
    with pytest.raises(BadDataError, match=message):
        load(beton)


def test_manifest_of_another_file_is_refused(beton, tmp_path):
    for count, what in ((6, "its bytes"), (5, "its structure hash")):
        other = tmp_path / f"{count}.beton"
        with BetonWriter(other, FIELDS, capacity=count, page_size=2**21) as writer:
            for i in range(count):
                writer.add(np.zeros((3, 3, 3), np.uint8), i % 3, b"y")
            writer.commit()
        shutil.copy(manifest.manifest_path(beton), manifest.manifest_path(other))
        with pytest.raises(BadDataError, match=f"belongs to another file: {what}"):
            load(other)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (None, "is missing"),
        (bytes(39), "has 39 bytes but must have 40"),
        (bytes(41), "has 41 bytes but must have 40"),
        (b"x" * 40, "does not have the hash that the manifest states"),
    ],
)
def test_checksums_must_be_those_of_the_manifest(beton, contents, message):
    path = binary(beton)
    path.unlink()
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(BadDataError, match=rf"\.bin: {message}; restore it, or delete"):
        load(beton)


def test_manifest_moves_with_its_file(beton, tmp_path):
    (tmp_path / "moved").mkdir()
    for path in list(tmp_path.glob("x.beton*")):
        path.rename(tmp_path / "moved" / path.name.replace("x.beton", "y.beton"))
    assert load(tmp_path / "moved" / "y.beton").class_names == NAMES


def test_a_new_pair_leaves_nothing_of_the_old_one(beton):
    write(beton, shade=99, count=6)
    names = {path.name for path in beton.parent.iterdir()}
    assert names == {"x.beton", "x.beton.manifest.json", binary(beton).name}


def test_a_million_samples_load_at_once(tmp_path):
    n, path = 10**6, tmp_path / "x.beton"
    header = np.array([(2, 1, 2**21, n, 24 + 1041 + 8 * n)], HEADER)
    labels = np.arange(n, dtype="<i8")
    path.write_bytes(header.tobytes() + pack_descriptors([FIELDS[1]]) + labels.tobytes())
    with BetonFile.open(path) as file:
        checksums = np.arange(n, dtype=np.uint64)
        checksums[0] = file.checksum(0, {})
        manifest.stage(path, Manifest(file.structure, path.stat().st_size, checksums))
    manifest.promote(path)
    with BetonFile.open(path) as file:
        began = time.process_time()
        assert manifest.load(file).checksums[-1] == n - 1
        assert time.process_time() - began < 1


# --- a machine that stops, and a writer that is killed


def test_everything_is_on_disk_before_the_name_that_leads_to_it(beton, monkeypatch):
    """What a power cut leaves: names may be lost, never contents that a name leads to."""
    calls = []

    def record(name):
        real = getattr(os, name)

        def wrapped(first, *others, **options):
            if isinstance(first, int):
                what = Path(os.readlink(f"/proc/self/fd/{first}")).name
            else:
                what = Path(others[0] if others else first).name
            calls.append((name, re.sub(r"tmp-.*|\.[0-9a-f]{8}\.tmp$|-[0-9a-f]{16}", "~", what)))
            return real(first, *others, **options)

        monkeypatch.setattr(os, name, wrapped)

    for name in ("pwrite", "fsync", "rename"):
        record(name)
    write(beton, shade=99)
    calls = calls[calls.index(("pwrite", "x.beton.~")) :]
    folder = beton.parent.name
    assert list(dict.fromkeys(calls[: calls.index(("fsync", "x.beton.~"))])) == [
        ("pwrite", "x.beton.~")
    ]
    assert calls[calls.index(("fsync", "x.beton.~")) :] == [
        ("fsync", "x.beton.~"),
        ("fsync", ".x.beton.manifest~.bin~"),
        ("rename", "x.beton.manifest~.bin"),
        ("fsync", folder),
        ("fsync", ".x.beton.manifest.json.next~"),
        ("rename", "x.beton.manifest.json.next"),
        ("fsync", folder),
        ("rename", "x.beton"),
        ("fsync", folder),
        ("rename", "x.beton.manifest.json"),
        ("fsync", folder),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "scenario",
    [
        "replace",
        "resumable",
        *(pytest.param(name, marks=pytest.mark.chaos) for name in ("first", "same-structure")),
    ],
)
def test_a_writer_killed_at_any_call_leaves_the_old_pair_or_the_new_one(tmp_path, scenario):
    script = Path(__file__).with_name("kill_writer.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), scenario],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    [*killed, survivor] = outcomes
    assert all(outcome["killed"] for outcome in killed) and len(killed) > 20
    assert not survivor["killed"]
    new = survivor["after"]
    [old] = {outcome["after"] for outcome in killed} - {new}
    assert (old == "absent") == (scenario == "first")
    assert re.fullmatch("absent|[0-9a-f]{64}", old) and re.fullmatch("[0-9a-f]{64}", new)
    # The old state up to one call, the new one from there on.
    states = [outcome["after"] for outcome in outcomes]
    assert states == sorted(states, key=lambda state: state == new)
    for outcome in outcomes:  # the next writer finishes and cleans up, whatever it finds
        assert outcome["retried"] == new, outcome
        assert outcome["bytes"] == survivor["bytes"], outcome
        assert outcome["files"] == survivor["files"], outcome
    assert len(survivor["files"]) == 3
