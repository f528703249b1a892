"""The ONNX graph holds our bits, computes what torch does, and is refused where it would not."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastrot.config import DataConfig
from fastrot.errors import MismatchError, UsageError
from fastrot.weights.export import onnx_graph
from fastrot.weights.export.contents import Contents
from fastrot.weights.export.run import ExportRequest, export
from fastrot.weights.load import load_backbone
from fastrot.weights.rotation_head import Head
from tests.fastrot.weights.networks import (
    NARROW,
    NIN,
    backbone_of,
    head_of,
    mmselfsup,
    random_model,
    rotnet,
    saved,
)


@pytest.fixture
def narrow(tmp_path: Path) -> Path:
    return saved(mmselfsup(random_model(NARROW)), tmp_path / "narrow.pth")


def needed() -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name)


def test_onnxruntime_computes_the_same_for_any_batch_and_size(narrow, tmp_path, monkeypatch):
    needed()
    import onnx

    report = export(
        ExportRequest(checkpoint=narrow, to="onnx", out=tmp_path / "out", with_head=True)
    )
    assert [path.name for path in report.files] == ["model.onnx", "README.md"]
    ours = random_model(NARROW)
    (block,) = re.findall(r"```python\n(.*?)```", report.files[1].read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path / "out")
    for shape in ((1, 3, 224, 224), (5, 3, 97, 40), (1, 3, 7, 301)):  # the export checks others
        views = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        names = {"images": views.numpy()}
        exec(block, names)
        (logits,) = names["session"].run(["logits"], {"images": views.numpy()})
        with torch.no_grad():
            for expected, found in (
                (ours.backbone(views), names["features"]),
                (ours(views), logits),
            ):
                error = (expected - torch.from_numpy(found)).abs().max() / expected.abs().max()
                assert error <= onnx_graph.TOLERANCE
    proto = onnx.load(report.files[0])
    sides = proto.graph.input[0].type.tensor_type.shape.dim
    assert [side.dim_param or side.dim_value for side in sides] == ["batch", 3, "height", "width"]
    assert "(N, 3, height, width), any N and size" in report.files[1].read_text()
    bits = {each.name: onnx.numpy_helper.to_array(each) for each in proto.graph.initializer}
    for name, tensor in backbone_of(ours).items():
        if not name.endswith("num_batches_tracked"):
            assert bits[f"backbone.{name}"].tobytes() == tensor.numpy().tobytes(), name
    assert bits["head.fc.weight"].tobytes() == head_of(ours)[0].numpy().tobytes()
    told = {each.key: each.value for each in proto.metadata_props}
    assert json.loads(told["preprocessing"])["std"] == [0.229, 0.224, 0.225]
    assert told["rotation_head"] == "head.fc"


def contents(path: Path, resolution: int) -> Contents:
    backbone = load_backbone(path)
    data = DataConfig(resolution=resolution)
    return Contents(replace(backbone, data=data, resolution=resolution), backbone.head, "unknown")


def test_rotnets_network_in_network_can_be_a_graph(tmp_path):
    needed()
    what = contents(saved(rotnet(random_model(NIN)), tmp_path / "net"), 32)
    assert list(onnx_graph.onnx_files(what, "nin.onnx")) == ["nin.onnx"]


def test_a_graph_that_computes_something_else_is_not_kept(narrow, monkeypatch):
    needed()
    what = contents(narrow, 32)
    assert isinstance(what.head, Head)
    whole = onnx_graph._Graph.forward

    def wrong_in_the_graph(self, images):
        features = whole(self, images)
        return tuple(out * 1.001 for out in features) if torch.compiler.is_exporting() else features

    monkeypatch.setattr(onnx_graph._Graph, "forward", wrong_in_the_graph)
    with pytest.raises(MismatchError, match=r"other features than torch \(off by 1\.0e-03 of"):
        onnx_graph.onnx_files(what, "model.onnx")


def test_a_graph_for_one_size_alone_is_not_kept(narrow, monkeypatch):
    """The second size that the export compares must be the one that fails."""
    needed()
    what = contents(narrow, 32)
    whole = onnx_graph._Graph.forward

    def of_one_size(self, images):
        rows = 1e-3 * images.shape[2] / 32 if torch.compiler.is_exporting() else 1e-3
        return tuple(out * (1 + rows) for out in whole(self, images))

    monkeypatch.setattr(onnx_graph._Graph, "forward", of_one_size)
    with pytest.raises(MismatchError, match=r"other features than torch \(off by 1\.6e-04 of"):
        onnx_graph.onnx_files(what, "model.onnx")


def test_a_missing_package_is_named_with_its_extra(narrow, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UsageError, match=r"--to onnx: .*pip install 'fastrot\[export\]'"):
        onnx_graph.onnx_files(contents(narrow, 32), "model.onnx")
