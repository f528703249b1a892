"""What an evaluation found, with everything that the numbers depend on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Score:
    """One number of a protocol.

    Attributes:
        name: ``layer1``, ``k=20``, ``4-shot layer4`` ...
        metric: ``mAP``, ``top1`` or ``top5``.
        value: in percent.
        layer: the stage that it was measured on.
        detail: plain values behind it: AP of each class, costs, spread.
    """

    name: str
    metric: str
    value: float
    layer: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "detail": dict(self.detail)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Score:
        """The score that ``to_json`` wrote."""
        return cls(**record)


@dataclass(frozen=True)
class Result:
    """One protocol, run once.

    Attributes:
        protocol: its name.
        label: how features were made: ``test transform``, ``cached-K`` or ``augmented``.
        scores: what was measured, in the order of the protocol.
        random: the same of the random initialisation of the backbone; None: not measured.
        settings: of the protocol, resolved.
        changed: settings that are not the protocol's own, as ``key=value``.
        weights: source and digest of the backbone.
        data: what was read for training and test.
        caches: manifests' identities of the feature caches.
        seconds: wall time by part.
        record: machine, versions, command.
        notes: what to know before comparing with published numbers.
        key: of the measurement (``measurements.measurement_key``); empty: of an earlier version.
        earlier_key: the same by what earlier versions recorded: without a look into the images.
        time: when the scores were there, ISO 8601 in UTC; empty: of an earlier version.
        random_time: when those of the random initialisation were; None: as ``random``, or unknown.
    """

    protocol: str
    label: str
    scores: Sequence[Score]
    random: Sequence[Score] | None
    settings: Mapping[str, Any]
    changed: Sequence[str]
    weights: Mapping[str, Any]
    data: Mapping[str, Any]
    caches: Mapping[str, Any]
    seconds: Mapping[str, float]
    record: Mapping[str, Any]
    notes: Sequence[str] = ()
    key: str = ""
    earlier_key: str = ""
    time: str = ""
    random_time: str | None = None

    def to_json(self) -> dict[str, Any]:
        """One object of plain values, which ``result.json`` holds."""
        tree = {name: getattr(self, name) for name in self.__dataclass_fields__}
        tree["scores"] = [score.to_json() for score in self.scores]
        tree["random"] = self.random and [score.to_json() for score in self.random]
        tree["seconds"] = {part: round(value, 3) for part, value in self.seconds.items()}
        return tree

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Result:
        """The result that ``to_json`` wrote; keys of a newer version are left out."""
        known = {name: tree[name] for name in cls.__dataclass_fields__ if name in tree}
        known["scores"] = [Score.from_json(score) for score in tree["scores"]]
        known["random"] = tree["random"] and [Score.from_json(score) for score in tree["random"]]
        return cls(**known)
