"""Identities are compared as JSON gives them back, field by field."""

from __future__ import annotations

import pytest

from fastrot.system.fingerprint import differing_fields, fingerprint_digest, plain


def test_equal_identities_have_equal_digests_and_no_differing_fields():
    one = {"layers": ("a", "b"), "crop": {"size": 64, "scale": (0.08, 1.0)}}
    other = {"crop": {"scale": [0.08, 1.0], "size": 64}, "layers": ["a", "b"]}
    assert fingerprint_digest(one) == fingerprint_digest(other)
    assert differing_fields(plain(one), plain(other)) == []
    assert fingerprint_digest(one) != fingerprint_digest(one | {"seed": None})


def test_fields_that_differ_are_named_with_both_values():
    saved = {"a": {"b": 1, "c": "x"}, "d": [1], "e": None}
    now = {"a": {"b": 1, "c": "y"}, "d": [2], "f": {"g": True}}
    assert differing_fields(saved, now) == [
        "a.c: x -> y", "d: [1] -> [2]", "e: null -> (absent)", 'f: (absent) -> {"g": true}',
    ]  # fmt: skip


def test_what_is_not_plain_or_not_finite_is_refused():
    with pytest.raises(ValueError):
        plain({"a": float("nan")})
    with pytest.raises(TypeError):
        plain({"a": object()})
