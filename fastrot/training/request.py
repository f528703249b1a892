"""What the user asked for, and the settings that follow from it: a recipe's, or those of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastrot.config import Config, load_config
from fastrot.errors import MismatchError, UsageError
from fastrot.system.console import Say
from fastrot.system.yaml_config import Override, override_key

# What may not change between a run and its resumption: the checkpoint would not fit, or the run
# would no longer be one run.
_FIXED = ("model.", "pretext.", "data.resolution", "data.progressive",
          "optim.name", "train.seed", "train.global_batch")  # fmt: skip


@dataclass(frozen=True)
class TrainRequest:
    """What the user asked for.

    Attributes:
        config: recipe and overrides.
        recipe: the recipe that was named, or None: a resumed run must fit it.
        overrides: the overrides alone: a resumed run takes the rest from its own
            ``config.yaml``.
        out: run folder.
        resume: go on with the run in ``out``; a new run if there is none yet.
    """

    config: Config
    recipe: str | None
    overrides: tuple[Override, ...]
    out: Path
    resume: bool

    def unnamed(self, *keys: str) -> tuple[str, ...]:
        """Return those of the dotted keys that no override names."""
        named = {override_key(each) for each in self.overrides}
        return tuple(key for key in keys if key not in named)


def requested_config(request: TrainRequest, say: Say) -> Config:
    """Return the settings of the run, every ``auto`` as it was written.

    A new run has those of its recipe. A resumed one has those of its ``config.yaml``, with the
    overrides of this request.

    Args:
        request: what the user asked for.
        say: one line to the user.

    Raises:
        MismatchError: the run in the folder depends on a setting that the request would change.
        UsageError: there is nothing to resume and nothing to begin, or no training data.
    """
    config = request.config
    saved_config = request.out / "config.yaml"
    if request.resume and saved_config.is_file():
        saved = load_config(str(saved_config))
        config = load_config(str(saved_config), request.overrides)
        changes = check_resumable(saved, config)
        if request.recipe is not None:
            _check_recipe(saved, request)
            say(f"going on with the settings of {saved_config}; -c is only checked")
        for line in changes:
            say(f"changed since the run began: {line}")
    elif request.resume:
        if request.recipe is None and not request.overrides:  # a slip of the name, most likely
            raise UsageError(
                f"{request.out}: no run there to go on with; check --out, or name data or a "
                "recipe (-c digits for the embedded data) to begin one"
            )
        say(f"nothing to resume in {request.out}: a new run begins")
    if config.data.train is None:
        raise UsageError(
            "no training data; add --data FILE.beton (or --data FOLDER of images), "
            "or leave out -c to train on the embedded digits"
        )
    return config


def _check_recipe(saved: Config, request: TrainRequest) -> None:
    try:
        check_resumable(saved, request.config)
    except MismatchError as error:
        raise MismatchError(
            f"-c {request.recipe} is not what the run in {request.out} began with ({error}); "
            "leave out -c: the run knows its settings"
        ) from None


def check_resumable(saved: Config, now: Config) -> list[str]:
    """Compare a run's configuration with the one it is to be resumed with.

    Returns:
        One line per key that differs and may.

    Raises:
        MismatchError: a key differs that the run depends on.
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
                    "leave it out, or start a new run with another --out"
                )
            changed.append(f"{key}: {old!r} -> {value!r}")
    return changed
