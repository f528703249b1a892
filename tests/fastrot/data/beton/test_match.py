"""The comparison in order and the look-up of every pointer come to the same verdict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fastrot.data.beton.format import ALLOCATION, HEADER, MIN_PAGE_SIZE, Field, Kind, record_dtype
from fastrot.data.beton.match import _look_up, check_entries, match_entries
from fastrot.errors import BadDataError

PATH = Path("x.beton")
FIELDS = [
    Field("image", Kind.IMAGE),
    Field("label", Kind.INT),
    Field("blob", Kind.BYTES),
    Field("note", Kind.JSON),
    Field("box", Kind.ARRAY, np.dtype("<f4"), (4,)),
]
LAYOUTS = ["by sample", "shuffled", "apart"]


def make(kinds, sizes, layout, seed):
    """Metadata, stored fields and entries of a sound file whose samples have these sizes."""
    fields = [FIELDS[i] for i in kinds]
    stored = {i: field for i, field in enumerate(fields) if not field.is_scalar}
    rng = np.random.default_rng(seed)
    metadata = np.zeros(len(sizes), record_dtype(fields))
    rows = []
    at = MIN_PAGE_SIZE
    order = range(len(sizes)) if layout == "by sample" else rng.permutation(len(sizes))
    for sample in order:
        for i, field in stored.items():
            size = sizes[sample] if field.kind is Kind.BYTES else sizes[sample] + 1
            metadata[str(i)]["ptr"][sample] = at
            if field.kind in (Kind.BYTES, Kind.JSON):
                metadata[str(i)]["size"][sample] = size
            rows.append((sample, at, size))
            at += size + int(rng.integers(0, 2)) + (size == 0)
    entries = np.array(rows, ALLOCATION)
    if layout == "apart":
        entries = entries[rng.permutation(len(entries))]
    return metadata, stored, entries


def checked(entries, samples):
    header = np.zeros((), HEADER)
    header["page_size"], header["num_samples"] = MIN_PAGE_SIZE, samples
    header["alloc_table_ptr"] = 2 * MIN_PAGE_SIZE
    check_entries(PATH, header[()], MIN_PAGE_SIZE, entries)


def outcome(function, metadata, stored, entries):
    try:
        sizes = function(PATH, 2 * MIN_PAGE_SIZE, metadata, stored, entries)
    except BadDataError as error:
        return str(error)
    return {i: size.tolist() for i, size in sizes.items()}


subsets = st.lists(st.sampled_from(range(len(FIELDS))), min_size=1, max_size=5, unique=True)
lengths = st.lists(st.integers(0, 40), min_size=1, max_size=12)


@given(subsets, lengths, st.sampled_from(LAYOUTS), st.integers(0, 99))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_sound_files_have_the_sizes_of_their_samples(kinds, sizes, layout, seed):
    metadata, stored, entries = make(kinds, sizes, layout, seed)
    checked(entries, len(sizes))
    wanted = {
        i: [size + (field.kind is not Kind.BYTES) for size in sizes] for i, field in stored.items()
    }
    for function in (match_entries, _look_up):
        assert outcome(function, metadata, stored, entries) == wanted


@given(subsets, lengths, st.sampled_from(LAYOUTS), st.integers(0, 99), st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_damage_is_judged_alike(kinds, sizes, layout, seed, data):
    """A number changed in the table or in the metadata: the same error, word for word."""
    metadata, stored, entries = make(kinds, sizes, layout, seed)
    assume(stored)
    row, sample = (
        data.draw(st.sampled_from(range(len(entries)))),
        data.draw(st.sampled_from(range(len(sizes)))),
    )
    what = data.draw(st.sampled_from(["sample", "ptr", "size", "value ptr", "value size", "swap"]))
    step = data.draw(st.sampled_from([-2, -1, 1, 2]))
    field = str(data.draw(st.sampled_from(list(stored))))
    if what == "swap":
        entries[["ptr", "size"]][[row, 0]] = entries[["ptr", "size"]][[0, row]]
    elif what.startswith("value"):
        column = what.removeprefix("value ")
        assume(column in metadata.dtype[field].names)
        metadata[field][column][sample] = (int(metadata[field][column][sample]) + step) % 2**64
    else:
        entries[what][row] = (int(entries[what][row]) + step) % 2**64
    try:
        checked(entries, len(sizes))
    except BadDataError:
        assume(False)
    both = [outcome(f, metadata, stored, entries) for f in (match_entries, _look_up)]
    assert both[0] == both[1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_rule_of_the_pairing_is_kept(layout):
    """What no lucky draw may be needed for: one file, each of its values exchanged."""
    sizes = [3, 0, 5, 2]

    def refused(change, words):
        metadata, stored, entries = make([0, 2, 3], sizes, layout, 1)
        change(metadata, entries)
        checked(entries, len(sizes))
        with pytest.raises(BadDataError, match=words):
            match_entries(PATH, 0, metadata, stored, entries)

    def exchange_pointers(metadata, entries):
        pointers = metadata["0"]["ptr"]
        pointers[[0, 2]] = pointers[[2, 0]]

    def share(metadata, entries):
        metadata["2"]["ptr"][0] = metadata["1"]["ptr"][0]
        metadata["2"]["size"][0] = metadata["1"]["size"][0]

    def size(metadata, entries):
        metadata["2"]["size"][3] -= 1

    def emptied(metadata, entries):
        entries["size"][entries["ptr"] == metadata["0"]["ptr"][2]] = 0

    def other_empty(metadata, entries):
        metadata["1"]["ptr"][1] += 1

    refused(exchange_pointers, "sample 0, field 'image': its pointer has no entry of this sample")
    refused(share, "sample 0, field 'note': its pointer has no entry of this sample")
    refused(size, "sample 3, field 'note': its size is not that of its table entry")
    refused(emptied, "sample 2, field 'image': its pointer has no entry of this sample")
    refused(other_empty, "empty entries that the metadata does not have")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_many_samples_go_through_several_blocks(layout):
    """Damage beyond the first block is found, and named by its number in the file."""
    sizes = np.random.default_rng(0).integers(1, 30, 50_000).tolist()
    metadata, stored, entries = make([0], sizes, layout, 2)
    checked(entries, len(sizes))
    found = match_entries(PATH, 0, metadata, stored, entries)[0]
    assert found.tolist() == [size + 1 for size in sizes]
    metadata["0"]["ptr"][44_444] += 1
    with pytest.raises(BadDataError, match="sample 44444, field 'image'"):
        match_entries(PATH, 0, metadata, stored, entries)
    row = 48_001
    entries["size"][row] += 3
    with pytest.raises(BadDataError, match=r"entry \d+: its data overlaps") as caught:
        checked(entries, len(sizes))
    named = int(str(caught.value).split("entry ")[1].split(":")[0])
    assert named == row
    entries["sample"][row] = len(sizes)
    with pytest.raises(BadDataError, match="entry 48001: no sample has its id"):
        checked(entries, len(sizes))


def test_an_overlap_across_the_border_of_two_blocks_is_found():
    entries = make([0], [9] * 20_000, "by sample", 0)[2]
    entries["size"] = 10
    entries["ptr"] = MIN_PAGE_SIZE + 10 * np.arange(20_000)
    checked(entries, 20_000)
    entries["size"][2**14 - 1] += 1
    with pytest.raises(BadDataError, match=f"entry {2**14 - 1}: its data overlaps"):
        checked(entries, 20_000)


def test_two_empty_entries_of_one_sample_are_not_those_of_two():
    metadata, stored, entries = make([2], [0, 0], "shuffled", 0)
    entries[0] = entries[1]
    checked(entries, 2)
    with pytest.raises(BadDataError, match="empty entries that the metadata does not have"):
        match_entries(PATH, 0, metadata, stored, entries)
