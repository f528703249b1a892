"""The result of an evaluation, with everything that its numbers depend on."""

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
        value: value in percent.
        layer: stage that was measured.
        detail: plain values behind the score: AP of each class, costs, spread.
    """

    name: str
    metric: str
    value: float
    layer: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "detail": dict(self.detail)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Score:
        """Restore the score from what ``to_json`` returned."""
        return cls(**record)


@dataclass(frozen=True)
class Result:
    """One protocol, run once.

    Attributes:
        protocol: name of the protocol.
        label: how features were made: ``test transform``, ``cached-K`` or ``augmented``.
        scores: measured scores, in the order of the protocol.
        random: the same scores for the backbone's random initialisation; None: not measured.
        settings: resolved settings of the protocol.
        changed: settings that differ from the protocol's own, as ``key: own -> used``.
        weights: source and digest of the backbone.
        data: paths of the training and test data.
        caches: fingerprints of the feature caches.
        seconds: wall time by part.
        record: machine, versions, command.
        notes: what to know before comparing with published numbers.
        key: key of the measurement (``identity.measurement_key``); empty in earlier versions.
        earlier_key: the key as earlier versions computed it, without digests of the images.
        time: time when the scores were computed, ISO 8601 in UTC; empty in earlier versions.
        random_time: the same for ``random``; None: not measured, or unknown.
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
        """Return the plain values that ``result.json`` holds, as one object."""
        tree = {name: getattr(self, name) for name in self.__dataclass_fields__}
        tree["scores"] = [score.to_json() for score in self.scores]
        tree["random"] = self.random and [score.to_json() for score in self.random]
        tree["seconds"] = {part: round(value, 3) for part, value in self.seconds.items()}
        return tree

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Result:
        """Restore the result from what ``to_json`` returned, ignoring keys of newer versions."""
        known = {name: tree[name] for name in cls.__dataclass_fields__ if name in tree}
        known["scores"] = [Score.from_json(score) for score in tree["scores"]]
        known["random"] = tree["random"] and [Score.from_json(score) for score in tree["random"]]
        return cls(**known)
