"""A cache on disk is what was written into it, or it is refused with the reason."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from fastrot.errors import (
    BadDataError,
    FastrotError,
    MismatchError,
    StorageError,
    UsageError,
)
from fastrot.features.cache import FeatureCache, LayerInfo, what_is_wrong
from fastrot.features.writer import DONE, FeatureWriter
from tests.fastrot.features.written_cache import write_cache

FINGERPRINT = {
    "weights": "ab",
    "crop": {"kind": "center", "size": 224},
    "layers": ("layer4", "pool"),
}
N = 20


def arrays(seed: int = 0, *, crops: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = (N, crops) if crops else (N,)
    return {
        "layer4": rng.normal(size=(*shape, 8)).astype(np.float32),
        "pool": rng.normal(size=(*shape, 2)),
    }


def written(path: Path, **changed) -> FeatureCache:
    usual = {"features": arrays(), "labels": np.arange(N) % 3, "fingerprint": FINGERPRINT}
    return write_cache(path, **(usual | changed))


def fails(kind: type[FastrotError], match: str, call, *arguments, **named) -> None:
    with pytest.raises(kind, match=match) as caught:
        call(*arguments, **named)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("crops", [0, 3])
def test_what_is_written_is_read(crops, tmp_path):
    infos = {"layer4": LayerInfo(2, 2, 8, "published"), "pool": LayerInfo(2, 1, 2, "average")}
    written(tmp_path / "c", features=arrays(crops=crops), layers=infos, class_names=("a", "b", "c"))
    cache = FeatureCache.open(tmp_path / "c", expect=FINGERPRINT)
    assert list(cache.layers) == ["layer4", "pool"] and cache.layers == infos
    for name, values in arrays(crops=crops).items():
        found = cache.features(name)
        assert isinstance(found, np.memmap) and not found.flags.writeable
        assert np.array_equal(found, values.astype(np.float16))
        assert np.array_equal(np.load(tmp_path / "c" / f"{name}.npy"), found)
    assert cache.labels.dtype == np.int64 and cache.labels.tolist() == [i % 3 for i in range(N)]
    assert (cache.class_names, cache.crops, cache.num_samples) == (("a", "b", "c"), crops, N)


def test_many_labels_an_image_are_kept(tmp_path):
    labels = np.random.default_rng(0).integers(-1, 2, (N, 5)).astype(np.int8)
    cache = written(tmp_path / "c", labels=labels)
    assert cache.labels.dtype == np.int8 and np.array_equal(cache.labels, labels)


def test_another_identity_is_refused_by_its_fields(tmp_path):
    written(tmp_path / "c")
    now = {"weights": "cd", "crop": {"kind": "whole", "size": 224}, "layers": ["layer4", "pool"]}
    expected = (
        "holds different features: crop.kind: center -> whole; weights: ab -> cd; name another"
    )
    fails(MismatchError, expected, FeatureCache.open, tmp_path / "c", expect=now)
    more = FINGERPRINT | {"seed": None}
    fails(
        MismatchError, r"seed: \(absent\) -> null", FeatureCache.open, tmp_path / "c", expect=more
    )


# Damage


@pytest.mark.parametrize("name", ["layer4.npy", "pool.npy", "labels.npy"])
@pytest.mark.parametrize("size", [0, 5, 100, -1, -7])
def test_cut_arrays_are_refused(name, size, tmp_path):
    file = written(tmp_path / "c").path / name
    os.truncate(file, size if size >= 0 else file.stat().st_size + size)
    fails(BadDataError, f"{name}: ", FeatureCache.open, tmp_path / "c")


def test_changed_missing_and_foreign_arrays_are_refused(tmp_path):
    path = written(tmp_path / "c").path

    def refused(match: str) -> None:
        fails(BadDataError, match, FeatureCache.open, path)

    good = (path / "labels.npy").read_bytes()
    (path / "labels.npy").write_bytes(good[:-8] + bytes(8))
    refused("labels.npy: changed since it was written")
    (path / "labels.npy").write_bytes(good)
    for array, match in (
        (np.zeros((N, 8), np.float32), "type: the manifest says <f2, the file <f4"),
        (np.zeros((N + 1, 8), np.float16), r"shape: the manifest says \(20, 8\), the file \(21, 8"),
        (np.zeros((N, 8), np.float16, order="F"), "order: the manifest says C, the file Fortran"),
    ):
        np.save(path / "layer4.npy", array)
        refused(f"layer4.npy: {match}")
    (path / "layer4.npy").write_bytes(b"<html>")
    refused(r"layer4.npy: not a .npy file")
    (path / "layer4.npy").unlink()
    refused("layer4.npy: missing; extract again")


def test_a_pickle_in_place_of_an_array_is_not_opened(tmp_path):
    path = written(tmp_path / "c").path
    np.save(path / "pool.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    fails(BadDataError, "pool.npy: shape", FeatureCache.open, path)


def changed_manifest(path: Path, **fields) -> None:
    file = path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize(("fields", "what"), [
    ({"num_samples": 19}, "labels"), ({"num_samples": -1}, "num_samples"),
    ({"crops": 1.5}, "crops"),
    ({"identity": {"weights": "cd"}}, "digest"), ({"layers": {}}, "layers"),
    ({"layers": {"../../pool": {"channels": 1, "grid": 1, "dim": 1, "window": ""}}}, "layers"),
    ({"layers": {"pool": {"channels": 2, "grid": 2, "dim": 2, "window": ""}}}, "layers"),
    ({"labels": None}, "TypeError"), ({"class_names": [1, 2]}, "class_names"),
    ({"labels": {"shape": [N], "dtype": "|O", "xxh3_128": ""}}, "labels"),
])  # fmt: skip
def test_a_manifest_that_cannot_be_is_refused(fields, what, tmp_path):
    path = written(tmp_path / "c").path
    changed_manifest(path, **fields)
    fails(BadDataError, rf"manifest.json: damaged \({what}", FeatureCache.open, path)


def test_unreadable_manifests_are_refused(tmp_path):
    fails(UsageError, "no such feature cache", FeatureCache.open, tmp_path / "none")
    path = written(tmp_path / "c").path
    changed_manifest(path, format=99)
    fails(MismatchError, "format 99; this fastrot reads up to 1", FeatureCache.open, path)
    for text in (b"", b"{", b"[]", b"\xff\xfe", b'{"format": 1}'):
        (path / "manifest.json").write_bytes(text)
        fails(BadDataError, "manifest.json: (not JSON|damaged)", FeatureCache.open, path)
    (path / "manifest.json").unlink()
    fails(BadDataError, "unfinished, it has no manifest.json", FeatureCache.open, path)


@pytest.mark.parametrize(("value", "words"), [
    (1e5, "100000 is larger than float16 holds"), (np.nan, "nan is not"), (-np.inf, "-inf is not"),
])  # fmt: skip
def test_the_sample_with_a_value_that_is_not_finite_is_named(value, words):
    values = arrays()["layer4"]
    values[3, 5] = value
    assert f"layer 'a' of sample 17: {words}" in what_is_wrong(values, "a", first_sample=14)


# The writer


def begin(path: Path, **changed) -> None:
    usual = {
        "fingerprint": FINGERPRINT, "layers": {"pool": LayerInfo(2, 1, 2, "average")}, "samples": N,
        "crops": 0, "batch": 6,
    }  # fmt: skip
    FeatureWriter.begin(path, **(usual | changed))


def test_rows_survive_in_any_order_and_the_cache_is_the_same(tmp_path):
    values = arrays()["pool"].astype(np.float16)
    for folder, batches in (("a", [0, 1, 2, 3]), ("b", [3, 1, 0, 2])):
        for batch in batches:
            begin(tmp_path / folder, batch=6 if batch == batches[0] else 5)  # the first is kept
            with FeatureWriter(tmp_path / folder) as writer:
                assert batch in writer.missing()
                rows = values[batch * 6 : batch * 6 + 6]
                writer.write(batch, 0, {"pool": np.ascontiguousarray(rows)})
        with FeatureWriter(tmp_path / folder) as writer:
            cache = writer.finish(np.arange(N), None)
        assert np.array_equal(cache.features("pool"), values)
    names = [sorted(path.name for path in (tmp_path / folder).iterdir()) for folder in "ab"]
    assert names[0] == names[1] == ["labels.npy", "manifest.json", "pool.npy"]
    for name in names[0]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_unfinished_work_is_not_taken_for_a_cache(tmp_path):
    begin(tmp_path / "c")
    with FeatureWriter(tmp_path / "c") as writer:
        writer.write(0, 0, {"pool": np.zeros((6, 2), np.float16)})
        fails(BadDataError, "4 batches are missing|3 batches", writer.finish, np.arange(N), None)
    fails(BadDataError, "unfinished", FeatureCache.open, tmp_path / "c")
    other = FINGERPRINT | {"weights": "cd"}
    fails(MismatchError, "weights: ab -> cd", begin, tmp_path / "c", fingerprint=other)


def test_damaged_records_of_unfinished_work_are_refused(tmp_path):
    begin(tmp_path / "c")
    with FeatureWriter(tmp_path / "c") as writer:
        (tmp_path / "c" / DONE).write_bytes(b"\7\0\0\0")
        fails(BadDataError, "done.bin: damaged", writer.missing)
        os.truncate(tmp_path / "c" / DONE, 2)
        fails(BadDataError, "done.bin: damaged", writer.missing)
    os.truncate(tmp_path / "c" / "pool.npy", 100)
    fails(BadDataError, "pool.npy: wrong size", FeatureWriter, tmp_path / "c")
    (tmp_path / "c" / "unfinished.json").write_bytes(b"{")
    fails(BadDataError, "unfinished.json: damaged", FeatureWriter, tmp_path / "c")


@pytest.mark.parametrize("name", ["../a", "labels"])
def test_a_layer_must_have_a_name_for_a_file(name, tmp_path):
    fails(UsageError, f"layer '{name}': a name has up to 64 letters", begin, tmp_path / "c",
          layers={name: LayerInfo(2, 1, 2, "average")})  # fmt: skip


def test_too_little_space_is_found_out_at_once(tmp_path):
    huge = {"pool": LayerInfo(10**6, 1, 10**6, "average")}
    fails(StorageError, r"GB are needed .* free; name another disk", begin, tmp_path / "c",
          layers=huge, samples=10**9)  # fmt: skip
    assert list((tmp_path / "c").iterdir()) == []
