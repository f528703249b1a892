"""The settings of an evaluation, one closed, documented tree a protocol, and its mode.

``load_protocol`` reads one YAML of ``configs/eval`` (or a file of the user's) and applies
``section.key=value`` overrides, as recipes of training are read. A setting that leaves the
published value is printed with the result. The mode says how a linear probe's training rows are
made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from fastrot.errors import UsageError
from fastrot.system.yaml_config import (
    Override,
    Section,
    load_settings,
    shipped_names,
)

FOLDER = "configs/eval"

Kind = Literal["svm", "lowshot", "linear", "knn"]
DataKind = Literal["voc07", "imagenet", "places205", "inat18", "any"]
Augment = Literal["none", "rrc", "rrc_jitter_lighting", "center_random"]
Layers = tuple[str, ...]

_MOST_CROPS = 10_000
_PUBLISHED_COSTS = (1.0, 10.0, 100.0, *(0.5**power for power in range(4, 20)))


class FeatureConfig(Section):
    """What is taken from the backbone."""

    layers: Layers = ("stem", "layer1", "layer2", "layer3", "layer4")
    """Stages of the backbone, pooled with the published windows; pool: the global average."""
    transform: Literal["center", "squash"] = "center"
    """Of test images. center: short side to resize, centre crop. squash: the whole image to a
    square, its aspect lost (the published SVM protocol)."""
    resolution: Annotated[int, Field(ge=8, le=4096)] | None = None
    """Side of a crop in pixels; null: the one that the backbone was trained at."""
    resize: Annotated[int, Field(ge=8)] | None = None
    """center: length of the short side before the crop, in pixels; null: 8/7 of the resolution,
    which is 256 at 224."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast type of the forward pass. auto: bf16 on a GPU that has it, fp32 on a CPU."""

    @model_validator(mode="after")
    def _fits(self) -> FeatureConfig:
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise ValueError(f"features.layers={list(self.layers)} must name different layers")
        if self.resolution and self.resize and self.resize < self.resolution:
            raise ValueError(
                f"features.resize={self.resize} must be at least "
                f"features.resolution={self.resolution}, which is cut out of it"
            )
        return self


class SvmConfig(Section):
    """L2-regularised squared-hinge SVMs, one against the rest (protocols svm and lowshot)."""

    costs: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (
        _PUBLISHED_COSTS
    )
    """Values of C that are tried, ties go to the first (MMSelfSup: 1, 10, 100, 0.5^4 .. 0.5^19)."""
    folds: Annotated[int, Field(ge=2)] = 3
    """Stratified folds without shuffling, by whose mean AP the cost of each class is chosen."""
    positive_weight: Annotated[float, Field(gt=0)] = 2.0
    """Factor of the cost of positive samples (class_weight {1: 2, -1: 1})."""
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    """Relative duality gap at which a problem is solved; of a library: its own tolerance."""
    solver: Literal["fastrot", "sklearn", "cyanure"] = "fastrot"
    """What solves them: fastrot, scikit-learn's LinearSVC, or cyanure, an optional package. At
    each cost they agree within 0.001 of AP (from 0 to 1)."""

    @model_serializer(mode="wrap")
    def _without_usual_solver(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave the usual solver out: results from before there was a choice stay the same."""
        settings: dict[str, Any] = serialise(self)
        if self.solver == "fastrot":
            settings.pop("solver", None)
        return settings


class LowshotConfig(Section):
    """SVMs on few images a class; the cost is chosen on test, as published."""

    shots: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (
        *(1, 2, 4, 8, 16, 32, 64, 96),
    )
    """Numbers of positive images a class."""
    draws: Annotated[int, Field(ge=1)] = 5
    """Independent samples of images."""
    negatives: Annotated[int, Field(ge=1)] = 19
    """Negative images for each positive one."""
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    """Key of our own draws."""
    targets: str | None = None
    """Folder of fixed public draws, train_targets_sample{1..5}_k{shots}.npy; null: our own."""


class LinearConfig(Section):
    """Linear classifiers on frozen features, trained by SGD."""

    batchnorm: bool = True
    """Batch norm without affine parameters before each classifier, over channels of the map."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    """Peak learning rate for the batch as it is."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD momentum."""
    nesterov: bool = True
    """Nesterov momentum."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """L2 penalty."""
    batch: Annotated[int, Field(ge=2)] = 256
    """Images a step."""
    epochs: Annotated[int, Field(ge=1)] = 90
    """Length of the training in epochs."""
    milestones: tuple[int, ...] = (30, 60, 90)
    """Epochs at which the learning rate is multiplied by gamma."""
    gamma: Annotated[float, Field(gt=0)] = 0.1
    """Factor at each milestone."""
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    """Key of weights, order, crops and jitter."""
    augment: Augment = "rrc_jitter_lighting"
    """Mode augmented. rrc: random resized crop and flip. rrc_jitter_lighting: and colour jitter
    (0.4, 0.4, 0.4) and lighting (0.1). center_random: a random crop of the centre square, and
    flip. none: the test transform."""
    report: Literal["last", "best"] = "last"
    """Epoch whose score is reported; best is chosen on test, as published for AvgPool."""
    subset: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the training labels that is used, balanced over the classes; null: all."""
    optimum: bool = False
    """Also report the exact optimum of L2-regularised softmax regression on each layer."""
    solver: Literal["fastrot", "torch", "sklearn", "cyanure"] = "fastrot"
    """optimum: what solves it: fastrot (Newton's method), torch.optim.LBFGS, scikit-learn's
    LogisticRegression, or cyanure, an optional package. All stop at the same duality gap, and
    agree within 0.1 point of accuracy."""
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    """optimum: relative duality gap at which a strength is solved."""
    strengths: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (
        *(1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6),
    )
    """optimum: s of the penalty s/2 |W|^2 of the mean loss, to choose from by top-1 on a tenth of
    the training set; ties go to the first, the intercept is free."""

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
    """A vote weighs exp(similarity / temperature)."""


class EvalConfig(Section):
    """Everything an evaluation depends on besides weights and data."""

    protocol: str
    """Its name, under which published numbers are looked up."""
    kind: Kind
    """Which evaluator runs."""
    data: DataKind = "any"
    """The data set that the published numbers are of; any: whatever is given."""
    features: FeatureConfig = FeatureConfig()
    svm: SvmConfig = SvmConfig()
    lowshot: LowshotConfig = LowshotConfig()
    linear: LinearConfig = LinearConfig()
    knn: KnnConfig = KnnConfig()


def protocol_names() -> list[str]:
    """Names of the shipped protocols."""
    return shipped_names(FOLDER)


def load_protocol(name_or_path: str, overrides: Sequence[Override] = ()) -> EvalConfig:
    """Read a protocol, apply overrides, validate.

    Args:
        name_or_path: YAML file or name of a shipped protocol.
        overrides: as for ``yaml_config.load_settings``.

    Raises:
        UsageError: unknown protocol, unknown key, a value that breaks a rule, or a solver of the
            exact optimum without the optimum.

    Example:
        >>> load_protocol("voc07-svm", ["svm.folds=5"]).svm.folds
        5
    """
    config = load_settings(EvalConfig, name_or_path, overrides, folder=FOLDER, what="protocol")
    linear = config.linear
    if "solver" in linear.model_fields_set and not linear.optimum:
        raise UsageError(
            f"linear.solver={linear.solver}: it solves the exact optimum, which is not asked for, "
            "and the probes are trained by SGD; add --set linear.optimum=true, or drop the setting"
        )
    return config


class Mode(NamedTuple):
    """How the training rows of a linear probe are made.

    Attributes:
        name: ``augmented`` (as published: each epoch decodes, crops and colours anew), or
            ``cached-K`` (features of K random crops of each image, taken in turn; 0: the test
            transform).
        crops: K; None: augmented.
    """

    name: str
    crops: int | None

    @property
    def label(self) -> str:
        """As results say it."""
        return "test transform" if self.crops == 0 else self.name


TEST_TRANSFORM = Mode("cached-0", 0)


def parse_mode(text: str) -> Mode:
    """Return the mode that a user named.

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
    raise UsageError(
        f"mode {text!r} is not known; choose augmented, or cached-K for K crops an image"
    )
