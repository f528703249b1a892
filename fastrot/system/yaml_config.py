"""Typed settings from YAML: files or shipped names, overrides, and one line per error.

Frozen pydantic models that refuse undeclared keys define the configuration of a run
(``config.py``) and of an evaluation (``evaluation/protocol.py``). The error for an unknown key
names the nearest known one.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from fastrot.errors import UsageError

_MAX_RECIPE_BYTES = 64 * 1024
_MAX_DEPTH = 16
_OPENING = (
    *(yaml.BlockMappingStartToken, yaml.BlockSequenceStartToken),
    *(yaml.FlowMappingStartToken, yaml.FlowSequenceStartToken),
)
_CLOSING = yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken

Override = str | tuple[str, Any]


def override_key(override: Override) -> str:
    """Return the dotted key that an override sets."""
    return override.partition("=")[0].strip() if isinstance(override, str) else override[0]


class Section(BaseModel):
    """A frozen model that refuses undeclared keys and numbers that are not finite."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _lists_of_one(cls, values: Any) -> Any:
        """Accept a single value in place of a list of any length: ``knn.k: 3`` means ``[3]``."""
        if not isinstance(values, dict):
            return values
        return {
            name: [value] if name in cls.model_fields and _is_element(cls, name, value) else value
            for name, value in values.items()
        }

    def to_yaml(self) -> str:
        """Return the resolved settings as YAML, in the order of their declaration."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def _is_element(section: type[Section], name: str, value: Any) -> bool:
    """Return whether this setting is a list that may contain the value."""
    annotation = section.model_fields[name].annotation
    element, *length = get_args(annotation) or (None,)
    if get_origin(element) is Annotated:
        element = get_args(element)[0]
    if get_origin(annotation) is not tuple or length != [...] or "," in str(value):
        return False
    kinds = {int: (int, float), float: (int, float), str: (str,)}
    return isinstance(value, kinds.get(element, ()))


Settings = TypeVar("Settings", bound=Section)


def shipped_names(folder: str = "configs") -> list[str]:
    """Return the names of the shipped YAML files in a folder of the package."""
    return sorted(
        f.name.removesuffix(".yaml")
        for f in _package_folder(folder).iterdir()
        if f.name.endswith(".yaml")
    )


def settings_text(name_or_path: str, *, folder: str = "configs", what: str = "recipe") -> str:
    """Return the text of a YAML file, given by its path or by the name of a shipped one.

    Raises:
        UsageError: there is no such file, or it is too large to hold settings.
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        if path.stat().st_size > _MAX_RECIPE_BYTES:
            raise UsageError(f"{path}: larger than 64 KiB, not a {what}")
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise UsageError(f"{path}: not UTF-8 text, so not a {what}") from None
    shipped = _package_folder(folder) / f"{path.name.removesuffix('.yaml')}.yaml"
    if path.parent == Path(".") and shipped.is_file():
        return shipped.read_text(encoding="utf-8")
    if path.exists():
        kind = "a folder" if path.is_dir() else "a Python config" if path.suffix == ".py" else ""
        raise UsageError(
            f"{what} {name_or_path!r}: {kind or 'not a .yaml file'}; give a .yaml file "
            f"or the name of a shipped {what}: {', '.join(shipped_names(folder))}"
        )
    names = shipped_names(folder)
    close = difflib.get_close_matches(path.name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UsageError(
        f"{what} {name_or_path!r}: no such file and no shipped {what} of that name; "
        f"{hint}shipped: {', '.join(names)}"
    )


def load_settings(
    model: type[Settings],
    name_or_path: str | None,
    overrides: Sequence[Override] = (),
    *,
    folder: str = "configs",
    what: str = "recipe",
    whole: bool = False,
) -> Settings:
    """Read a YAML file, apply overrides and validate the result.

    Args:
        model: type of the settings.
        name_or_path: YAML file or name of a shipped one; None: the defaults.
        overrides: ``section.key=value`` texts with values in YAML, such as
            ``optim.milestones=[30,50]``; or pairs of a key and a value that is used as it is.
        folder: folder of the shipped files in the package.
        what: what messages call such a file.
        whole: overrides may also set keys outside of sections.

    Raises:
        UsageError: unknown file, unknown key, or a value that breaks a rule.
    """
    tree: dict[str, Any] = {}
    where = name_or_path or "defaults"
    if name_or_path is not None:
        tree = parse_yaml(settings_text(name_or_path, folder=folder, what=what), where, what)
    for override in overrides:
        if not isinstance(override, str):
            _set(model, tree, *override, whole=whole)
            continue
        key, sign, text = override.partition("=")
        if not sign:
            raise UsageError(f"--set {override!r}: write section.key=value, e.g. train.epochs=10")
        _set(model, tree, key.strip(), _parse_value(text, override), whole=whole)
    return validate_tree(model, tree, where)


def parse_yaml(text: str, where: str, what: str = "recipe") -> dict[str, Any]:
    """Parse a YAML mapping with the safe loader."""
    try:
        tree = _safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UsageError(f"{where}: a {what} is a mapping of sections, not {type(tree).__name__}")
    return tree


def _safe_load(text: str) -> Any:
    """Return the plain values of a YAML text without aliases, which can expand without limit.

    Raises:
        yaml.YAMLError: the text is invalid, or nested deeper than settings are.
        ValueError: a date or a number is invalid.
    """
    depth = 0
    for token in yaml.scan(text):
        if isinstance(token, yaml.AliasToken):
            raise yaml.YAMLError("aliases are not allowed")
        depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
        if depth > _MAX_DEPTH:
            raise yaml.YAMLError(f"nested deeper than {_MAX_DEPTH} levels")
    return yaml.safe_load(text)


def validate_tree(model: type[Settings], tree: dict[str, Any], where: str) -> Settings:
    """Turn a tree of plain values into settings.

    Raises:
        UsageError: a value or key is invalid; the message describes the first mistake on one line.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        location = [str(part) for part in first["loc"]]
        if first["type"] == "extra_forbidden":
            raise UsageError(_unknown_key(model, ".".join(location), where)) from None
        key = ".".join(location)
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "tuple_type":
            meant = _as_list(model, location, first["input"])
            message = f"write a list, e.g. --set '{'.'.join(location[:2])}={meant}'"
        value = "" if first["type"] == "value_error" else f"{key}={first['input']!r}: "
        raise UsageError(f"{where}: {value}{message[0].lower()}{message[1:]}") from None


def keys_of(model: type[Section]) -> list[str]:
    """Return all dotted keys that ``--set`` accepts."""
    return [
        f"{section}.{name}"
        for section, annotation in _sections(model).items()
        for name in annotation.model_fields
    ]


def _sections(model: type[Section]) -> dict[str, type[BaseModel]]:
    annotations = {name: field.annotation for name, field in model.model_fields.items()}
    return {
        name: annotation
        for name, annotation in annotations.items()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel)
    }


def _loose_keys(model: type[Section]) -> list[str]:
    """Return the keys outside of sections."""
    return [name for name in model.model_fields if name not in _sections(model)]


def _as_list(model: type[BaseModel], location: Sequence[str], value: Any) -> str:
    """Return the list that the user probably meant."""
    section, *rest = location
    annotation = model.model_fields[section].annotation
    if rest and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _as_list(annotation, rest, value)
    if rest or isinstance(value, dict):
        return "[...]"  # a list of lists, or nothing like a list
    lengths = get_args(annotation)
    same = 1 if ... in lengths else len(lengths)
    text = str(value).strip("[()]").replace(" ", "")
    return f"[{','.join([text] * (1 if ',' in text else same))}]"


def _package_folder(folder: str) -> Traversable:
    return resources.files("fastrot").joinpath(*folder.split("/"))


def _unknown_key(model: type[Section], key: str, where: str) -> str:
    keys = [*keys_of(model), *_loose_keys(model)]
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.0)
    leaf = key.rpartition(".")[2]
    same_leaf = [known for known in keys if known.rpartition(".")[2] == leaf]
    nearest = (same_leaf or close)[0]
    return f"{where}: unknown key {key!r}; the nearest known key is {nearest!r}"


def _set(model: type[Section], tree: dict[str, Any], key: str, value: Any, *, whole: bool) -> None:
    if whole and key in _loose_keys(model):
        tree[key] = value
        return
    if key not in keys_of(model):
        raise UsageError(_unknown_key(model, key, "--set"))
    section, _, name = key.partition(".")
    branch = tree.setdefault(section, {})
    if not isinstance(branch, dict):
        raise UsageError(f"settings: section {section!r} must be a mapping")
    branch[name] = value


def _parse_value(text: str, override: str) -> Any:
    try:
        value = _safe_load(text)
    except (yaml.YAMLError, ValueError):
        raise UsageError(f"--set {override[:200]!r}: the value is not valid YAML") from None
    if isinstance(value, str):
        try:  # YAML 1.1 reads 1e-4 as a string
            return float(value)
        except ValueError:
            return value
    return value
