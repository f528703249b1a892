"""What the user asked for, and the resulting settings: those of a recipe or of a resumed run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastrot.config import Config, load_config
from fastrot.errors import MismatchError, UsageError
from fastrot.runs.folder import read_imported
from fastrot.system.console import Say
from fastrot.system.yaml_config import Override, override_key

# What must not change when a run is resumed: the checkpoint would not fit, or it would become
# another run.
_FIXED = ("model.", "pretext.", "data.resolution", "data.progressive",
          "optim.name", "train.seed", "train.global_batch")  # fmt: skip


CPU_RECIPE = "photos_cpu"
PUBLISHED_RECIPE = "resnet50_8xb16-steplr-70e"
"""The recipes for data without a named one: the first on a CPU, the second (defaults) on a GPU."""


@dataclass(frozen=True)
class TrainRequest:
    """What the user asked for.

    Attributes:
        config: settings from recipe and overrides.
        recipe: the recipe that was named, which a resumed run must fit; None: none was named.
        overrides: the overrides alone: a resumed run takes the rest from its own
            ``config.yaml``.
        out: run folder.
        resume: resume the run in ``out``, or begin a new one if there is none yet.
        base: the recipe that ``config`` was read from, named or not; None: only data was named.
    """

    config: Config
    recipe: str | None
    overrides: tuple[Override, ...]
    out: Path
    resume: bool
    base: str | None = None

    def unnamed(self, *keys: str) -> tuple[str, ...]:
        """Return the dotted keys that no override names."""
        named = {override_key(each) for each in self.overrides}
        return tuple(key for key in keys if key not in named)


def train_request(
    *,
    recipe: str | None,
    data: Mapping[str, Path | None],
    val: Path | None = None,
    loader: str | None = None,
    on_bad_sample: str | None = None,
    follow_symlinks: bool = False,
    overrides: Sequence[Override] = (),
    out: Path | None = None,
    resume: bool = False,
) -> TrainRequest:
    """Build a request from the options of ``fastrot train``, with its configuration.

    Args:
        recipe: a YAML file or a shipped recipe; None: ``digits``, unless data is named.
        data: training images by the option that names them; at most one of them does.
            ``--dali`` also chooses the loader.
        val: held-out images.
        loader: name of the loader; None: the recipe's.
        on_bad_sample: ``fail`` or ``skip``; None: the recipe's.
        follow_symlinks: also follow links that lead out of a folder of images.
        overrides: further settings, which must not be set by an option above as well.
        out: run folder; None: ``runs/`` and the name of the recipe, or of the data.
        resume: resume the run in ``out``.

    Raises:
        UsageError: two options set the same thing, or a setting breaks a rule.
    """
    named = [(option, path) for option, path in data.items() if path is not None]
    if len(named) > 1:
        options = " and ".join(option for option, _ in named)
        raise UsageError(f"{options} both name the data; keep one")
    settings = list(overrides)
    given = {override_key(each): each for each in overrides}

    def take(option: str, key: str, value: str) -> None:
        if key in given:
            raise UsageError(f"{option}={value} and --set {given[key]} both set {key}; keep one")
        settings.append((key, value))

    if named:
        take(named[0][0], "data.train", os.path.abspath(named[0][1]))
    if val is not None:
        take("--val", "data.val", os.path.abspath(val))
    if loader is None and data.get("--dali") is not None:
        loader = "dali"
    if loader is not None:
        take("--loader", "data.loader", loader)
    if on_bad_sample is not None:
        take("--on-bad-sample", "data.on_bad_sample", on_bad_sample)
    if follow_symlinks:
        take("--follow-symlinks", "data.follow_symlinks", "true")
    base = "digits" if recipe is None and not named else recipe
    config = load_config(base, settings)
    name = Path(base or os.path.abspath(named[0][1])).stem or "run"
    return TrainRequest(config, recipe, tuple(settings), out or Path("runs") / name, resume, base)


def requested_config(request: TrainRequest, say: Say) -> Config:
    """Return the settings of the run, with every ``auto`` left as written.

    A new run uses those of its recipe. A resumed one uses those of its ``config.yaml``, with the
    overrides of this request.

    Args:
        request: what the user asked for.
        say: prints one line to the user.

    Raises:
        MismatchError: the run in the folder depends on a setting that the request would change.
        UsageError: there is no run to resume, no new run to start, or no training data.
    """
    config = request.config
    saved_config = request.out / "config.yaml"
    imported = read_imported(request.out) if request.resume else {}
    asked = _with_imported(request, imported["settings"]) if imported else request
    if request.resume and saved_config.is_file():
        saved = load_config(str(saved_config), recorded=True)
        config = load_config(str(saved_config), request.overrides, recorded=True)
        changes = check_resumable(saved, config)
        if request.recipe is not None:
            _check_recipe(saved, asked)
            say(f"resuming with the settings of {saved_config}; -c is only checked")
        for line in changes:
            say(f"changed since the run began: {line}")
    elif imported:
        if request.recipe is None and request.unnamed("data.train"):
            raise UsageError(
                f"{request.out}: holds imported weights; name what to train on with --data"
            )
        say(f"training on from the weights of {imported['file']}, imported into {request.out}")
        config = _new_config(asked, say)
    elif request.resume:
        if request.recipe is None and not request.overrides:  # a slip of the name, most likely
            raise UsageError(
                f"{request.out}: no run there to resume; check --out, or name data or a "
                "recipe (-c digits for the embedded data) to begin one"
            )
        say(f"nothing to resume in {request.out}: starting a new run")
        config = _new_config(request, say)
    else:
        config = _new_config(request, say)
    if config.data.train is None:
        raise UsageError(
            "no training data; add --data FILE.beton (or --data FOLDER of images), "
            "or omit -c to train on the embedded digits"
        )
    return config


def _with_imported(request: TrainRequest, settings: Mapping[str, Any]) -> TrainRequest:
    """Return the request with the settings of imported weights, over those of the recipe.

    Raises:
        MismatchError: the request names another network.
    """
    overrides = (*settings.items(), *request.overrides)
    config = load_config(request.base, overrides)
    for key, value in settings.items():
        section, _, name = key.partition(".")
        if section == "model" and (asked := getattr(config.model, name)) != value:
            raise MismatchError(
                f"cannot train with {key}={asked!r}: the weights imported into {request.out} have "
                f"{value!r}; omit it"
            )
    return replace(request, config=config, overrides=overrides)


def _new_config(request: TrainRequest, say: Say) -> Config:
    """Return the settings of a new run; if only data is named, the device decides the recipe.

    This happens on the machine that trains: the one that submits a job may have no GPU.
    """
    config = request.config
    device = config.train.device
    if request.recipe is not None or request.base is not None or device == "cuda":
        return config
    if device == "auto":
        import torch  # about to be used anyway

        if torch.cuda.is_available():
            return config
    say(
        f"{'no GPU' if device == 'auto' else 'train.device=cpu'}: using recipe {CPU_RECIPE}; "
        f"add -c {PUBLISHED_RECIPE} for the published one"
    )
    return load_config(CPU_RECIPE, request.overrides)


def _check_recipe(saved: Config, request: TrainRequest) -> None:
    try:
        check_resumable(saved, request.config)
    except MismatchError as error:
        raise MismatchError(
            f"-c {request.recipe} is not what the run in {request.out} began with ({error}); "
            "omit -c: the run knows its settings"
        ) from None


def check_resumable(saved: Config, now: Config) -> list[str]:
    """Compare a run's configuration with the one to resume it with.

    Returns:
        One line per key that differs and is allowed to.

    Raises:
        MismatchError: a key on which the run depends differs.
    """
    changed = []
    before, after = saved.model_dump(), now.model_dump()
    for section, values in after.items():
        for name, value in values.items():
            key, old = f"{section}.{name}", before[section][name]
            if value == old:
                continue
            if key.startswith(_FIXED):
                raise MismatchError(
                    f"cannot resume with {key}={value!r}: the run began with {old!r}; "
                    "omit it, or start a new run with another --out"
                )
            changed.append(f"{key}: {old!r} -> {value!r}")
    return changed
