"""The walk over tar headers: what tarfile writes in every format, and what is refused."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrot.data.tar.headers import Member, walk
from fastrot.errors import BadDataError
from fastrot.system.pread_file import PreadFile

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
LONG = "folder/" + "n" * 150 + "/" + "m" * 140 + ".jpg"


def info(name, size=0, **more) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size = size
    for key, value in more.items():
        setattr(made, key, value)
    return made


def write(path: Path, files, *, format="pax", infos=(), **more) -> Path:
    with tarfile.open(path, "w", format=FORMATS[format], **more) as archive:
        for name, data in files.items():
            archive.addfile(info(name, len(data)), io.BytesIO(data))
        for other in infos:
            archive.addfile(other, io.BytesIO(bytes(other.size)))
    return path


def members(path: Path) -> list[Member]:
    file = PreadFile(path)
    try:
        return list(walk(file)[1])
    finally:
        file.close()


def contents(path: Path) -> dict[str, bytes]:
    raw = path.read_bytes()
    return {m.name: raw[m.offset : m.offset + m.size] for m in members(path)}


FILES = {
    "0001.jpg": b"x" * 1000,
    "0001.cls": b"7",
    "empty.txt": b"",
    "a/b/č.jpg": b"y" * 512,
    "last.jpg": b"z" * 5000,
}


@pytest.mark.parametrize("format", FORMATS)
def test_every_format(format, tmp_path):
    names = dict(FILES)
    if format != "ustar":
        names[LONG] = b"long"
    else:
        names["p" * 120 + "/" + "q" * 90] = b"prefix and name"
    path = write(tmp_path / "x.tar", names, format=format, infos=[info("d", type=tarfile.DIRTYPE)])
    assert contents(path) == names


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar program")
@pytest.mark.parametrize("format", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_what_the_tar_program_writes(format, tmp_path):
    for name, data in FILES.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    subprocess.run(
        ["tar", "--create", f"--format={format}", "--file", "../x.tar", "."],
        cwd=tmp_path / "in",
        check=True,
    )
    assert contents(tmp_path / "x.tar") == FILES


def test_a_size_in_binary_and_one_in_a_pax_record(tmp_path):
    """As for members of 8 GiB and more."""
    path = write(tmp_path / "x.tar", {"a.jpg": bytes(700)})
    raw = bytearray(path.read_bytes())
    raw[124:136] = b"\x80" + (700).to_bytes(11, "big")
    path.write_bytes(with_sum(raw))
    assert members(path) == [Member("a.jpg", 512, 700)]
    record = b"12 size=300\n"
    parts = [
        info("pax", len(record), type=tarfile.XHDTYPE).tobuf(tarfile.USTAR_FORMAT),
        record.ljust(512, b"\0"),
        info("b.jpg", 0).tobuf(tarfile.USTAR_FORMAT),  # what old programs see
        bytes(512),
        info("c.jpg", 5).tobuf(tarfile.USTAR_FORMAT),
        bytes(512),
        bytes(1024),
    ]
    path.write_bytes(b"".join(parts))
    assert members(path) == [Member("b.jpg", 1536, 300), Member("c.jpg", 2560, 5)]


def with_sum(raw: bytes | bytearray) -> bytearray:
    raw = bytearray(raw)
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    return raw


KINDS = {
    "a hard link": tarfile.LNKTYPE,
    "a symbolic link": tarfile.SYMTYPE,
    "a device": tarfile.CHRTYPE,
    "a named pipe": tarfile.FIFOTYPE,
    "unknown type b'Z'": b"Z",
}


@pytest.mark.parametrize("words", KINDS)
def test_what_is_no_plain_file_is_refused(words, tmp_path):
    bad = info("x.jpg", type=KINDS[words], linkname="/etc/passwd")
    path = write(tmp_path / "x.tar", {"a.jpg": b"1"}, infos=[bad])
    with pytest.raises(BadDataError, match=f"at byte 1024: 'x.jpg' .*{words}"):
        members(path)


@pytest.mark.parametrize("name", ["/etc/a.jpg", "../a.jpg", "a/../../b.jpg", "a/.."])
@pytest.mark.parametrize("format", ["ustar", "gnu", "pax"])
def test_names_that_lead_out_are_refused(name, format, tmp_path):
    path = write(tmp_path / "x.tar", {name: b"1"}, format=format)
    with pytest.raises(BadDataError, match=r"at byte 0: a member named .*out of the archive"):
        members(path)
    if format != "ustar":
        long = name + "/" + "n" * 200
        with pytest.raises(BadDataError, match="out of the archive"):
            members(write(tmp_path / "y.tar", {long: b"1"}, format=format))


def test_sparse_files_and_global_names_are_refused(tmp_path):
    sparse = info("a.jpg", 10, pax_headers={"GNU.sparse.major": "1"})
    with pytest.raises(BadDataError, match="a sparse file"):
        members(write(tmp_path / "x.tar", {}, infos=[sparse]))
    path = write(tmp_path / "y.tar", {"a.jpg": b"1"}, pax_headers={"path": "b.jpg"})
    with pytest.raises(BadDataError, match="one name or size"):
        members(path)
    path = write(tmp_path / "z.tar", {"a.jpg": b"1"}, pax_headers={"comment": "from git"})
    assert [member.name for member in members(path)] == ["a.jpg"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "ends without its two blocks of zeros"),
        (b"\x1f\x8b" + bytes(600), "a gzip file, not a tar archive"),
        (b"\xff\xd8" + bytes(600), "a JPEG image, not a tar archive"),
        (b"hello " * 200, "a text file, not a tar archive"),
    ],
)
def test_what_is_no_archive_is_named(content, words, tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    with pytest.raises(BadDataError, match=words) as caught:
        members(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_cut_archive_is_refused_wherever_it_is_cut(tmp_path):
    whole = write(tmp_path / "x.tar", FILES | {LONG: b"long"}).read_bytes()
    end = len(whole.rstrip(b"\0"))
    path = tmp_path / "cut.tar"
    for size in [*range(0, end, 256), *range(1, end, 389), end]:
        path.write_bytes(whole[:size])
        with pytest.raises(BadDataError, match=r"ends (without|beyond)|not a tar"):
            members(path)


def test_joined_archives_are_refused(tmp_path):
    """``cat`` puts one behind the end of the other, where no reader would find it."""
    path = write(tmp_path / "x.tar", FILES)
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(BadDataError, match="more data follows"):
        members(path)


def test_what_claims_too_much_is_refused_before_it_is_read(tmp_path):
    path = write(tmp_path / "x.tar", {"a.jpg": bytes(700)})
    raw = bytearray(path.read_bytes())
    raw[124:136] = b"\x80" + (2**80).to_bytes(11, "big")
    path.write_bytes(with_sum(raw))
    with pytest.raises(BadDataError, match="ends beyond the archive"):
        members(path)
    long = info("a.jpg", 3, pax_headers={"comment": "c" * 2**17})
    with pytest.raises(BadDataError, match="an extended header of 131"):
        members(write(tmp_path / "y.tar", {}, infos=[long]))


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, 4 * 1024 - 1), value=st.integers(0, 255), pax=st.booleans())
def test_a_changed_byte_in_a_header_is_noticed_or_harmless(tmp_path_factory, position, value, pax):
    """A checksum guards headers; pax records have none, but must stay well formed."""
    path = tmp_path_factory.mktemp("flip") / "x.tar"
    name = LONG if pax else "a.jpg"
    raw = bytearray(write(path, {name: b"data", "b.jpg": b"more"}).read_bytes())
    raw[position] = value
    path.write_bytes(raw)
    try:
        found = members(path)
    except BadDataError:
        return
    assert all(0 <= m.offset and m.offset + m.size <= len(raw) for m in found)


def test_random_bytes_are_no_archive(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "x.tar"
    for _ in range(20):
        path.write_bytes(rng.integers(0, 256, 2048, dtype=np.uint8).tobytes())
        with pytest.raises(BadDataError, match="not a tar archive"):
            members(path)


@pytest.mark.parametrize("digits", [b"-1", b"-1000", b"1_0", b"+7", b"8"])
def test_a_size_is_made_of_octal_digits(digits, tmp_path):
    """Found in review: with a negative size the walk went round for ever."""
    path = write(tmp_path / "x.tar", {"a.jpg": b"data"}, format="ustar")
    raw = bytearray(path.read_bytes())
    raw[124:136] = digits.ljust(12, b"\0")
    path.write_bytes(with_sum(raw))
    with pytest.raises(BadDataError, match="a header with the size"):
        members(path)
