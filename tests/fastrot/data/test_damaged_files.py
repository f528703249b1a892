"""Damaged ``.beton`` files: the same values as before, or exit 65 with the reason.

With a manifest every changed byte that means something is found. Without one these changes
cannot be told from good data, and only these: an image's data that still decodes (raw pixels,
most bytes of a JPEG between its headers), numbers (labels and weights), the contents of byte
strings and arrays and of JSON texts that stay JSON, and in a field's descriptor its name, a type
of the same layout, and an array's dtype and shape of the same size.
"""

from __future__ import annotations

import io
import json
import os
import select
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from fastrot.data.beton import JPEG, RAW, BetonFile, BetonWriter, Field, Kind
from fastrot.data.beton.format import (
    ALLOCATION,
    HEADER,
    metadata_start,
    pack_descriptors,
    record_dtype,
)
from fastrot.errors import BadDataError

PAGE = 2**21
FIELDS = (
    Field("image", Kind.IMAGE),
    Field("label", Kind.INT),
    Field("weight", Kind.FLOAT),
    Field("blob", Kind.BYTES),
    Field("box", Kind.ARRAY, np.dtype("<f4"), (2, 2)),
    Field("note", Kind.JSON),
)
COUNT = 8
NAMES = ("a", "b", "c")
SECONDS = 10


class Reader:
    """The worker process; a new one after a crash or a hang."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def look(self, path: Path) -> dict:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("damage_worker.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
            self.look(path)  # imports take a while, and are not what the deadline is for
        self._process.stdin.write(f"{path}\n")
        ready, _, _ = select.select([self._process.stdout], [], [], SECONDS if self.warm else 60)
        line = self._process.stdout.readline() if ready else "no answer in time"
        try:
            answer = json.loads(line)
        except ValueError:
            self.close()
            pytest.fail(f"the reader died or hung: {line!r}")
        assert not answer.pop("torch")
        assert answer.get("code", 65) == 65, answer["error"]
        self.warm = True
        return answer

    warm = False

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process, self.warm = None, False


@pytest.fixture(scope="module")
def reader():
    reader = Reader()
    yield reader
    reader.close()


def picture(i: int) -> np.ndarray:
    """Smooth, so that JPEGs are small and damage to them shows."""
    y, x = np.mgrid[: 16 + i, : 24 + i]
    return np.stack([x * 9 + i, y * 11, (x + y) * 5], axis=2).astype(np.uint8)


def jpeg(i: int, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(i)).save(file, "JPEG", **options)
    return file.getvalue()


@dataclass(frozen=True, repr=False)  # a failure must not print megabytes
class Base:
    """A good file in all its parts.

    ``owners`` is -1 for each byte of the file that means nothing, -2 for structure, -3 for
    descriptors, else ``sample * 100 + field`` for the bytes of a value. ``regions`` are the
    offsets that damage is drawn from: padding would get nearly all of it otherwise.
    """

    path: Path
    parts: dict[str, bytes]
    owners: np.ndarray
    regions: list[np.ndarray]
    answer: dict


def make_base(folder: Path, reader: Reader, *, with_manifest: bool) -> Base:
    path = folder / "x.beton"
    with BetonWriter(path, FIELDS, capacity=COUNT, page_size=PAGE) as writer:
        for i in range(COUNT):
            image = jpeg(i, progressive=i == 3) if i % 2 else picture(i)
            box = np.full((2, 2), i, np.float32)
            writer.add(image, i % 3, i / 2, bytes(range(i)), box, {"i": i})
        writer.commit(class_names=NAMES)
    if not with_manifest:
        for other in folder.glob("x.beton.manifest*"):
            other.unlink()
    answer = reader.look(path)
    assert len(answer["samples"]) == COUNT and all("values" in s for s in answer["samples"])
    parts = {other.name: other.read_bytes() for other in folder.iterdir()}
    owners = find_owners(path)
    metadata = metadata_start(len(FIELDS))
    regions = [
        np.arange(24),
        np.arange(24, metadata),
        np.arange(metadata, metadata + COUNT * record_dtype(FIELDS).itemsize),
        np.flatnonzero(owners >= 0),
        np.arange(int(np.flatnonzero(owners == -2)[-1]) + 1)[2 * PAGE :],
        np.arange(len(owners)),
    ]
    return Base(path, parts, owners, regions, answer)


def find_owners(path: Path) -> np.ndarray:
    owners = np.full(path.stat().st_size, -1, np.int32)
    with BetonFile.open(path) as file:
        owners[:24] = -2
        owners[24 : metadata_start(len(FIELDS))] = -3
        table = len(owners) - 24 * COUNT * sum(not field.is_scalar for field in FIELDS)
        owners[table:] = -2
        for sample in range(COUNT):
            start = metadata_start(len(FIELDS)) + sample * file.metadata.dtype.itemsize
            for i, field in enumerate(FIELDS):
                dtype, offset = file.metadata.dtype.fields[str(i)]
                owners[start + offset : start + offset + dtype.itemsize] = (
                    sample * 100 + i if field.is_scalar else -2
                )
                if not field.is_scalar:
                    pointer = int(file.metadata[str(i)]["ptr"][sample])
                    size = int(file.sizes(field.name)[sample])
                    owners[pointer : pointer + size] = sample * 100 + i
    return owners


@pytest.fixture(scope="module")
def with_manifest(tmp_path_factory, reader) -> Base:
    return make_base(tmp_path_factory.mktemp("manifest"), reader, with_manifest=True)


@pytest.fixture(scope="module")
def bare(tmp_path_factory, reader) -> Base:
    return make_base(tmp_path_factory.mktemp("bare"), reader, with_manifest=False)


def refused(answer: dict) -> bool:
    return "code" in answer or any("code" in sample for sample in answer["samples"])


# --- hypothesis


@dataclass(frozen=True)
class Edit:
    """Bytes of one part (0: the .beton) that are overwritten, or where it is cut or goes on."""

    part: int
    region: int
    place: float
    data: bytes
    how: str


edits = st.builds(
    Edit,
    part=st.sampled_from([0, 0, 0, 0, 1, 2]),
    region=st.integers(0, 5),
    place=st.floats(0, 1, exclude_max=True),
    data=st.binary(min_size=1, max_size=40),
    how=st.sampled_from(["bit", "bit", "byte", "byte", "splice", "copy", "cut", "append"]),
)


class Damage:
    """Edits carried out on the files of a base, and undone at the end of the block."""

    def __init__(self, base: Base, mutation: list[Edit]) -> None:
        self._base = base
        self._mutation = mutation
        self._touched: list[tuple[str, int, int]] = []

    def __enter__(self) -> Damage:
        for edit in self._mutation:
            self._apply(edit)
        return self

    def __exit__(self, *_: object) -> None:
        for name, start, end in self._touched:
            self._put(name, start, self._base.parts[name][start:end])
        for name in {name for name, _, _ in self._touched}:
            os.truncate(self._base.path.with_name(name), len(self._base.parts[name]))

    def changed_owners(self) -> set[int]:
        """Whose bytes of the .beton differ from the good file; it must not be longer or shorter."""
        name, owners = self._base.path.name, set()
        assert self._base.path.stat().st_size == len(self._base.parts[name])
        for other, start, end in self._touched:
            if other == name:
                now = np.frombuffer(self._read(name, start, end), np.uint8)
                good = np.frombuffer(self._base.parts[name][start:end], np.uint8)
                owners |= set(self._base.owners[start:end][now[: len(good)] != good].tolist())
        return owners

    def _apply(self, edit: Edit) -> None:
        names = [self._base.path.name, *sorted(set(self._base.parts) - {self._base.path.name})]
        name = names[min(edit.part, len(names) - 1)]
        size = self._base.path.with_name(name).stat().st_size
        if name == names[0]:
            region = self._base.regions[edit.region]
            at = int(region[int(edit.place * len(region))])
        else:
            at = int(edit.place * size)
        if edit.how == "append":
            return self._write(name, size, edit.data)
        if at >= size:  # an earlier edit cut it
            return None
        if edit.how == "cut":
            self._touched.append((name, at, len(self._base.parts[name])))
            return os.truncate(self._base.path.with_name(name), at)
        old = self._read(name, at, at + 64)
        if edit.how == "bit":
            return self._write(name, at, bytes([old[0] ^ 1 << edit.data[0] % 8]))
        if edit.how == "byte":
            return self._write(name, at, edit.data[:1])
        if edit.how == "splice":
            return self._write(name, at, edit.data[: len(old)])
        start = int.from_bytes(edit.data[1:5], "little") % (at + 1)
        copied = self._read(name, start, start + 1 + edit.data[0] % 64)
        return self._write(name, at, copied[: len(old)])

    def _read(self, name: str, start: int, end: int) -> bytes:
        with open(self._base.path.with_name(name), "rb") as file:
            return os.pread(file.fileno(), end - start, start)

    def _write(self, name: str, start: int, data: bytes) -> None:
        self._touched.append((name, start, start + len(data)))
        self._put(name, start, data)

    def _put(self, name: str, start: int, data: bytes) -> None:
        with open(self._base.path.with_name(name), "r+b") as file:
            os.pwrite(file.fileno(), data, start)


fuzz = settings(
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.slow
@settings(fuzz, max_examples=1000)
@given(mutation=st.lists(edits, min_size=1, max_size=3))
@example(mutation=[Edit(0, 3, 0.5, b"\x01", "bit")])
def test_with_a_manifest_no_damage_goes_unnoticed(with_manifest, reader, mutation):
    base = with_manifest
    with Damage(base, mutation) as damage:
        answer = reader.look(base.path)
        if answer != base.answer:
            assert refused(answer)
            if "samples" in answer:
                pairs = zip(answer["samples"], base.answer["samples"], strict=True)
                assert all("code" in sample or sample == good for sample, good in pairs)
            return
        assert damage.changed_owners() <= {-1}


@pytest.mark.slow
@settings(fuzz, max_examples=600)
@given(mutation=st.lists(edits, min_size=1, max_size=3))
@example(mutation=[Edit(0, 0, 0.99, b"\x01", "byte")])
def test_without_a_manifest_only_the_values_that_were_hit_can_differ(bare, reader, mutation):
    base = bare
    with Damage(base, mutation) as damage:
        answer = reader.look(base.path)
        if "code" in answer:
            return
        hit = damage.changed_owners()
        for i, (sample, good) in enumerate(
            zip(answer["samples"], base.answer["samples"], strict=True)
        ):
            if "code" in sample:
                continue
            same = [a == b for a, b in zip(sample["values"], good["values"], strict=True)]
            assert same[0] or i * 100 in hit, f"pixels of sample {i}"
            if -3 in hit:
                continue  # another name, type or dtype of the same size
            for field in range(1, len(FIELDS)):
                assert same[field] or i * 100 + field in hit
            assert same[-1] or i * 100 + 1 in hit, f"label of sample {i}"


# --- the mutants of FFCV's damage table


class Mutant:
    """The parts of a small file with one image field and labels, to be changed by name."""

    def __init__(self) -> None:
        self.fields = [Field("image", Kind.IMAGE), Field("label", Kind.INT)]
        self.descriptors = bytearray(pack_descriptors(self.fields))
        self.payloads = [jpeg(i) if i % 2 else picture(i).tobytes() for i in range(4)]
        self.metadata = np.zeros(4, record_dtype(self.fields))
        self.table = np.zeros(4, ALLOCATION)
        offset = PAGE
        for i, data in enumerate(self.payloads):
            height, width, _ = picture(i).shape
            self.metadata["0"][i] = (JPEG if i % 2 else RAW, width, height, offset)
            self.metadata["1"][i] = i
            self.table[i] = (i, offset, len(data))
            offset += len(data)
        self.header = np.array((2, 2, PAGE, 4, 2 * PAGE), HEADER)

    @property
    def image(self):
        return self.metadata["0"]

    def write(self, path: Path) -> Path:
        head = self.header.tobytes() + self.descriptors + self.metadata.tobytes()
        body = b"".join(self.payloads)
        path.write_bytes(head.ljust(PAGE, b"\0") + body.ljust(PAGE, b"\0") + self.table.tobytes())
        return path


def set_header(name, value):
    return lambda mutant: mutant.header.__setitem__(name, value)


def set_image(name, value, sample=1):
    return lambda mutant: mutant.image[name].__setitem__(sample, value)


def set_entry(name, value, sample=1):
    return lambda mutant: mutant.table[name].__setitem__(sample, value)


def set_descriptor(offset, data):
    return lambda mutant: mutant.descriptors.__setitem__(slice(offset, offset + len(data)), data)


def set_payload(sample, change):
    return lambda mutant: mutant.payloads.__setitem__(sample, change(mutant.payloads[sample]))


def exchange_pointers(mutant):
    mutant.image["ptr"][[1, 3]] = mutant.image["ptr"][[3, 1]]


def share_an_allocation(mutant):
    mutant.image["ptr"][3] = mutant.image["ptr"][1]


def swap_two_samples_of_the_table(mutant):
    mutant.table["sample"][[1, 3]] = [3, 1]


def make_an_array(mutant, dtype=b'[["", "|O"]]', shape=(2, 0)):
    """Turn the label into an array field."""
    arguments = np.zeros((), [("shape", "<u8", 32), ("length", "<u8")])
    arguments["shape"][: len(shape)], arguments["length"] = shape, len(dtype)
    set_descriptor(1041, bytes([4]))(mutant)
    set_descriptor(1041 + 17, arguments.tobytes() + dtype)(mutant)


IN_IMAGE_1 = "sample 1, field 'image'"
MUTANTS = {
    "version 3": (set_header("version", 3), "not a .beton file"),
    "no fields": (set_header("num_fields", 0), "0 fields; there must be 1 to 64"),
    "65 fields": (set_header("num_fields", 65), "65 fields"),
    "one field more": (set_header("num_fields", 3), "at byte 2106: field"),
    "one field less": (set_header("num_fields", 1), "sample 0, field 'image': its pointer"),
    "page size 0": (set_header("page_size", 0), "page size 0 must be a power of two"),
    "page size no power of 2": (set_header("page_size", 3 * 2**20), "power of two"),
    "page size 1 MiB": (set_header("page_size", 2**20), "power of two"),
    "page size 4 MiB": (set_header("page_size", 2**22), "must follow whole pages"),
    "no samples": (set_header("num_samples", 0), "no samples"),
    "one sample more": (set_header("num_samples", 5), r"must be 120 \(5 entries"),
    "one sample less": (set_header("num_samples", 3), r"must be 72 \(3 entries"),
    "a million samples more": (set_header("num_samples", 10**6 + 4), "do not fit before"),
    "2**64 - 1 samples": (set_header("num_samples", 2**64 - 1), "do not fit before"),
    "no table": (set_header("alloc_table_ptr", 0), "no allocation table: its writer was stopped"),
    "table beyond the end": (set_header("alloc_table_ptr", 2**40), "beyond the end"),
    "table 24 bytes late": (set_header("alloc_table_ptr", 2 * PAGE + 24), "must be 96"),
    "table in the data": (set_header("alloc_table_ptr", PAGE), "allocation table of 2097248 bytes"),
    "table in the header": (set_header("alloc_table_ptr", 24), "do not fit before byte 24"),
    "unknown type": (set_descriptor(1041, b"\7"), "field 'label' has unknown type 7"),
    "custom type": (set_descriptor(1041, b"\xff"), r"field 'label' has a custom type \(255\)"),
    "no name": (set_descriptor(1, bytes(16)), "field name '' must be 1 to 16"),
    "same names": (set_descriptor(1042, b"image"), "two fields are named 'image'"),
    "name not ASCII": (set_descriptor(1, b"\xe9"), "is not ASCII"),
    "name behind its end": (set_descriptor(10, b"x"), "continues after its end"),
    "name with an escape": (set_descriptor(1, b"\x1b[2J"), "printable ASCII"),
    "arguments of an image": (set_descriptor(500, b"\1"), "has arguments, but its type takes none"),
    "object array": (make_an_array, "describes no plain numeric dtype"),
    "structured array": (
        lambda m: make_an_array(m, b'[["", [["a", "<i4"]]]]'),
        "describes no plain numeric dtype",
    ),
    "array of no JSON": (lambda m: make_an_array(m, b"\xff" * 9), "no plain numeric dtype"),
    "array of deep JSON": (lambda m: make_an_array(m, b"[" * 700), "no plain numeric dtype"),
    "array beyond a page": (
        lambda m: make_an_array(m, b'[["", "<f8"]]', (2**62, 2**62)),
        "exceeds a page",
    ),
    "array with a hole in its shape": (
        lambda m: make_an_array(m, b'[["", "<f8"]]', (2, 0, 2)),
        "malformed array arguments",
    ),
    "pointer off by one": (
        lambda m: m.image["ptr"].__setitem__(1, m.image["ptr"][1] + 1),
        f"{IN_IMAGE_1}: its pointer has no entry",
    ),
    "pointer far away": (set_image("ptr", 2**63), f"{IN_IMAGE_1}: its pointer has no entry"),
    "pointers exchanged": (exchange_pointers, f"{IN_IMAGE_1}: its pointer has no entry"),
    "two samples, one image": (share_an_allocation, "sample 3, field 'image': its pointer"),
    "mode 7": (set_image("mode", 7), f"{IN_IMAGE_1}: mode is neither"),
    "JPEG called raw": (set_image("mode", RAW), f"{IN_IMAGE_1}: raw size is not"),
    "no width and height": (set_image(["width", "height"], 0), f"{IN_IMAGE_1}: width or height"),
    "no width": (set_image("width", 0), f"{IN_IMAGE_1}: width or height is 0"),
    "raw width + 1": (set_image("width", 99, 2), "sample 2, field 'image': raw size is not"),
    "raw bomb": (
        lambda m: m.image.__setitem__(2, (RAW, 65535, 65535, m.image["ptr"][2])),
        "sample 2, field 'image': more than 268435456 pixels",
    ),
    "raw size enlarged": (set_entry("size", 99999, 2), "entry 2: its data overlaps"),
    "last size enlarged": (set_entry("size", PAGE, 3), "entry 3: its data ends beyond the pages"),
    "size 2**64 - 1": (set_entry("size", 2**64 - 1), "entry 1: its data ends beyond the pages"),
    "raw size shrunk": (set_entry("size", 7, 2), "sample 2, field 'image': raw size is not"),
    "size 0": (set_entry("size", 0), f"{IN_IMAGE_1}: its pointer has no entry"),
    "entry before the data": (set_entry("ptr", 24), "entry 1: it points before the data"),
    "entry beyond the data": (set_entry("ptr", 2**64 - 1), "entry 1: it points beyond the data"),
    "entry of no sample": (set_entry("sample", 4), "entry 1: no sample has its id"),
    "entries exchanged": (swap_two_samples_of_the_table, f"{IN_IMAGE_1}: its pointer has no"),
    "entry twice": (lambda m: m.table.__setitem__(3, m.table[1]), "overlaps that of another"),
    "JPEG of zeros": (set_payload(1, lambda d: bytes(len(d))), "sample 1.*not a JPEG"),
    "JPEG half of zeros": (
        set_payload(1, lambda d: d[: len(d) // 2].ljust(len(d), b"\0")),
        r"sample 1\): truncated JPEG: no end marker",
    ),
    "JPEG of another size": (
        set_payload(1, lambda d: d.replace(b"\x08\0\x11\0\x19", b"\x08\0\x19\0\x11")),
        r"sample 1\): JPEG of 17 x 25 pixels, but the metadata says 25 x 17",
    ),
    "arithmetic JPEG": (
        set_payload(1, lambda d: d.replace(b"\xff\xc0\0\x11", b"\xff\xc9\0\x11")),
        r"sample 1\): arithmetic-coded JPEG; it must be baseline or progressive",
    ),
    "JPEG of garbage": (
        set_payload(1, lambda d: np.random.default_rng(0).bytes(len(d))),
        "sample 1.*not a JPEG",
    ),
    "JPEG with holes": (
        set_payload(1, lambda d: d[:-60] + b"\xff\x01" * 29 + d[-2:]),
        r"bad sample 1 \(.*x.beton sample 1\): ",
    ),
}  # fmt: skip


def errors(answer: dict) -> list[str]:
    if "error" in answer:
        return [answer["error"]]
    return [sample["error"] for sample in answer["samples"] if "error" in sample]


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_refused_and_the_place_is_named(tmp_path, reader, name):
    change, message = MUTANTS[name]
    mutant = Mutant()
    assert not refused(reader.look(mutant.write(tmp_path / "x.beton")))
    change(mutant)
    [error] = errors(reader.look(mutant.write(tmp_path / "x.beton")))
    assert str(tmp_path / "x.beton") in error and "\n" not in error
    with pytest.raises(BadDataError, match=message):
        raise BadDataError(error)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (0, "an empty file, not a .beton file"),
        (23, "23 bytes, fewer than the header of 24"),
        (24, "2 field descriptors do not fit into 24 bytes"),
        (2105, "2 field descriptors do not fit"),
        (2106, "beyond the end at 2106: truncated"),
        (PAGE, "beyond the end at 2097152: truncated"),
        (2 * PAGE - 1, "truncated"),
        (2 * PAGE, r"allocation table of 0 bytes; it must be 96"),
        (2 * PAGE + 24, r"allocation table of 24 bytes; it must be 96"),
        (2 * PAGE + 95, r"allocation table of 95 bytes; it must be 96"),
        (2 * PAGE + 97, r"allocation table of 97 bytes; it must be 96"),
        (2 * PAGE + 120, r"allocation table of 120 bytes; it must be 96"),
    ],
)
def test_file_of_another_length_is_refused(tmp_path, reader, size, message):
    path = Mutant().write(tmp_path / "x.beton")
    os.truncate(path, size)
    [error] = errors(reader.look(path))
    with pytest.raises(BadDataError, match=message):
        raise BadDataError(error)


def test_what_a_killed_writer_of_ffcv_leaves_is_refused(tmp_path, reader):
    """Header and pages are there; metadata and table are written at the very end."""
    mutant = Mutant()
    mutant.header["alloc_table_ptr"] = 0
    mutant.metadata[:] = np.zeros((), mutant.metadata.dtype)
    mutant.table = mutant.table[:0]
    [error] = errors(reader.look(mutant.write(tmp_path / "x.beton")))
    assert "no allocation table: its writer was stopped before the end" in error
    mutant.header["alloc_table_ptr"] = 2 * PAGE  # stopped a moment later
    [error] = errors(reader.look(mutant.write(tmp_path / "x.beton")))
    assert "allocation table of 0 bytes" in error


def test_a_changed_label_needs_the_manifest(with_manifest, bare, reader):
    for base, label, found in (
        (bare, 2, None),  # cannot be told from a good one
        (bare, -5, None),
        (with_manifest, 2, "structure hash"),
        (with_manifest, 3, "structure hash"),
    ):
        data = label.to_bytes(8, "little", signed=True)
        place = (metadata_start(len(FIELDS)) + 16 + 0.5) / len(base.owners)  # of sample 0: label 0
        with Damage(base, [Edit(0, 5, place, data, "splice")]) as damage:
            answer = reader.look(base.path)
            assert damage.changed_owners() == {1}
            assert refused(answer) == (found is not None)
            assert found is None or found in answer["error"]


# --- real files that are no good JPEG, or an unusual one


def craft(path: Path, payload: bytes, width: int, height: int) -> Path:
    """A file with this one image; everything but the image's data is as it should be."""
    mutant = Mutant()
    mutant.payloads = [payload]
    mutant.metadata, mutant.table = mutant.metadata[:1], mutant.table[:1]
    mutant.image[0] = (JPEG, width, height, PAGE)
    mutant.table["size"] = len(payload)
    mutant.header["num_samples"] = 1
    return mutant.write(path)


RIGHT_PIXELS = {
    *(f"exif_landscape_{i}.jpg" for i in range(1, 9)),
    "exif_portrait_1.jpg",
    "hopper_bad_exif.jpg",
    "icc-after-SOF.jpg",
    *(f"progressive_exif_{i}.jpg" for i in (1, 4, 7)),
}


def test_every_bad_input_as_a_payload_is_refused_or_comes_out_right(tmp_path, reader, test_data):
    right = set()
    files = sorted(test_data("bad-inputs").iterdir())
    assert len(files) > 20
    for source in files:
        data = source.read_bytes()
        try:
            with Image.open(source) as image:
                width, height = image.size
        except (OSError, ValueError, Image.DecompressionBombError):
            width, height = 10, 10
        answer = reader.look(craft(tmp_path / "x.beton", data, width, height))
        if refused(answer):
            [error] = errors(answer)
            assert "sample 0" in error, (source.name, error)
            continue
        right.add(source.name)
        pixels = np.asarray(Image.open(source).convert("RGB"))  # as stored: EXIF is not applied
        expected = craft_raw(tmp_path / "raw.beton", pixels)
        assert answer["samples"][0]["values"][0] == reader.look(expected)["samples"][0]["values"][0]
    assert right <= RIGHT_PIXELS and len(right) >= 8, right ^ RIGHT_PIXELS


def craft_raw(path: Path, pixels: np.ndarray) -> Path:
    with BetonWriter(path, [Field("image", Kind.IMAGE)], capacity=1) as writer:
        writer.add(pixels)
        writer.commit()
    return path


def test_writer_takes_of_the_bad_inputs_only_what_the_reader_reads(tmp_path, reader, test_data):
    for source in sorted(test_data("bad-inputs").iterdir()):
        with BetonWriter(tmp_path / "x.beton", [Field("image", Kind.IMAGE)], capacity=1) as writer:
            try:
                writer.add(source.read_bytes())
            except BadDataError as error:
                assert "sample 0, field 'image'" in str(error)
                continue
            writer.commit()
        with Image.open(source) as image:
            oriented = ImageOps.exif_transpose(image).size
            with BetonFile.open(tmp_path / "x.beton") as file:
                assert file.payloads(0)
                assert (file.widths[0], file.heights[0]) in (image.size, oriented)
