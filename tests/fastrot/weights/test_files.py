"""A weight file is what its bytes say: read under any name, or refused as what it is."""

from __future__ import annotations

import argparse
import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from fastrot.errors import BadDataError, UsageError
from fastrot.weights.files import read_weights
from fastrot.weights.load import load_backbone

TENSORS = {"conv1.weight": torch.arange(6.0).view(2, 3)}
ONNX = b"\x08\x07\x12\x07pytorch\x1a\x052.0.0:" + b"\0" * 100
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def torch_file(tree: Any = TENSORS, **how: Any) -> bytes:
    file = io.BytesIO()
    torch.save(tree, file, **how)
    return file.getvalue()


def archive(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, data in members.items():
            made.writestr(name, data)
    return file.getvalue()


def numpy_archive() -> bytes:
    file = io.BytesIO()
    np.savez(file, kernel=np.zeros(3))
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as made:
        made.addfile(tarfile.TarInfo("weights.pth"))
    return file.getvalue()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.pth.tar", "w.bin", "w"])
@pytest.mark.parametrize(
    "write",
    [
        lambda: save(TENSORS),
        torch_file,
        lambda: torch_file(_use_new_zipfile_serialization=False),
    ],
    ids=["safetensors", "torch", "old"],
)
def test_what_it_holds_decides_and_not_its_name(
    name: str, write: Callable[[], bytes], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(write())
    (tensor,) = read_weights(tmp_path / name).values()
    assert torch.equal(tensor, TENSORS["conv1.weight"])


def test_options_of_a_script_are_no_hindrance(tmp_path: Path) -> None:
    """As timm, DINO and torchvision's scripts keep them."""
    tree = {"state_dict": TENSORS, "args": argparse.Namespace(lr=0.1, opt="sgd")}
    (tmp_path / "w.pth").write_bytes(torch_file(tree))
    assert read_weights(tmp_path / "w.pth")["args"].lr == 0.1


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("w.safetensors", LFS, r"a git-lfs pointer \(run: git lfs pull\)"),
        ("w.pth", LFS, r"a git-lfs pointer \(run: git lfs pull\)"),
        ("w.pth", b"", "an empty file"),
        ("w.safetensors", b"", "an empty file"),
        ("w.pth", b"<!DOCTYPE html><html>404", "an HTML or XML page"),
        ("w.pth", b"\0" * 600, "zeros"),
        ("w.pth", b"\x89PNG\r\n\x1a\n", "a PNG image"),
        ("w.pth", b"\x93NUMPY\x01\0", r"a numpy file \(.npy\)"),
        ("w.pth", numpy_archive(), r"numpy arrays \(.npz\)"),
        ("w.pth", archive(readme=b"x"), "a zip archive.*unpack it"),
        ("w.pth", torch_file()[:700], "truncated or damaged"),
        ("w.pth", torch_file(_use_new_zipfile_serialization=False)[:-4], "truncated or damaged"),
        ("w.pth", save(TENSORS)[:-4], "not readable as safetensors.*truncated or damaged"),
        ("w.pth.gz", gzip.compress(torch_file()), "a gzip file.*unpack it first"),
        ("w.pth.tar", tarred(), "a tar archive.*unpack it"),
        ("w.pth", ONNX, "an ONNX graph"),
        ("w.onnx", b"\x08\x0a" + b"\0" * 90, "an ONNX graph"),
        ("model.ckpt.index", b"\0\1" * 90, "a TensorFlow checkpoint"),
        ("checkpoint", b'model_checkpoint_path: "model.ckpt-9"\n', "a TensorFlow checkpoint"),
        ("w.h5", b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        ("w.pth", torch_file(torch.nn.Linear(2, 2)), "more than tensors.*save its state dict"),
        ("w.safetensors", b"\xfe" * 90, "not readable as safetensors.*unknown bytes fe"),
    ],
)
def test_other_files_are_named(name: str, data: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadDataError, match=rf"^{tmp_path / name}: .*{what}") as caught:
        read_weights(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_folder_of_another_tool_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(save(TENSORS))
    with pytest.raises(UsageError, match=r"no checkpoint in this folder; name its model.safet"):
        load_backbone(tmp_path)
