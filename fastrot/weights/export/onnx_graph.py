"""The backbone as an ONNX graph, which onnxruntime must compute as torch does before it is kept.

Input ``images``: (N, 3, H, W) float32, normalised; N, H and W are free. Output ``features``:
(N, D), and with the rotation head ``logits``: (N, 4).
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from torch import nn

from fastrot.errors import MismatchError, UsageError
from fastrot.models.backbones import RotationHead
from fastrot.weights.export.contents import Contents, Files

TOLERANCE = 1e-4
"""Largest difference between onnxruntime and torch, as a fraction of an output's largest value.
Both sum in float32 in their own order; a wrong weight or layer is far outside."""

_CHECKED = ((1, 0, 0), (3, 0, 0), (2, 5, 18))
"""Batches that are compared: images, and rows and columns beyond the trained resolution. Odd ones
change where strides and pooling windows end."""
_OPSET = 18


class _Graph(nn.Module):
    def __init__(self, what: Contents) -> None:
        super().__init__()
        self.backbone = what.backbone.model
        self.head = None
        if what.head is not None:
            self.head = RotationHead(self.backbone.num_features)
            self.head.fc.weight.data.copy_(what.head.weight)
            self.head.fc.bias.data.copy_(what.head.bias)
        self.eval().requires_grad_(False)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = self.backbone(images)
        return (features,) if self.head is None else (features, self.head(features))


def onnx_files(what: Contents, name: str) -> Files:
    """Return one graph with the preprocessing in its properties.

    Raises:
        UsageError: a package is missing.
        MismatchError: onnxruntime computes something else than torch.
    """
    onnx, runtime = _packages()
    graph = _Graph(what)
    outputs = ["features"] if what.head is None else ["features", "logits"]
    images = _images(what, *_CHECKED[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter itself
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            graph,
            (images,),
            dynamo=True,
            verbose=False,
            optimize=False,  # it would fold the weights
            opset_version=_OPSET,
            input_names=["images"],
            output_names=outputs,
            dynamic_shapes={"images": {0: "batch", 2: "height", 3: "width"}},
        )
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, what.metadata("head.fc"))
    proto.doc_string = "see the model card beside it"
    content: bytes = proto.SerializeToString()
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for batch in _CHECKED:
        given = _images(what, *batch)
        found = session.run(outputs, {"images": given.numpy()})
        for output, ours, theirs in zip(outputs, graph(given), found, strict=True):
            largest = ours.abs().max().clamp_min(1e-30)
            error = float((ours - torch.from_numpy(theirs)).abs().max() / largest)
            if not error <= TOLERANCE:
                raise MismatchError(
                    f"onnxruntime {runtime.__version__} computes other {output} than torch "
                    f"(off by {error:.1e} of the largest value, {TOLERANCE:g} is allowed); nothing "
                    "was written; install the versions of constraints.txt"
                )
    return {name: content}


def _images(what: Contents, count: int, rows: int, columns: int) -> torch.Tensor:
    side = what.backbone.resolution
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, side + rows, side + columns, generator=generator)


def _packages() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter is built on it
    except ImportError as error:
        raise UsageError(
            f"--to onnx: cannot be imported ({error}); pip install 'fastrot[export]'"
        ) from None
    return onnx, onnxruntime
