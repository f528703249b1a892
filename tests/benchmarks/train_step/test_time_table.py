"""The kernel table: everything is counted once, and told by stage, phase and kind."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastrot.benchmarks.train_step.kernel_kinds import KINDS, kind_of
from fastrot.benchmarks.train_step.profile import STEP, read_trace
from fastrot.benchmarks.train_step.time_table import PHASES, TimeSlot, tabulate, time_table
from fastrot.config import ModelConfig
from fastrot.models.backbones import RotationModel, build_model
from fastrot.models.layers import use_batch_norm

CPU = torch.device("cpu")


class _Step:
    """A training step without loader."""

    def __init__(self, engine: str, passes: int = 1) -> None:
        self.model: RotationModel = build_model(ModelConfig(name="resnet18", width=16), seed=0)
        use_batch_norm(self.model, engine)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9, fused=True)
        self.images = torch.rand(8, 64, 64, 3).mul(255).byte()
        self.passes = passes
        self()

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        for _ in range(self.passes):
            views = self.images.permute(0, 3, 1, 2).float()
            F.cross_entropy(self.model(views), torch.arange(8) % 4).backward()
        self.optimizer.step()


@pytest.mark.parametrize("engine", ["torch", "fused"])
def test_every_stage_has_its_convolutions(engine: str, tmp_path: Path) -> None:
    step = _Step(engine)
    trace = tmp_path / "trace.json.gz"
    table = time_table(step, device=CPU, model=step.model, trace=trace)
    for stage in ("stem", "layer1", "layer2", "layer3", "layer4"):
        for phase in ("forward", "backward"):
            for kind in ("convolution", "batch norm"):
                assert table.share(stage=stage, phase=phase, kind=kind) > 0, (stage, phase, kind)
        assert table.share(stage=stage, phase="update") == 0
    assert table.share(stage="pool+head", kind="matmul") > 0
    assert table.share(stage="views", kind="copy/cast") > 0
    assert table.share(stage="optimizer", kind="optimizer") > 0
    assert table.stages()[:2] == ["views", "stem"] and table.stages()[-1] == "other"
    assert table.attributed > 0.75  # above 0.9, but for what else the machine does meanwhile
    for column, values in (("stage", table.stages()), ("phase", PHASES), ("kind", KINDS)):
        assert sum(table.share(**{column: value}) for value in values) == pytest.approx(1), column
    with gzip.open(trace) as file:
        events = json.load(file)["traceEvents"]
    (whole,) = (event for event in events if event.get("name") == STEP)
    assert table.total == pytest.approx(whole["dur"] / 1e6, rel=0.01)
    assert not step.model._forward_hooks and not step.model.backbone.layer1._forward_pre_hooks


def test_accumulated_passes_are_told_apart() -> None:
    step = _Step("torch", passes=2)
    table = time_table(step, device=CPU, model=step.model)
    assert table.attributed > 0.9
    assert table.share(stage="optimizer", kind="convolution") == 0
    assert table.share(stage="loss", kind="convolution") == 0
    assert table.share(stage="layer4", phase="backward", kind="convolution") > 0


def test_without_modules_the_kinds_remain() -> None:
    step = _Step("torch")
    table = time_table(step, device=CPU, model=None)
    assert {cell.stage for cell in table.seconds} <= {"step", "optimizer", "other"}
    assert table.share(kind="convolution", phase="backward") > 0.05
    assert table.share(kind="convolution", phase="forward") > 0.05
    assert sum(table.share(kind=kind) for kind in table.kinds()) == pytest.approx(1)


def _event(category: str, name: str, thread: int, start: float, length: float, **args: Any) -> Any:
    return {"ph": "X", "cat": category, "name": name, "tid": thread, "ts": start, "dur": length,
            "args": args}  # fmt: skip


def _launch(thread: int, start: float, correlation: int, name: str = "cudaLaunchKernel") -> Any:
    return _event("cuda_runtime", name, thread, start, 1, correlation=correlation)


def _gpu_trace() -> dict[str, Any]:
    """As torch writes it for a GPU: the backward pass has its own thread, kernels run later."""
    evaluate = "autograd::engine::evaluate_function: "
    conv = {"Sequence number": 7}
    norm = {"Sequence number": 8}
    host = [
        _event("user_annotation", STEP, 1, 0, 200),
        _launch(1, 2, 10, "cuLaunchKernelEx"),  # views: Triton, in no operation
        _event("user_annotation", "fastrot.model", 1, 10, 40),
        _event("user_annotation", "fastrot.stage:stem", 1, 11, 20),
        _event("cpu_op", "aten::conv2d", 1, 12, 8, **conv),
        _event("cpu_op", "aten::cudnn_convolution", 1, 13, 6),
        _launch(1, 14, 11),
        _launch(1, 16, 12),
        _event("cpu_op", "fastrot::batch_norm", 1, 22, 6, **norm),
        _launch(1, 23, 13, "cuLaunchKernelEx"),
        _event("cpu_op", evaluate + "GeneratedBackwardFor_fastrot_batch_norm_default", 2, 60, 9,
               **norm),
        _launch(2, 62, 14),
        _event("cpu_op", evaluate + "ConvolutionBackward0", 2, 70, 20, **conv),
        _event("cpu_op", "ConvolutionBackward0", 2, 71, 12, **conv),
        _launch(2, 72, 15),
        _event("cpu_op", "aten::add", 2, 84, 3),
        _launch(2, 85, 16),
        _event("cpu_op", evaluate + "torch::autograd::AccumulateGrad", 2, 92, 4),
        _launch(2, 93, 17),
        _event("user_annotation", "Optimizer.step#SGD.step", 1, 110, 20),
        _launch(1, 111, 18),
    ]  # fmt: skip
    kernels = {
        10: ("_rotate_views_kernel", 1),
        11: ("void cudnn::nchwToNhwcKernel", 2),
        12: ("sm90_xmma_fprop_implicit_gemm", 4),
        13: ("_normalise_kernel", 8),
        14: ("_sums_kernel", 16),
        15: ("cutlass_tensorop_bf16_gemm", 32),
        16: ("vectorized_elementwise_kernel<CUDAFunctor_add>", 64),
        17: ("vectorized_elementwise_kernel<CUDAFunctor_add>", 128),
        18: ("multi_tensor_apply_kernel", 256),
        99: ("some_kernel", 512),
    }
    device = [
        _event("kernel", name, 7, 300 + number, micros, correlation=number)
        for number, (name, micros) in kernels.items()
    ]
    annotation = _event("gpu_user_annotation", STEP, 7, 300, 9999)
    return {"traceEvents": [*host, *device, annotation, {"ph": "M", "name": "process_name"}]}


def test_kernels_of_a_gpu_belong_to_the_operation_that_started_them() -> None:
    table = tabulate(read_trace(_gpu_trace()), by_module=True)
    assert table.device == "cuda"
    micros = {cell: round(1e6 * seconds) for cell, seconds in table.seconds.items()}
    assert micros == {
        TimeSlot("views", "forward", "rotate"): 1,
        TimeSlot("stem", "forward", "copy/cast"): 2,
        TimeSlot("stem", "forward", "convolution"): 4,
        TimeSlot("stem", "forward", "batch norm"): 8,
        TimeSlot("stem", "backward", "batch norm"): 16,
        TimeSlot("stem", "backward", "convolution"): 32,
        TimeSlot("stem", "backward", "elementwise"): 64 + 128,
        TimeSlot("optimizer", "update", "optimizer"): 256,
        TimeSlot("other", "step", "other"): 512,
    }
    assert table.attributed == pytest.approx(511 / 1023)


def test_a_replayed_graph_is_told_by_the_names_of_its_kernels() -> None:
    names = ["_rotate_views_kernel", "sm90_xmma_dgrad_implicit_gemm", "_gradient_kernel"]
    events = [_event("user_annotation", STEP, 1, 0, 99), _launch(1, 3, 5, "cudaGraphLaunch")]
    events += [_event("kernel", name, 7, 200, 10, correlation=5) for name in names]
    table = tabulate(read_trace({"traceEvents": events}), by_module=False)
    assert {cell: round(1e6 * seconds) for cell, seconds in table.seconds.items()} == {
        TimeSlot("step", "step", kind): 10 for kind in ("rotate", "convolution", "batch norm")
    }
    assert table.attributed == 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("void cudnn::bn_fw_tr_1C11_kernel_NCHW", "batch norm"),
        ("triton_red_fused__native_batch_norm_legit_functional_convolution_3", "batch norm"),
        ("triton_poi_fused_add_relu_5", "elementwise"),
        ("sm80_xmma_wgrad_implicit_gemm_indexed_bf16", "convolution"),
        ("void at::native::(anonymous namespace)::max_pool_backward_nhwc", "pooling"),
        ("nvjet_tst_128x64_64x8", "matmul"),
        ("Memcpy DtoD (Device -> Device)", "copy/cast"),
        ("aten::_fused_sgd_", "optimizer"),
        ("autograd::engine::evaluate_function: NativeBatchNormBackward0", "batch norm"),
        ("aten::nll_loss_forward", None),
    ],
)
def test_names_tell_the_kind(name: str, kind: str | None) -> None:
    assert kind_of(name) == kind


@pytest.mark.parametrize(("op", "kind"), [("batchnorm", "batch norm"), ("rotate", "rotate")])
def test_our_own_kernels_are_known_by_their_names(op: str, kind: str) -> None:
    folder = Path(__file__).resolve().parents[3] / "kernels" / op
    text = "".join(path.read_text() for path in sorted(folder.glob("triton*.py")))
    names = re.findall(r"@triton\.jit\ndef (\w+_kernel)\(", text)
    assert names and {kind_of(name) for name in names} == {kind}


def test_a_trace_without_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no range 'fastrot\.step' in the trace"):
        read_trace({"traceEvents": []})
