"""An export never replaces anything, and is complete or absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastrot.errors import StorageError, UsageError
from fastrot.weights.export import place
from fastrot.weights.export.place import Place, find_place, write_files

FILES = {"model.safetensors": b"weights", "README.md": b"card"}


def find(out: Path, *, folder_only: bool = False) -> Place:
    return find_place(out, "timm" if folder_only else "torchvision", "model.safetensors",
                      folder_only=folder_only)  # fmt: skip


def test_the_suffix_decides_between_a_file_and_a_folder(tmp_path):
    file = find(tmp_path / "new" / "a.safetensors")
    assert (file.is_file, file.weights, file.card) == (True, "a.safetensors", "a.safetensors.md")
    write_files(file, {"a.safetensors": b"weights", "a.safetensors.md": b"card"})
    assert {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()} == {
        "a.safetensors": b"weights",
        "a.safetensors.md": b"card",
    }
    folder = find(tmp_path / "v1.5")
    assert (folder.is_file, folder.weights, folder.card) == (False, *FILES)
    write_files(folder, FILES)
    assert {path.name: path.read_bytes() for path in (tmp_path / "v1.5").iterdir()} == FILES


def test_an_empty_folder_is_filled_with_the_usual_modes(tmp_path):
    (tmp_path / "out").mkdir()
    write_files(find(tmp_path / "out", folder_only=True), FILES)
    (tmp_path / "usual").touch()
    usual = (tmp_path / "usual").stat().st_mode
    assert {path.stat().st_mode for path in (tmp_path / "out").iterdir()} == {usual}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "usual"]


def test_what_is_there_is_never_replaced(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").touch()
    (tmp_path / "a.safetensors.md").touch()
    os.symlink("nowhere", tmp_path / "b.safetensors")
    with pytest.raises(UsageError, match="full: holds files already; remove it, or name another"):
        find(tmp_path / "full")
    with pytest.raises(UsageError, match="notes: is a file already"):
        find(tmp_path / "full" / "notes")
    with pytest.raises(UsageError, match=r"a\.safetensors\.md: exists already"):
        find(tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match=r"b\.safetensors: exists already"):
        find(tmp_path / "b.safetensors")


def test_a_name_of_another_format_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"writes a \.safetensors file, or a folder with it"):
        find(tmp_path / "a.pth")
    with pytest.raises(UsageError, match=r"--to timm writes a folder; name that, without \.safe"):
        find(tmp_path / "a.safetensors", folder_only=True)


def test_a_failure_in_the_middle_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    real = place.write_atomic

    def full_disk(path: Path, data: bytes) -> None:
        if path.name == "README.md":
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(place, "write_atomic", full_disk)
    with pytest.raises(StorageError, match=r"out: cannot be written \(No space left on device\)"):
        write_files(find(tmp_path / "out"), FILES)
    assert list(tmp_path.rglob("*")) == [tmp_path / "out"]


def test_a_failure_between_card_and_weights_leaves_no_card(tmp_path, monkeypatch):
    real = place.write_atomic

    def full_disk(path: Path, data: bytes) -> None:
        if path.suffix == ".safetensors":
            assert [each.name for each in tmp_path.iterdir()] == ["a.safetensors.md"]
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(place, "write_atomic", full_disk)
    files = {"a.safetensors": b"weights", "a.safetensors.md": b"card"}
    with pytest.raises(StorageError, match=r"a\.safetensors: cannot be written"):
        write_files(find(tmp_path / "a.safetensors"), files)
    assert list(tmp_path.iterdir()) == []


def test_files_that_appear_meanwhile_are_kept(tmp_path):
    found = find(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(StorageError, match="Directory not empty"):
        write_files(found, FILES)
    assert list(tmp_path.rglob("*")) == [tmp_path / "out", tmp_path / "out" / "mine"]
