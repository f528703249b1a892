"""The settings of an evaluation, one closed, documented tree per protocol, and its mode.

``load_protocol`` reads a YAML file of ``configs/eval`` (or the user's own) and applies
``section.key=value`` overrides, as for training recipes. Settings that differ from the published
ones are printed with the result. The mode decides how a linear probe's training rows are made.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from fastrot.errors import UsageError
from fastrot.evaluation.dense.settings import DenseConfig
from fastrot.evaluation.detection.settings import DetectionConfig
from fastrot.evaluation.segmentation.settings import SegmentationConfig
from fastrot.system.yaml_config import (
    Override,
    Section,
    load_settings,
    override_key,
    shipped_names,
)

FOLDER = "configs/eval"

Kind = Literal["svm", "lowshot", "linear", "knn", "detection", "segmentation"]
DENSE = ("detection", "segmentation")
"""Kinds of protocols that train a whole model."""

DataKind = Literal[
    "voc07",
    "imagenet",
    "places205",
    "inat18",
    "voc0712",
    "coco",
    "voc12aug",
    "cityscapes",
    "any",
]
Augment = Literal["none", "rrc", "rrc_jitter_lighting", "center_random"]
Layers = tuple[str, ...]

_MOST_CROPS = 10_000
_PUBLISHED_COSTS = (1.0, 10.0, 100.0, *(0.5**power for power in range(4, 20)))


class FeatureConfig(Section):
    """The features that are extracted from the backbone."""

    layers: Layers = ("stem", "layer1", "layer2", "layer3", "layer4")
    """Stages of the backbone, pooled with the published windows; pool: the global average."""
    transform: Literal["center", "squash"] = "center"
    """Transform of test images. center: short side to resize, then a centre crop. squash: the
    whole image to a square, whatever its aspect (the published SVM protocol)."""
    resolution: Annotated[int, Field(ge=8, le=4096)] | None = None
    """Side of a crop in pixels; null: the resolution that the backbone was trained at."""
    resize: Annotated[int, Field(ge=8)] | None = None
    """center: length of the short side before the crop, in pixels; null: 8/7 of the resolution,
    which is 256 at 224."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast type of the forward pass. auto: bf16 on a GPU that supports it, fp32 on a CPU."""

    @model_validator(mode="after")
    def _fits(self) -> FeatureConfig:
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise ValueError(f"features.layers={list(self.layers)} must name different layers")
        if self.resolution and self.resize and self.resize < self.resolution:
            raise ValueError(
                f"features.resize={self.resize} must be at least "
                f"features.resolution={self.resolution}, the side of the crop"
            )
        return self


class SvmConfig(Section):
    """L2-regularised squared-hinge SVMs, one class against the rest (protocols svm and lowshot)."""

    costs: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (
        _PUBLISHED_COSTS
    )
    """Values of C to try; ties go to the first (MMSelfSup: 1, 10, 100, 0.5^4 .. 0.5^19)."""
    folds: Annotated[int, Field(ge=2)] = 3
    """Stratified folds without shuffling; their mean AP chooses the cost of each class."""
    positive_weight: Annotated[float, Field(gt=0)] = 2.0
    """Factor of the cost of positive samples (class_weight {1: 2, -1: 1})."""
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    """Relative duality gap at which a problem counts as solved; for a library: its tolerance."""
    solver: Literal["fastrot", "sklearn", "cyanure"] = "fastrot"
    """Solver: fastrot, scikit-learn's LinearSVC, or cyanure, an optional package. At each cost
    their AP (from 0 to 1) agrees within 0.001 with svm.tolerance=1e-8; at 1e-6 two images with
    close outputs may change places, which counts where a class has few."""

    @model_serializer(mode="wrap")
    def _without_usual_solver(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit the default solver, so that results from before there was a choice stay the same."""
        settings: dict[str, Any] = serialise(self)
        if self.solver == "fastrot":
            settings.pop("solver", None)
        return settings


class LowshotConfig(Section):
    """SVMs on few images per class; the cost is chosen on the test set, as published."""

    shots: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (
        *(1, 2, 4, 8, 16, 32, 64, 96),
    )
    """Numbers of positive images per class."""
    draws: Annotated[int, Field(ge=1)] = 5
    """Independent samples of images."""
    negatives: Annotated[int, Field(ge=1)] = 19
    """Negative images per positive one."""
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    """Seed of fastrot's own draws."""
    targets: str | None = None
    """Folder of fixed public draws, train_targets_sample{1..5}_k{shots}.npy; null: own draws."""


class LinearConfig(Section):
    """Linear classifiers on frozen features, trained by SGD."""

    batchnorm: bool = True
    """Batch norm without affine parameters before each classifier, over channels of the map."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    """Initial learning rate; it is not scaled with the batch."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD momentum."""
    nesterov: bool = True
    """Nesterov momentum."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """L2 penalty."""
    batch: Annotated[int, Field(ge=2)] = 256
    """Images per step."""
    epochs: Annotated[int, Field(ge=1)] = 90
    """Length of the training in epochs."""
    milestones: tuple[int, ...] = (30, 60, 90)
    """Epochs at which the learning rate is multiplied by gamma."""
    gamma: Annotated[float, Field(gt=0)] = 0.1
    """Factor at each milestone."""
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    """Seed of weights, order, crops and jitter."""
    augment: Augment = "rrc_jitter_lighting"
    """Mode augmented. rrc: random resized crop and flip. rrc_jitter_lighting: also colour jitter
    (0.4, 0.4, 0.4) and lighting (0.1). center_random: a random crop of the centre square, and
    flip. none: the test transform."""
    report: Literal["last", "best"] = "last"
    """Epoch whose score is reported; best is chosen on the test set, as published for AvgPool."""
    subset: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Fraction of the training labels to use, balanced over the classes; null: all."""
    optimum: bool = False
    """Also report the exact optimum of L2-regularised softmax regression on each layer."""
    solver: Literal["fastrot", "torch", "sklearn", "cyanure"] = "fastrot"
    """optimum: who solves it: fastrot (Newton's method), torch.optim.LBFGS, scikit-learn's
    LogisticRegression, or cyanure, an optional package. All stop at the same duality gap
    (cyanure: at its own estimate) and agree within 0.1 point of accuracy."""
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    """optimum: relative duality gap at which a strength counts as solved."""
    strengths: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (
        *(1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6),
    )
    """optimum: candidates for s in the penalty s/2 |W|^2 of the mean loss, chosen by top-1 on a
    tenth of the training set; ties go to the first, and the intercept is not penalised."""

    @model_validator(mode="after")
    def _increasing(self) -> LinearConfig:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"linear.milestones={list(self.milestones)} must increase")
        return self


class KnnConfig(Section):
    """Weighted nearest neighbours by cosine similarity."""

    k: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (10, 20, 100, 200)
    """Numbers of neighbours that vote."""
    temperature: Annotated[float, Field(gt=0)] = 0.07
    """Temperature of a vote's weight, exp(similarity / temperature)."""


class EvalConfig(Section):
    """Everything an evaluation depends on besides weights and data."""

    protocol: str
    """Name of the protocol, under which published numbers are looked up."""
    kind: Kind
    """Evaluator to run."""
    data: DataKind = "any"
    """Dataset of the published numbers; any: no particular one."""
    features: FeatureConfig = FeatureConfig()
    svm: SvmConfig = SvmConfig()
    lowshot: LowshotConfig = LowshotConfig()
    linear: LinearConfig = LinearConfig()
    knn: KnnConfig = KnnConfig()
    dense: DenseConfig = DenseConfig()
    detection: DetectionConfig = DetectionConfig()
    segmentation: SegmentationConfig = SegmentationConfig()


def protocol_names() -> list[str]:
    """Return the names of the shipped protocols."""
    return shipped_names(FOLDER)


def load_protocol(name_or_path: str, overrides: Sequence[Override] = ()) -> EvalConfig:
    """Read a protocol, apply overrides, and validate.

    Args:
        name_or_path: YAML file or name of a shipped protocol.
        overrides: as for ``yaml_config.load_settings``.

    Raises:
        UsageError: the protocol or a key is unknown, a value breaks a rule, or a solver of the
            exact optimum is set without the optimum.

    Example:
        >>> load_protocol("voc07-svm", ["svm.folds=5"]).svm.folds
        5
    """
    config = load_settings(EvalConfig, name_or_path, overrides, folder=FOLDER, what="protocol")
    linear = config.linear
    if "solver" in linear.model_fields_set and not linear.optimum:
        raise UsageError(
            f"linear.solver={linear.solver} solves the exact optimum, which is not requested; the "
            "probes are trained by SGD; add --set linear.optimum=true, or drop the setting"
        )
    return config


def sections_read(kind: Kind) -> set[str]:
    """Return the sections of the settings that the evaluator of a kind reads."""
    return {kind, "dense" if kind in DENSE else "features", *(("svm",) * (kind == "lowshot"))}


def unread(overrides: Sequence[Override], read: Collection[str]) -> list[str]:
    """Return the keys of overrides whose sections are not read, and which so change nothing."""
    parts = [(key, key.partition(".")) for key in map(override_key, overrides)]
    return [key for key, (section, dot, _) in parts if dot and section not in {*read, "model"}]


class Mode(NamedTuple):
    """The way in which the training rows of a linear probe are made.

    Attributes:
        name: ``augmented`` (as published: each epoch decodes, crops and colours again), or
            ``cached-K`` (features of K random crops per image, used in turn; 0: the test
            transform).
        crops: K; None: augmented.
    """

    name: str
    crops: int | None

    @property
    def label(self) -> str:
        """Return the mode's name in results."""
        return "test transform" if self.crops == 0 else self.name


TEST_TRANSFORM = Mode("cached-0", 0)


def parse_mode(text: str) -> Mode:
    """Parse the name of a mode.

    Raises:
        UsageError: there is no such mode.

    Example:
        >>> parse_mode("cached-4").crops
        4
    """
    if text == "augmented":
        return Mode(text, None)
    kind, _, number = text.partition("-")
    if kind == "cached" and number.isdecimal() and int(number) <= _MOST_CROPS:
        return Mode(f"cached-{int(number)}", int(number))
    raise UsageError(f"unknown mode {text!r}; choose augmented, or cached-K for K crops per image")
