"""The settings of a run: typed, closed, documented field by field.

``load_config`` reads one YAML recipe (a path, or the name of a shipped recipe), applies
``key=value`` overrides and returns a frozen ``Config``. An unknown key is refused with the
nearest known one. The resolved configuration is saved with the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fastrot.errors import UsageError
from fastrot.system.yaml_config import (
    Override,
    Section,
    keys_of,
    load_settings,
    validate_tree,
)

LoaderName = Literal["auto", "native", "ffcv", "dali", "reference", "synthetic"]
ModelName = Literal["resnet18", "resnet34", "resnet50", "resnet101", "rotnet_nin"]
Mean = tuple[float, float, float]


class DataConfig(Section):
    """What is read and how each crop is drawn."""

    train: str | None = None
    """Training images: a .beton file or a folder of images (labels are not used)."""
    val: str | None = None
    """Held-out images for rotation accuracy and a quick kNN; null: no validation."""
    follow_symlinks: bool = False
    """Also follow symbolic links that lead out of a folder of images."""
    loader: LoaderName = "auto"
    """Loader that reads the data; auto chooses the fastest one that works here and reports it."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Decoding processes or threads per rank; null: as many as the cores this process may use."""
    resolution: Annotated[int, Field(ge=8, le=4096)] = 224
    """Side of a crop in pixels."""
    progressive: tuple[tuple[int, int], ...] = ()
    """Pairs of [first epoch, side]: training crops grow to resolution, which validation uses from
    the start. Empty: training uses it from the start, too."""
    crop: Literal["random_resized", "padded", "center", "whole"] = "random_resized"
    """How training crops are drawn (fastrot/data/sampling/crops.py describes each)."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest fraction of the image area in a random_resized crop."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of a random_resized crop."""
    padding: Annotated[int, Field(ge=0)] = 4
    """Black border of a padded crop, in output pixels; at most resolution."""
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability of a horizontal flip before the rotation."""
    val_crop: Literal["center", "whole"] = "center"
    """How validation crops are drawn."""
    val_resize: Annotated[int, Field(ge=8)] = 256
    """Length of the short side before the centre crop of validation, in pixels."""
    mean: Mean = (0.485, 0.456, 0.406)
    """Per-channel mean to subtract, in [0, 1] (ImageNet)."""
    std: Mean = (0.229, 0.224, 0.225)
    """Per-channel standard deviation to divide by, in [0, 1] (ImageNet)."""
    order: Literal["random", "sequential", "block"] = "random"
    """Order of the samples within an epoch. block: random, but neighbours in the file are read
    together; meant for files larger than memory; it needs 1 to 2 GiB of memory."""
    checksums: bool = True
    """Check each sample's bytes against the .beton manifest while reading."""
    exact_decode: bool = False
    """native loader: decode every crop at full resolution. Otherwise, crops at least twice as large
    as the resolution are first shrunk in the DCT domain, which is faster and slightly softer: such
    a crop differs by 1 to 5 levels of 255 on average, and by 17 in the worst case."""
    on_bad_sample: Literal["fail", "skip"] = "fail"
    """fail: name the sample and stop (exit code 65). skip: replace it by another sample, chosen
    deterministically, count it, and list it in bad_samples.jsonl."""
    max_bad: Annotated[int, Field(ge=0)] = 100
    """With on_bad_sample=skip: stop (65) after more than this many different bad samples."""

    @model_validator(mode="after")
    def _ranges(self) -> DataConfig:
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise ValueError(
                    f"data.{name}={[low, high]} must be two increasing positive values"
                )
        if self.scale[1] > 1:
            raise ValueError(
                f"data.scale={list(self.scale)} must not exceed 1 (the whole image): give shares, "
                "not percentages"
            )
        epochs = [epoch for epoch, _ in self.progressive]
        if epochs and (epochs[0] != 0 or epochs != sorted(set(epochs))):
            raise ValueError(f"data.progressive: epochs {epochs} must increase from 0")
        if epochs and (
            self.progressive[-1][1] != self.resolution
            or min(side for _, side in self.progressive) < 8
        ):
            raise ValueError(
                f"data.progressive={[list(each) for each in self.progressive]}: sides must be at "
                f"least 8, and the last one must be data.resolution={self.resolution}"
            )
        if min(self.std) <= 0:
            raise ValueError(f"data.std={list(self.std)} must be positive")
        if self.padding > self.resolution:  # a crop may then hold nothing of the image
            raise ValueError(
                f"data.padding={self.padding} must not exceed data.resolution={self.resolution}; "
                "lower it"
            )
        return self


class PretextConfig(Section):
    """The rotation task."""

    views: Literal["all", "one"] = "all"
    """all: the four rotations of every crop (RotNet, MMSelfSup). one: one random rotation of every
    crop, drawn after crop and flip (VISSL draws it before them)."""


class ModelConfig(Section):
    """The backbone."""

    name: ModelName = "resnet50"
    """Architecture; ResNet parameters are named as in torchvision."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """imagenet: 7x7 stride 2 and a max pool. small: 3x3 stride 1, no pool (32 px images)."""
    width: Annotated[int, Field(ge=8)] = 64
    """Channels of the first stage (ResNets); 64 is the published width."""
    blocks: Annotated[int, Field(ge=3, le=5)] = 4
    """Number of blocks of rotnet_nin; the published RotNet has 4."""
    sync_bn: bool = True
    """Share batch-norm statistics between the GPUs of a distributed run."""


class OptimConfig(Section):
    """The optimizer and its rate. Durations are in epochs and converted to steps in one place."""

    name: Literal["sgd", "lars"] = "sgd"
    """lars: SGD whose rate is scaled per layer by the norms of weight and gradient, for batches of
    thousands of images (You et al., 2017)."""
    trust_coefficient: Annotated[float, Field(gt=0)] = 0.001
    """lars: how large the step of a layer may be, relative to its weights."""

    learning_rate: Annotated[float, Field(ge=0)] = 0.2
    """Peak learning rate, for the whole global batch (it is not rescaled)."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum coefficient."""
    nesterov: bool = False
    """Nesterov momentum."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Coefficient of the L2 penalty."""
    decay_norm_and_bias: bool = True
    """Whether weight decay also covers batch-norm parameters and biases (as published)."""
    schedule: Literal["step", "cosine", "constant"] = "step"
    """Shape of the learning rate after the warm-up."""
    milestones: tuple[float, ...] = (30, 50)
    """step: epochs at which the rate is multiplied by gamma."""
    gamma: Annotated[float, Field(gt=0)] = 0.1
    """step: factor at each milestone."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 5
    """Linear warm-up, step by step, in epochs."""
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Learning rate of step 0, as a fraction of the peak."""
    final_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """cosine: learning rate at the end, as a fraction of the peak."""

    @model_validator(mode="after")
    def _increasing(self) -> OptimConfig:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"optim.milestones={list(self.milestones)} must increase")
        return self


class TrainConfig(Section):
    """How the run trains: its length, batch, hardware and checkpoints."""

    epochs: Annotated[float, Field(gt=0)] = 70
    """Length of the run in epochs (a fraction is allowed)."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many optimizer steps, whatever epochs says (the schedule is unchanged)."""
    global_batch: Annotated[int, Field(ge=1)] = 128
    """Source images per step over all ranks, before rotation (and four times as many views)."""
    micro_batch: Annotated[int, Field(ge=1)] | None = None
    """Largest number of source images in one micro-batch of a rank; if smaller than its share of
    global_batch, gradients are accumulated, which changes the batch that batch norm sees."""
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    """Seed of everything random: initial weights, order, crops, flips, rotations."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp64"] = "auto"
    """Autocast type. auto: bf16 on a GPU that has it, fp16 with loss scaling on an older one,
    fp32 on a CPU. fp64: the whole model in float64, for checking the arithmetic."""
    step: Literal["auto", "eager", "compile", "fused"] = "auto"
    """How a step is computed; all train the same. eager: torch's operations, one by one. compile:
    torch.compile. fused: batch norm, residual and ReLU as one operation. auto chooses the fastest
    one that works here and reports it."""
    batchnorm: Literal["auto", "torch", "fused", "apex"] = "auto"
    """Implementation of batch norm. auto: what the step implies. apex: NVIDIA apex built from
    source, for comparison (fp16, one GPU)."""
    cuda_graph: bool | None = None
    """Record the whole step as a CUDA graph; null: for compile and fused, on one GPU."""
    channels_last: bool = True
    """Keep weights and activations in NHWC memory order."""
    deterministic: bool = False
    """Use only deterministic kernels on a GPU (slower); a CPU run is deterministic anyway."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Torch threads; null: the cores this process may use, shared between the ranks."""
    deadline_seconds: Annotated[float, Field(ge=1)] = 120.0
    """Longest wait for another rank; then the run names the missing one and ends (exit code 69).
    Must be longer than the main rank takes to write a checkpoint."""
    log_seconds: Annotated[float, Field(gt=0)] = 2.0
    """Seconds between two progress lines (on a GPU, the host waits for it only then)."""
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 10.0
    """Minutes between two checkpoints; one is also written after every epoch's validation."""
    checkpoint_steps: Annotated[int, Field(ge=1)] | None = None
    """Also write a checkpoint every this many steps."""
    keep_checkpoints: Annotated[int, Field(ge=2)] = 3
    """Number of verified checkpoints to keep."""
    val_epochs: Annotated[float, Field(gt=0)] = 1.0
    """Epochs between two validations."""
    val_knn: Literal["auto", "never"] = "auto"
    """auto: a quick kNN at each validation if both datasets have at least two labelled classes."""
    sample_log: Literal["digest", "ids", "none"] = "digest"
    """What samples.jsonl records of each step: a 64-bit hash of its sample ids, or the ids."""


class SinksConfig(Section):
    """Where metrics go besides metrics.jsonl."""

    tensorboard: bool = True
    """Write TensorBoard event files into the run folder (skipped if it is not installed)."""
    wandb_project: str | None = None
    """Log to this Weights & Biases project (needs the package wandb)."""
    mlflow_experiment: str | None = None
    """Log to this MLflow experiment (needs the package mlflow)."""


class Config(Section):
    """Everything a run depends on."""

    data: DataConfig = DataConfig()
    pretext: PretextConfig = PretextConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    sinks: SinksConfig = SinksConfig()


def load_config(
    name_or_path: str | None, overrides: Sequence[Override] = (), *, recorded: bool = False
) -> Config:
    """Read a recipe, apply overrides and validate the result.

    Args:
        name_or_path: YAML file or name of a shipped recipe; None: the defaults.
        overrides: as for ``yaml_config.load_settings``.
        recorded: the file belongs to a run, so unlikely values were trained with: accept them.

    Raises:
        UsageError: unknown recipe, unknown key, or a value that breaks a rule.

    Example:
        >>> load_config(None, ["train.epochs=2"]).train.epochs
        2.0
    """
    config = load_settings(Config, name_or_path, overrides)
    if not recorded:
        _refuse_slips(config, name_or_path or "defaults")
    return config


def _refuse_slips(config: Config, where: str) -> None:
    """Refuse values that are possible but surely mistakes, such as those in another unit.

    Raises:
        UsageError: there is such a value.
    """
    data, optim = config.data, config.optim
    for name, values, low in (("mean", data.mean, "["), ("std", data.std, "(")):
        if min(values) < 0 or max(values) > 1:
            fix = f"it must be in {low}0, 1]"
            if min(values) >= 0 and 1 < max(values) <= 255:
                scaled = ",".join(f"{value / 255:.4g}" for value in values)
                fix += f", and these are in 0..255: divide by 255: --set 'data.{name}=[{scaled}]'"
            raise UsageError(f"{where}: data.{name}={list(values)}: {fix}")
    if optim.gamma > 1:
        raise UsageError(
            f"{where}: optim.gamma={optim.gamma:g}: the rate is multiplied by it at each "
            f"milestone, so it must not exceed 1: --set optim.gamma={1 / optim.gamma:g}"
        )


def validate(tree: dict[str, Any], where: str) -> Config:
    """Convert a tree of plain values to a ``Config``; one line names the first mistake."""
    return validate_tree(Config, tree, where)


def known_keys() -> list[str]:
    """Return all dotted keys that ``--set`` accepts."""
    return keys_of(Config)
