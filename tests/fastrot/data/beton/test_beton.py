from __future__ import annotations

import io
import json
import os
import re
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastrot.data.beton import JPEG, MAX_PIXELS, RAW, BetonFile, BetonWriter, Field, Kind
from fastrot.data.beton.damage import find_damage
from fastrot.data.beton.format import (
    ALLOCATION,
    HEADER,
    metadata_start,
    pack_descriptors,
    parse_descriptor,
    record_dtype,
)
from fastrot.data.images import decode
from fastrot.errors import BadDataError, MismatchError, StorageError, UsageError

PAGE = 2**21
IMAGE, LABEL = Field("image", Kind.IMAGE), Field("label", Kind.INT)
ALL_FIELDS = (
    IMAGE,
    LABEL,
    Field("weight", Kind.FLOAT),
    Field("blob", Kind.BYTES),
    Field("box", Kind.ARRAY, np.dtype("<f4"), (2, 3)),
    Field("note", Kind.JSON),
    Field("ids", Kind.TENSOR, np.dtype("<i8"), (2,)),
)


def pixels(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def jpeg(seed: int, height: int, width: int, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(seed, height, width)).save(file, "JPEG", **options)
    return file.getvalue()


def sample(i: int) -> tuple:
    """Values of ALL_FIELDS."""
    image = jpeg(i, 9 + i, 17) if i % 2 else pixels(i, 9 + i, 17)
    box = np.full((2, 3), i / 4, np.float32)
    return image, i % 3, i / 8, bytes(range(i % 4)), box, {"é": [i, None]}, np.array([i, -i])


def write(path: Path, samples=None, fields=ALL_FIELDS, *, capacity=None, **commit) -> Path:
    samples = [sample(i) for i in range(7)] if samples is None else samples
    with BetonWriter(path, fields, capacity=capacity or len(samples), page_size=PAGE) as writer:
        for values in samples:
            writer.add(*values)
        writer.commit(**commit)
    return path


def leftovers(path: Path) -> list[str]:
    """Files beside a finished one that should not be there."""
    kept = rf"{re.escape(path.name)}(\.manifest\.json|\.manifest-[0-9a-f]{{16}}\.bin)?"
    return [p.name for p in path.parent.iterdir() if not re.fullmatch(kept, p.name)]


# --- layout


@pytest.mark.parametrize(
    ("kinds", "offsets", "size"),
    [
        ([Kind.IMAGE], [0], 13),
        ([Kind.IMAGE, Kind.INT], [0, 16], 24),
        ([Kind.INT, Kind.IMAGE], [0, 8], 24),
        ([Kind.IMAGE, Kind.IMAGE], [0, 13], 26),
        ([Kind.IMAGE, Kind.INT, Kind.FLOAT, Kind.BYTES], [0, 16, 24, 32], 48),
        ([Kind.BYTES, Kind.IMAGE, Kind.IMAGE, Kind.INT], [0, 16, 29, 48], 56),
        ([Kind.IMAGE, Kind.ARRAY, Kind.JSON, Kind.TENSOR], [0, 16, 24, 40], 48),
    ],
)
def test_metadata_record_has_the_layout_of_the_format(kinds, offsets, size):
    fields = [
        Field(f"f{i}", kind, np.dtype("<f4"), (2,))
        if kind in (Kind.ARRAY, Kind.TENSOR)
        else Field(f"f{i}", kind)
        for i, kind in enumerate(kinds)
    ]
    dtype = record_dtype(fields)
    assert dtype.itemsize == size
    assert [dtype.fields[str(i)][1] for i in range(len(kinds))] == offsets


def test_file_is_laid_out_as_the_format_says(tmp_path):
    path = write(tmp_path / "x.beton")
    raw = path.read_bytes()
    version, fields, page, samples, table = struct.unpack_from("<HHIQQ", raw)
    assert (version, fields, page, samples) == (2, 7, PAGE, 7)
    assert raw[24 : metadata_start(7)] == pack_descriptors(ALL_FIELDS)
    assert table % PAGE == 0
    assert len(raw) == table + 24 * 7 * 5  # five of the fields have data in pages
    assert not any(raw[metadata_start(7) + 7 * record_dtype(ALL_FIELDS).itemsize : PAGE])


def test_descriptors_survive_packing():
    raw = pack_descriptors(ALL_FIELDS)
    assert [parse_descriptor(raw[i : i + 1041]) for i in range(0, len(raw), 1041)] == [*ALL_FIELDS]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", Kind.INT), "1 to 16 printable ASCII"),
        (("seventeen letters", Kind.INT), "1 to 16 printable ASCII"),
        (("größe", Kind.INT), "1 to 16 printable ASCII"),
        (("x\n", Kind.INT), "1 to 16 printable ASCII"),
        (("x", Kind.INT, np.dtype("<f4")), "only arrays have"),
        (("x", Kind.ARRAY), "not plain numeric"),
        (("x", Kind.ARRAY, np.dtype(object), (1,)), "not plain numeric"),
        (("x", Kind.ARRAY, np.dtype("S4"), (1,)), "not plain numeric"),
        (("x", Kind.ARRAY, np.dtype([("a", "<i4")]), (1,)), "not plain numeric"),
        (("x", Kind.ARRAY, np.dtype("<i4"), ()), "1 to 32 dimensions"),
        (("x", Kind.ARRAY, np.dtype("<i4"), (3, 0)), "1 to 32 dimensions"),
    ],
)
def test_field_refuses_what_the_format_cannot_hold(arguments, message):
    with pytest.raises(ValueError, match=message):
        Field(*arguments)


def test_pixel_cap_is_above_that_of_image_files():
    """What ``prepare`` was told to let in is read by everything that reads the file."""
    assert MAX_PIXELS == decode.MAX_SHRUNK_PIXELS > decode.MAX_PIXELS


# --- round trips


@pytest.mark.parametrize("capacity", [7, 7000])
def test_every_field_type_and_mode_comes_back(tmp_path, capacity):
    path = write(tmp_path / "x.beton", capacity=capacity)
    with BetonFile.open(path) as file:
        assert file.fields == ALL_FIELDS
        assert (len(file), file.page_size) == (7, PAGE)
        assert file.ints("label").tolist() == [0, 1, 2, 0, 1, 2, 0]
        assert [file.value(i, "weight") for i in range(7)] == [i / 8 for i in range(7)]
        assert file.widths.tolist() == [17] * 7
        assert file.heights.tolist() == list(range(9, 16))
        assert file.modes.tolist() == [RAW, JPEG, RAW, JPEG, RAW, JPEG, RAW]
        for i in range(7):
            image, *others = sample(i)
            expected = image if isinstance(image, bytes) else image.tobytes()
            assert file.payload(i, "image") == expected
            assert file.data_sizes[i] == len(expected)
            start = int(file.data_pointers[i])
            assert path.read_bytes()[start : start + len(expected)] == expected
            for field, value in zip(ALL_FIELDS[1:], others, strict=True):
                np.testing.assert_array_equal(file.value(i, field.name), value)
            assert file.value(i, "box").dtype == np.float32


def test_numbers_alone_need_no_pages(tmp_path):
    fields = [LABEL, Field("weight", Kind.FLOAT)]
    path = write(tmp_path / "x.beton", [(5, 0.5), (-(2**63), float("inf"))], fields)
    assert path.stat().st_size == metadata_start(2) + 2 * 16
    with BetonFile.open(path) as file:
        assert file.ints("label").tolist() == [5, -(2**63)]
        assert [file.value(i, "weight") for i in (0, 1)] == [0.5, float("inf")]
        with pytest.raises(BadDataError, match="no image field, only 'label', 'weight'"):
            _ = file.widths
        with pytest.raises(UsageError, match="'label' is a number"):
            file.payload(0, "label")
        with pytest.raises(UsageError, match=r"no field 'x' of type INT; it has label \(INT\)"):
            file.ints("x")
        with pytest.raises(IndexError, match=r"sample 2 is not in \[0, 2\)"):
            file.value(2, "label")


def test_same_samples_give_the_same_bytes(tmp_path):
    first, second = write(tmp_path / "1.beton"), write(tmp_path / "2.beton")
    assert first.read_bytes() == second.read_bytes()


def test_data_fills_pages_in_order_and_never_crosses_one(tmp_path):
    sizes = [PAGE - 10, 10, 1, PAGE, PAGE, 7, PAGE - 6]
    path = write(tmp_path / "x.beton", [(bytes([i]) * n,) for i, n in enumerate(sizes)], [
        Field("blob", Kind.BYTES)
    ])  # fmt: skip
    assert path.stat().st_size == 7 * PAGE + 7 * 24
    with BetonFile.open(path) as file:
        pointers = file.metadata["0"]["ptr"]
        assert pointers.tolist() == [
            PAGE, 2 * PAGE - 10, 2 * PAGE, 3 * PAGE, 4 * PAGE, 5 * PAGE, 6 * PAGE
        ]  # fmt: skip
        assert all(file.value(i, "blob") == bytes([i]) * n for i, n in enumerate(sizes))


def test_sample_larger_than_a_page_is_refused_and_the_writer_goes_on(tmp_path):
    with BetonWriter(tmp_path / "x.beton", [IMAGE], capacity=2, page_size=PAGE) as writer:
        with pytest.raises(BadDataError, match=r"sample 0 has 3000000 bytes.* larger page size"):
            writer.add(np.zeros((1000, 1000, 3), np.uint8))
        assert writer.add(np.zeros((10, 10, 3), np.uint8)) == 0
        writer.commit()
    with BetonFile.open(tmp_path / "x.beton") as file:
        assert len(file) == 1 and find_damage(file, None, workers=0) == {}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (IMAGE, b"\xff\xd8 and no more", "where a marker must begin"),
        (IMAGE, jpeg(0, 8, 8)[:-1], "no end marker in the last two bytes"),
        (IMAGE, jpeg(0, 8, 8) + b"\0", "no end marker in the last two bytes"),
        (IMAGE, np.zeros((8, 8), np.uint8), r"must be \(H, W, 3\)"),
        (IMAGE, np.zeros((8, 8, 3), np.float32), r"must be \(H, W, 3\) and uint8"),
        (IMAGE, np.zeros((0, 8, 3), np.uint8), "8 x 0 pixels: sides must be 1 to 65535"),
        (IMAGE, np.zeros((1, 65536, 3), np.uint8), "65536 x 1 pixels"),
        (IMAGE, "a path", "str is neither"),
        (LABEL, 2**63, "not a 64-bit integer"),
        (LABEL, 0.5, "not a 64-bit integer"),
        (LABEL, None, "NoneType"),
        (Field("w", Kind.FLOAT), "x", "required argument is not a float"),
        (LABEL, float("inf"), "infinity"),
        (Field("b", Kind.BYTES), "text", "str is not bytes"),
        (Field("b", Kind.BYTES), np.zeros(3), r"must be \(size,\) and uint8"),
        (Field("j", Kind.JSON), {1, 2}, "not expressible as JSON"),
        (Field("a", Kind.ARRAY, np.dtype("<i4"), (2,)), np.zeros(2), "must be .* int32"),
    ],
)
def test_writer_names_what_it_refuses_and_stays_as_it_was(tmp_path, field, value, message):
    good = {
        Kind.IMAGE: pixels(0, 4, 4),
        Kind.JSON: 1,
        Kind.BYTES: b"1",
        Kind.ARRAY: np.zeros(2, "i4"),
    }
    with BetonWriter(tmp_path / "x.beton", [field], capacity=1, page_size=PAGE) as writer:
        with pytest.raises(BadDataError, match=rf"sample 0, field '{field.name}'.*{message}"):
            writer.add(value)
        writer.add(good.get(field.kind, 1))
        writer.commit()
    with BetonFile.open(tmp_path / "x.beton") as file:
        assert len(file) == 1 and find_damage(file, None, workers=0) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 0}, "capacity=0"),
        ({"page_size": 2**20}, "page size 1048576 must be a power of two"),
        ({"page_size": 3 * 2**20}, "power of two"),
        ({"fields": []}, "needs 1 to 64 fields"),
        ({"fields": [LABEL, LABEL]}, "different names"),
        ({"fields": [Field("a", Kind.ARRAY, np.dtype("<f8"), (2**19,))]}, "exceed a page"),
        ({"path": "none/x.beton"}, "no folder"),
        ({"path": "."}, "is a folder"),
        ({"resume": True}, "needs the identity of a journal"),
    ],
)
def test_writer_refuses_wrong_arguments(tmp_path, options, message):
    options = {"fields": [LABEL], "capacity": 1, "page_size": PAGE, "path": "x.beton"} | options
    path = tmp_path / options.pop("path")
    with pytest.raises(UsageError, match=message):
        BetonWriter(path, options.pop("fields"), **options)
    assert list(tmp_path.iterdir()) == []


def test_writer_refuses_more_than_its_capacity_and_use_after_the_end(tmp_path):
    with BetonWriter(tmp_path / "x.beton", [LABEL], capacity=1) as writer:
        writer.add(1)
        with pytest.raises(UsageError, match="more than capacity=1"):
            writer.add(2)
        writer.commit()
        with pytest.raises(UsageError, match="closed"):
            writer.add(3)


# --- atomicity


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write(tmp_path / "x.beton", class_names=["a", "b", "c"])
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(UsageError, match="at least one"):
        write(path, [], capacity=1)
    with pytest.raises(BadDataError, match=r"label 2 is not in \[0, 2\)"):
        write(path, class_names=["a", "b"])
    with (
        pytest.raises(KeyboardInterrupt),
        BetonWriter(path, ALL_FIELDS, capacity=9, page_size=PAGE) as writer,
    ):
        writer.add(*sample(0))
        raise KeyboardInterrupt
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def run(code: str, *arguments: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def test_full_disk_is_an_io_error_and_destroys_nothing(tmp_path):
    path = write(tmp_path / "x.beton")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    code = """
        import resource, signal, sys
        from fastrot.data.beton import BetonWriter, Field, Kind
        from fastrot.errors import StorageError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
        try:
            fields = [Field("b", Kind.BYTES)]
            with BetonWriter(sys.argv[1], fields, capacity=4, page_size=2**21) as w:
                for _ in range(4):
                    w.add(bytes(2**21))
                w.commit()
        except StorageError as error:
            print(error)
        """
    for limit in (2**20, 5 * 2**20 + 77, 10 * 2**20, 10 * 2**20 + 95):  # pages, then the table
        done = run(code, path, limit)
        assert "File too large" in done.stdout, done.stderr
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert run(code, path, 10 * 2**20 + 96).stdout == ""  # the exact size suffices


def test_leftovers_of_a_killed_writer_are_removed_by_the_next(tmp_path):
    for name in ("x.beton.tmp-elsewhere-1", "x.beton.journal"):
        (tmp_path / name).write_bytes(b"old")
    (tmp_path / "y.beton.tmp-elsewhere-1").write_bytes(b"of another file")
    path = write(tmp_path / "x.beton")
    assert leftovers(path) == ["y.beton.tmp-elsewhere-1"]


def test_second_writer_is_told_who_holds_the_file(tmp_path):
    path = tmp_path / "x.beton"
    with BetonWriter(path, [LABEL], capacity=1) as writer:
        with pytest.raises(MismatchError, match=rf"^{path} is held by .*:{os.getpid()} since \d"):
            BetonWriter(path, [LABEL], capacity=1)
        writer.add(1)
        writer.commit()
    write(tmp_path / "x.beton")
    assert leftovers(tmp_path / "x.beton") == []


def test_of_two_writers_exactly_one_wins(tmp_path):
    code = """
        import os, sys
        from fastrot.data.beton import BetonWriter, Field, Kind
        from fastrot.errors import MismatchError
        for line in sys.stdin:
            try:
                with BetonWriter(line.strip(), [Field("n", Kind.INT)], capacity=1) as writer:
                    print("writes", flush=True)
                    sys.stdin.readline()
                    writer.add(os.getpid())
                    writer.commit()
                    print("done", flush=True)
            except MismatchError:
                print("refused", flush=True)
                sys.stdin.readline()
                print("done", flush=True)
        """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen(command, **pipes) as one, subprocess.Popen(command, **pipes) as two:
        for i in range(10):
            for process in (one, two):
                process.stdin.write(f"{tmp_path}/{i}.beton\n")
            answers = [process.stdout.readline().strip() for process in (one, two)]
            assert sorted(answers) == ["refused", "writes"]
            for process in (one, two):
                process.stdin.write("\n")
                assert process.stdout.readline().strip() == "done"
            with BetonFile.open(tmp_path / f"{i}.beton") as file:
                winner = (one, two)[answers.index("writes")]
                assert file.ints("n").tolist() == [winner.pid]
        for process in (one, two):
            process.stdin.close()


# --- resuming

BLOB = [Field("blob", Kind.BYTES), LABEL]


def resumable(path: Path, identity: str = "sources", **options) -> BetonWriter:
    return BetonWriter(path, BLOB, capacity=9, page_size=PAGE, journal=identity, **options)


def add_from(writer: BetonWriter, stop: int) -> None:
    for i in range(writer.last_position + 1, stop):
        if i % 4 != 3:  # a source that was left out
            writer.add(bytes([i]) * 700_000, i, position=i)


@pytest.fixture
def interrupted(tmp_path) -> Path:
    """Two pages of two samples are recorded, a fifth sample was lost."""
    with resumable(tmp_path / "x.beton") as writer:
        add_from(writer, 7)
        assert writer.num_samples == 6
    assert not (tmp_path / "x.beton").exists()
    return tmp_path / "x.beton"


def finish(path: Path, resume: bool = True) -> bytes:
    with resumable(path, resume=resume) as writer:
        add_from(writer, 12)
        writer.commit(class_names=[str(i) for i in range(12)])
    assert leftovers(path) == []
    return path.read_bytes()


@pytest.fixture
def whole(tmp_path) -> bytes:
    (tmp_path / "whole").mkdir()
    return finish(tmp_path / "whole" / "x.beton", resume=False)


def resumed_at(path: Path) -> int:
    with resumable(path, resume=True) as writer:
        return writer.last_position


def test_resumed_file_equals_the_uninterrupted_one(interrupted, whole, tmp_path):
    (tmp_path / "whole" / "x.beton").unlink()
    with resumable(interrupted, resume=True) as writer:
        assert (writer.num_samples, writer.last_position) == (4, 4)
        add_from(writer, 9)
    assert resumed_at(interrupted) == 6
    with resumable(interrupted, resume=True) as writer:
        add_from(writer, 12)
        writer.commit(class_names=[str(i) for i in range(12)])
    assert interrupted.read_bytes() == whole


def test_torn_journal_loses_one_page(interrupted, whole):
    journal = interrupted.with_name("x.beton.journal")
    journal.write_bytes(journal.read_bytes()[:-1])
    assert resumed_at(interrupted) == 1
    with resumable(interrupted, resume=True) as writer:
        add_from(writer, 12)
        writer.commit()
    assert interrupted.read_bytes() == whole


def test_damaged_last_page_is_written_again(interrupted, whole):
    [temporary] = interrupted.parent.glob("x.beton.tmp-*")
    with open(temporary, "r+b") as file:
        file.seek(2 * PAGE + 99)
        file.write(b"\xff")
    assert resumed_at(interrupted) == 1


@pytest.mark.parametrize("damage", ["journal", "temporary", "both", "garbage"])
def test_lost_parts_mean_a_fresh_start(interrupted, whole, damage):
    [temporary] = interrupted.parent.glob("x.beton.tmp-*")
    journal = interrupted.with_name("x.beton.journal")
    if damage in ("temporary", "both"):
        temporary.unlink()
    if damage in ("journal", "both"):
        journal.unlink()
    if damage == "garbage":
        journal.write_bytes(b'["not", "a", "plan"]\n\0\0')
    with resumable(interrupted, resume=True) as writer:
        assert (writer.num_samples, writer.last_position) == (0, -1)
        add_from(writer, 12)
        writer.commit()
    assert interrupted.read_bytes() == whole


def test_another_conversion_is_not_resumed(interrupted):
    with pytest.raises(
        MismatchError, match=r"belongs to another conversion \(identity sources -> others"
    ):
        resumable(interrupted, "others", resume=True)
    with pytest.raises(MismatchError, match="capacity 9 -> 10"):
        BetonWriter(interrupted, BLOB, capacity=10, page_size=PAGE, journal="sources", resume=True)
    with pytest.raises(MismatchError, match="descriptors"):
        BetonWriter(
            interrupted, [LABEL], capacity=9, page_size=PAGE, journal="sources", resume=True
        )
    assert resumed_at(interrupted) == 4  # nothing was touched
    with resumable(interrupted) as writer:  # without resume: from the beginning
        assert writer.num_samples == 0


def test_journal_cannot_name_a_file_elsewhere(interrupted, tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    journal = interrupted.with_name("x.beton.journal")
    line, _, rest = journal.read_bytes().partition(b"\n")
    for name in ("victim", "x.beton.tmp-/../victim"):
        header = json.loads(line) | {"temporary": name}
        journal.write_bytes(json.dumps(header).encode() + b"\n" + rest)
        with resumable(interrupted, resume=True) as writer:
            assert writer.num_samples == 0
        assert victim.read_bytes() == b"precious"


# --- reading


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "an empty file, not a .beton file"),
        (b"\x02\0\x01\0", "at byte 0: 4 bytes, fewer than the header"),
        (jpeg(0, 8, 8), "a JPEG image, not a .beton file"),
        (b"<html>" + bytes(99), "an HTML or XML page .*, not a .beton file"),
    ],
)
def test_other_files_are_named_as_such(tmp_path, contents, message):
    (tmp_path / "x.beton").write_bytes(contents)
    with pytest.raises(BadDataError, match=rf"x.beton: {message}"):
        BetonFile.open(tmp_path / "x.beton")


def test_paths_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in (".", "pipe"):
        with pytest.raises(BadDataError, match="not a regular file"):
            BetonFile.open(tmp_path / name)
    (tmp_path / "file").touch()
    for name in ("none.beton", "file/none.beton"):
        with pytest.raises(UsageError, match="no such file; make one with fastrot prepare"):
            BetonFile.open(tmp_path / name)


def test_claims_beyond_the_file_are_refused_before_any_allocation(tmp_path):
    path = tmp_path / "x.beton"
    for samples in (2**63, 2**60, 2**40):
        header = np.array([(2, 1, PAGE, samples, 2**42)], HEADER)
        with open(path, "wb") as file:
            file.write(header.tobytes() + pack_descriptors([IMAGE]))
            file.truncate(2**42 + 24 * 5)  # sparse: 4 TiB that take no space
        with pytest.raises(BadDataError, match=r"do not fit|must be \d+ \("):
            BetonFile.open(path)


def test_custom_fields_need_their_own_program(tmp_path):
    path = write(tmp_path / "x.beton")
    raw = bytearray(path.read_bytes())
    raw[24] = 255
    path.write_bytes(raw)
    with pytest.raises(BadDataError, match=r"at byte 24: field 'image' has a custom type \(255\)"):
        BetonFile.open(path)


def test_pixel_cap(tmp_path):
    path = write(tmp_path / "x.beton")
    with pytest.raises(BadDataError, match="sample 3, field 'image': more than 199 pixels"):
        BetonFile.open(path, max_pixels=199)
    BetonFile.open(path, max_pixels=15 * 17).close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "JPEG of 9 x 5 pixels, but the metadata says 5 x 9"),
        ({"turned": False, "mode": "L"}, "1 components of 8 bits"),
        ({"turned": False, "mode": "CMYK"}, "4 components of 8 bits"),
    ],
)
def test_jpeg_must_fit_its_metadata(tmp_path, options, message):
    """The writer refuses these, so a good payload is overwritten by one of the same length."""
    good = jpeg(1, 9, 5) + bytes(4000)
    mode, turned = options.get("mode", "RGB"), options.get("turned", True)
    file = io.BytesIO()
    size = (9, 5) if turned else (5, 9)
    Image.new("RGB", size).convert(mode).save(file, "JPEG")
    bad = file.getvalue()
    length = max(len(bad), len(good))
    padded = [self[:2] + _comment(length - len(self)) + self[2:] for self in (good[:-4000], bad)]
    path = write(tmp_path / "x.beton", [(padded[0], 0)], [IMAGE, LABEL])
    path.write_bytes(path.read_bytes().replace(*padded))
    with BetonFile.open(path) as opened, pytest.raises(BadDataError, match=f"sample 0.*{message}"):
        opened.payload(0, "image")


def _comment(size: int) -> bytes:
    return b"\xff\xfe" + struct.pack(">H", size - 2) + bytes(size - 4)


def test_a_million_samples_open_at_once(tmp_path):
    n, fields = 1_000_000, [IMAGE, LABEL]
    start = -(-(metadata_start(2) + 24 * n) // PAGE) * PAGE
    metadata = np.zeros(n, record_dtype(fields))
    entries = np.zeros(n, ALLOCATION)
    order = np.random.default_rng(0).permutation(n)  # as many processes write it
    entries["sample"], entries["size"] = order, 3
    # 699050 images of 3 bytes fill a page but for 2 bytes
    entries["ptr"] = start + np.arange(n) // 699_050 * PAGE + np.arange(n) % 699_050 * 3
    metadata["0"]["mode"] = RAW
    metadata["0"]["width"] = metadata["0"]["height"] = 1
    metadata["0"]["ptr"][order] = entries["ptr"]
    metadata["1"] = np.arange(n)
    table = start + 2 * PAGE
    with open(tmp_path / "x.beton", "wb") as file:
        file.write(np.array([(2, 2, PAGE, n, table)], HEADER).tobytes())
        file.write(pack_descriptors(fields) + metadata.tobytes())
        file.seek(table)
        file.write(entries.tobytes())
    began = time.process_time()
    with BetonFile.open(tmp_path / "x.beton") as opened:
        assert time.process_time() - began < 2
        assert opened.data_sizes.sum() == 3 * n
        assert opened.payload(n - 1, "image") == bytes(3)


# --- a file that changes while it is in use


def test_truncation_while_in_use_is_an_error_not_a_signal(tmp_path):
    path = write(tmp_path / "x.beton")
    with BetonFile.open(path) as file:
        file.check_unchanged()
        os.truncate(path, PAGE + 10)
        with pytest.raises(BadDataError, match=r"ends at byte \d+, but had \d+ bytes"):
            file.payload(3, "image")
        with pytest.raises(BadDataError, match=r"changed while in use \(size \d+ -> 2097162"):
            file.check_unchanged()


def test_replacement_and_removal_are_noticed(tmp_path):
    path, other = write(tmp_path / "x.beton"), write(tmp_path / "y.beton")
    with BetonFile.open(path) as file:
        os.utime(path, ns=(0, 0))
        with pytest.raises(BadDataError, match=r"mtime_ns \d+ -> 0"):
            file.check_unchanged()
        other.rename(path)
        with pytest.raises(BadDataError, match="inode"):
            file.check_unchanged()
        file.payload(3, "image")  # the open file is still whole
        path.unlink()
        with pytest.raises(BadDataError, match="gone while in use"):
            file.check_unchanged()


READ_ALL = """
    import sys
    from fastrot.data.beton import BetonFile
    from fastrot.errors import FastrotError
    try:
        with BetonFile.open(sys.argv[1]) as file:
            print(sum(len(file.payload(i, "image")) for i in range(len(file))))
    except FastrotError as error:
        print(error.exit_code, error)
    """


@pytest.mark.parametrize("error", [pytest.param("EIO", marks=pytest.mark.chaos), "ESTALE"])
def test_passing_read_errors_are_retried_and_lasting_ones_reported(tmp_path, error):
    path = write(tmp_path / "x.beton")
    if subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True).returncode:
        pytest.skip("strace is missing or may not trace")
    expected = run(READ_ALL, path).stdout
    assert int(expected)
    log = tmp_path / "trace"
    calls = "pread64,preadv,preadv2"
    trace = ["strace", "-f", "-o", str(log), "-e", f"trace={calls}", "-P", str(path)]
    command = [sys.executable, "-c", textwrap.dedent(READ_ALL), str(path)]
    failed = f"74 {path}: reading"
    for when, answer in (("3", expected), ("6", expected), ("3+", failed), ("6+", failed)):
        inject = ["-e", f"inject={calls}:error={error}:when={when}"]
        done = subprocess.run([*trace, *inject, *command], capture_output=True, text=True)
        assert done.stdout.startswith(answer), done.stderr
        assert "INJECTED" in log.read_text()


def test_unreadable_file(tmp_path):
    path = write(tmp_path / "x.beton")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(StorageError, match="cannot be opened"):
        BetonFile.open(path)


def test_imports_no_torch():
    code = """
        import sys
        import fastrot.data.beton, fastrot.data.beton.dataset, fastrot.data.beton.manifest
        assert not {"torch", "PIL.ImageQt", "ffcv", "numba"} & set(sys.modules)
        """
    assert run(code).returncode == 0
