"""``prepare`` on real photos, and under everything that can stop it."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from rich.console import Console

from fastrot.data.beton import manifest
from fastrot.data.beton.reader import BetonFile
from fastrot.data.beton.verify import verify
from fastrot.data.open import open_dataset
from fastrot.data.prepare import encode
from fastrot.data.prepare.convert import prepare
from fastrot.data.prepare.options import PrepareRequest
from fastrot.errors import BadDataError, MismatchError, StorageError, UsageError

PAGE = 2**21  # the smallest page: a run that is killed loses at most one

SCRIPT = """
import json, sys
from pathlib import Path
from fastrot.data.prepare.convert import prepare
from fastrot.data.prepare.options import PrepareRequest
from fastrot.errors import FastrotError
given = json.loads(sys.argv[1])
try:
    prepare(PrepareRequest(Path(given.pop("source")), Path(given.pop("out")), **given))
except FastrotError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


PEAK = """
from pathlib import Path
from fastrot.data.prepare.convert import prepare
from fastrot.data.prepare.options import PrepareRequest

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])

before = peak()
prepare(PrepareRequest(Path({0!r}), Path({1!r}), max_side=500, progress=False, workers=0))
print(before, peak())
"""


def start(**arguments):
    text = json.dumps(arguments | {"progress": False, "page_size": PAGE}, default=str)
    return subprocess.Popen([sys.executable, "-c", SCRIPT, text], stderr=subprocess.PIPE, text=True)


def left_beside(out: Path) -> set[str]:
    """What is in the folder of ``out`` besides it, its manifest, and what ``verify`` noted."""
    ours = (out.name, out.name + ".manifest.json", out.name + ".checked.json")
    return {
        p.name
        for p in out.parent.iterdir()
        if p.name not in ours and not p.name.startswith(f"{out.name}.manifest-")
    }


def noise_folder(root, n, side=100, seed=0):
    rng = np.random.default_rng(seed)
    for i in range(n):
        path = root / f"class{i % 3}" / f"{i:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (side, side + i % 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, quality=75)
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return noise_folder(tmp_path_factory.mktemp("photos") / "set", 600)


def test_imagenette_with_copied_bytes(test_data, tmp_path):
    source = test_data("imagenette-128")
    out = tmp_path / "val.beton"
    report = prepare(PrepareRequest(source, out, split="val", copy=True, workers=2, progress=False))
    assert report.num_samples == 1000 and report.file_bytes == out.stat().st_size
    assert report.kept + sum(report.reencoded.values()) == 1000
    assert left_beside(out) == set()
    assert verify(out, progress=False).exit_code == 0
    samples = open_dataset(out)
    assert np.bincount(samples.labels).tolist() == [100] * 10
    assert np.count_nonzero(np.diff(samples.labels)) > 500, "must be shuffled"
    by_bytes = {p.read_bytes(): p for p in (source / "val").rglob("*.JPEG")}
    by_bytes |= {p.read_bytes(): p for p in (source / "val").rglob("*.jpg")}
    found = set()
    for i in range(1000):
        path = by_bytes.get(bytes(samples.read(i).data))
        if path is not None:
            found.add(path)
            assert samples.class_names[samples.labels[i]] == path.parent.name
    assert len(found) == report.kept


def test_copying_decodes_nothing_and_says_so(test_data, tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("decoded")

    monkeypatch.setattr(encode, "decode_image", never)
    out = tmp_path / "o.beton"
    report = prepare(
        PrepareRequest(test_data("imagenette-128"), out, split="val", copy=True, progress=False)
    )
    assert report.kept == 1000
    console = Console(width=300, record=True, file=open("/dev/null", "w"))
    report.show(console)
    assert f"not decoded: fastrot verify {out} does that" in console.export_text()
    with BetonFile.open(out) as file:
        assert not manifest.load(file).pixels_decoded
    samples = open_dataset(out)
    assert samples.has_checksums and not samples.checksums_suffice


def test_what_was_decoded_is_known_to_decode(photos, tmp_path):
    prepare(PrepareRequest(photos, tmp_path / "o.beton", progress=False))
    assert open_dataset(tmp_path / "o.beton").checksums_suffice
    assert not open_dataset(tmp_path / "o.beton", checksums=False).checksums_suffice


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_copying_gives_the_same_bytes_whatever_the_workers(tmp_path, kind):
    """Also of PNGs, which are re-encoded, in processes."""
    rng = np.random.default_rng(0)
    (tmp_path / "s").mkdir()
    for i in range(70):
        pixels = rng.integers(0, 256, (30, 30 + i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "s" / f"{i}.{'png' if i == 0 else kind}")
    contents = set()
    for workers in (0, 1, 3):
        out = tmp_path / f"{workers}.beton"
        report = prepare(
            PrepareRequest(tmp_path / "s", out, copy=True, workers=workers, progress=False)
        )
        assert report.reencoded == {"not a JPEG": 1 if kind == "jpg" else 70}
        contents.add(out.read_bytes())
    assert len(contents) == 1


def test_copying_refuses_what_its_markers_show(photos, tmp_path):
    root = shutil.copytree(photos, tmp_path / "set")
    whole = (root / "class0" / "0000.jpg").read_bytes()
    (root / "class0" / "0000.jpg").write_bytes(whole[:-2])
    (root / "class0" / "0003.jpg").write_bytes(whole[:300])
    (root / "class0" / "0006.jpg").write_bytes(b"<html>")
    (root / "class0" / "0009.jpg").write_bytes(b"")
    with pytest.raises(BadDataError, match=r"000[0369]\.jpg.*--on-bad-sample skip"):
        prepare(PrepareRequest(root, tmp_path / "o.beton", copy=True, progress=False))
    report = prepare(
        PrepareRequest(
            root, tmp_path / "o.beton", copy=True, on_bad_sample="skip", workers=2, progress=False
        )
    )
    assert sorted(s.path[-8:] for s in report.skipped) == [
        *("0000.jpg", "0003.jpg", "0006.jpg", "0009.jpg")
    ]
    assert verify(tmp_path / "o.beton", progress=False).exit_code == 0


def test_reencoding_shrinks_and_stays_close(test_data, tmp_path):
    out = tmp_path / "small.beton"
    prepare(
        PrepareRequest(
            test_data("imagenet-300"), out, max_side=96, quality=95, workers=2, progress=False
        )
    )
    with BetonFile.open(out) as file:
        assert len(file) == 300
        assert np.maximum(file.widths, file.heights).max() == 96
    samples = open_dataset(out)
    assert samples.class_names is None and set(samples.labels.tolist()) == {-1}
    assert manifest.load(BetonFile.open(out)).made_by["max_side"] == 96


def test_same_options_give_the_same_bytes_whatever_the_workers(photos, tmp_path):
    contents = set()
    for workers in (0, 1, 3):
        out = tmp_path / f"{workers}.beton"
        prepare(PrepareRequest(photos, out, workers=workers, progress=False))
        contents.add(out.read_bytes())
    assert len(contents) == 1
    prepare(PrepareRequest(photos, tmp_path / "other.beton", seed=1, progress=False))
    assert (tmp_path / "other.beton").read_bytes() not in contents


def test_cifar_binary_is_stored_raw(tmp_path):
    rng = np.random.default_rng(0)
    record = [bytes([i % 10]) + rng.bytes(3072) for i in range(40)]
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        (tmp_path / name).write_bytes(b"".join(record))
    (tmp_path / "batches.meta.txt").write_text("\n".join(f"c{i}" for i in range(10)))
    out = tmp_path / "out" / "test.beton"
    out.parent.mkdir()
    prepare(PrepareRequest(tmp_path, out, split="test", progress=False))
    samples = open_dataset(out)
    stored = {samples.decode(i).tobytes(): int(samples.labels[i]) for i in range(40)}
    for row in record:
        planes = np.frombuffer(row[1:], np.uint8).reshape(3, 32, 32)
        assert stored[planes.transpose(1, 2, 0).tobytes()] == row[0]


def test_every_kind_of_file_and_name(test_data, tmp_path):
    root = tmp_path / "mixed"
    (root / "a\nb").mkdir(parents=True)
    names = ["exif_landscape_6.jpg", "hopper_gray.jpg", "pil_sample_cmyk.jpg",
             "progressive_exif_7.jpg", "exif_portrait_1.jpg"]  # fmt: skip
    for name in names:
        shutil.copy(test_data("bad-inputs") / name, root / "a\nb" / f"line\n{name}")
    Image.new("RGBA", (9, 7), (1, 2, 3, 4)).save(root / "a\nb" / "x.png")
    report = prepare(PrepareRequest(root, tmp_path / "m.beton", copy=True, progress=False))
    assert report.reencoded == {"EXIF orientation": 2, "grey": 1, "CMYK": 1, "not a JPEG": 1}
    assert report.kept == 1
    samples = open_dataset(tmp_path / "m.beton")
    assert samples.class_names == ("a\nb",)
    shapes = {samples.decode(i).shape for i in range(6)}
    for name in names:
        with Image.open(test_data("bad-inputs") / name) as image:
            width, height = ImageOps.exif_transpose(image).size
        assert (height, width, 3) in shapes


def test_bad_source_image_is_fatal_and_named(photos, tmp_path):
    root = shutil.copytree(photos, tmp_path / "set")
    (root / "class1" / "0100.jpg").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    whole = (root / "class2" / "0200.jpg").read_bytes()
    (root / "class2" / "0200.jpg").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "out.beton"
    with pytest.raises(BadDataError, match=r"0[12]00\.jpg.*--on-bad-sample skip") as error:
        prepare(PrepareRequest(root, out, workers=2, progress=False))
    assert "\n" not in str(error.value)
    assert not out.exists()
    report = prepare(PrepareRequest(root, out, on_bad_sample="skip", workers=2, progress=False))
    assert report.num_samples == 598
    assert sorted(s.path for s in report.skipped) == ["class1/0100.jpg", "class2/0200.jpg"]
    assert {"git-lfs" in s.reason for s in report.skipped} == {True, False}
    assert verify(out, progress=False).exit_code == 0
    assert left_beside(out) == {"set"}


def test_nothing_but_bad_images_is_an_error(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "1.jpg").write_bytes(b"")
    with pytest.raises(BadDataError, match="no valid image"):
        prepare(
            PrepareRequest(
                tmp_path / "s", tmp_path / "o.beton", on_bad_sample="skip", progress=False
            )
        )
    assert not (tmp_path / "o.beton").exists()


def test_dry_run_writes_nothing_and_estimates_the_size(photos, tmp_path):
    report = prepare(PrepareRequest(photos, tmp_path / "o.beton", dry_run=True, page_size=PAGE))
    assert report.dry_run and report.num_samples == 600
    assert list(tmp_path.iterdir()) == []
    json.dumps(report.to_json())
    real = prepare(PrepareRequest(photos, tmp_path / "o.beton", page_size=PAGE, progress=False))
    assert abs(report.file_bytes - real.file_bytes) <= PAGE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"copy": True, "quality": 80}, "--copy keeps the bytes"),
        ({"copy": True, "max_side": 80}, "--copy keeps the bytes"),
        ({"quality": 0}, "--quality=0 must be from 1 to 100"),
        ({"max_side": 0}, "--max-side=0 must be"),
        ({"max_pixels": 0}, "--max-pixels=0 must be at least 1"),
        ({"workers": -1}, "--workers=-1"),
        ({"seed": -1}, "--seed=-1"),
        ({"on_bad_sample": "ignore"}, "choose fail or skip"),
        ({"kind": "voc"}, "choose auto, folder, cifar, voc07, coco"),
    ],
)
def test_options_that_make_no_sense(photos, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        prepare(PrepareRequest(photos, tmp_path / "o.beton", progress=False, **options))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("copy", [False, True])
def test_what_the_lifted_cap_lets_in_is_sound_for_all_who_read_it(tmp_path, copy):
    width, height = 8400, 8000  # of one colour: a small file, but all of its pixels
    (tmp_path / "photos" / "a").mkdir(parents=True)
    image = Image.new("RGB", (width, height), (200, 100, 50))
    image.save(tmp_path / "photos" / "a" / "large.jpg")
    out = tmp_path / "o.beton"
    request = PrepareRequest(tmp_path / "photos", out, copy=copy, progress=False)
    with pytest.raises(BadDataError, match=rf"--max-pixels {width * height}; "):
        prepare(request)
    report = prepare(replace(request, max_pixels=width * height))
    assert (report.kept, report.num_samples) == (int(copy), 1)
    assert verify(out, progress=False).exit_code == 0
    data = open_dataset(out)
    assert data.sizes(np.arange(1)).tolist() == [[width, height]]
    assert manifest.load(data.file).made_by["max_pixels"] == width * height


def test_a_photo_beyond_the_cap_is_shrunk_in_little_memory(tmp_path):
    """What --max-side makes of it needs no whole decode: 200 MB of pixels here."""
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8400, 8000), (200, 100, 50)).save(tmp_path / "a" / "large.jpg")
    code = PEAK.format(str(tmp_path), str(tmp_path / "o.beton"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after - before < 100 * 1024, "KiB"
    data = open_dataset(tmp_path / "o.beton")
    assert data.sizes(np.arange(1)).tolist() == [[500, 476]]
    assert np.abs(data.decode(0).astype(int) - (200, 100, 50)).max() <= 2


def test_existing_output_stays_unless_overwriting_is_asked_for(photos, tmp_path):
    out = tmp_path / "o.beton"
    out.write_bytes(b"precious")
    with pytest.raises(UsageError, match="--overwrite"):
        prepare(PrepareRequest(photos, out, progress=False))
    assert out.read_bytes() == b"precious"
    prepare(PrepareRequest(photos, out, overwrite=True, progress=False))
    assert verify(out, progress=False).exit_code == 0


def test_unwritable_output_is_found_before_work_starts(photos, tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        prepare(PrepareRequest(photos, tmp_path / "nowhere" / "o.beton", progress=False))
    with pytest.raises(UsageError, match="a folder"):
        prepare(PrepareRequest(photos, tmp_path, progress=False))
    with pytest.raises(StorageError, match="cannot be written"):
        prepare(PrepareRequest(photos, Path("/proc/o.beton"), progress=False))


def children_of(pid):
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except FileNotFoundError:
        return []
    return [int(child) for child in text.split()]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def wait_until_gone(pids):
    wait_until(lambda: not any(map(alive, pids)), 2, "a worker outlived its parent")


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_gives_the_same_bytes(photos, tmp_path):
    whole = tmp_path / "whole" / "o.beton"
    whole.parent.mkdir()
    assert start(source=photos, out=whole, workers=2).wait() == 0
    rng = random.Random(0)
    out = tmp_path / "killed" / "o.beton"
    out.parent.mkdir()
    journal = out.with_name(out.name + ".journal")

    def recorded():
        return journal.stat().st_size if journal.exists() else 0

    kills = 0
    for attempt in range(20):
        before = recorded()
        run = start(source=photos, out=out, workers=2, resume=attempt > 0)
        while run.poll() is None and recorded() <= before:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.05))
        if run.poll() is not None:
            break
        orphans = children_of(run.pid)
        run.kill()
        run.wait()
        kills += 1
        wait_until_gone(orphans)
    assert run.returncode == 0, run.stderr.read()
    assert kills > 1
    for path in whole.parent.iterdir():
        assert (out.parent / path.name).read_bytes() == path.read_bytes()


def interrupt_after(images, **arguments):
    """Run ``prepare`` in a process that kills itself when this many images are written."""
    script = SCRIPT.replace(
        "try:",
        "import os, signal, fastrot.data.prepare.convert as c\n"
        f"plan = c.Encode.__call__\ncount = [0]\n"
        "def call(self, sample):\n"
        "    count[0] += 1\n"
        f"    if count[0] > {images}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return plan(self, sample)\n"
        "c.Encode.__call__ = call\n"
        "try:",
        1,
    )
    fixed = {"progress": False, "workers": 0, "page_size": PAGE}
    text = json.dumps(arguments | fixed, default=str)
    done = subprocess.run([sys.executable, "-c", script, text], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_resume_continues_where_the_run_was_killed(photos, tmp_path):
    out = tmp_path / "o.beton"
    interrupt_after(500, source=photos, out=out)
    assert not out.exists() and left_beside(out)
    report = prepare(PrepareRequest(photos, out, resume=True, page_size=PAGE, progress=False))
    assert 200 < report.resumed <= 500
    assert left_beside(out) == set()
    prepare(PrepareRequest(photos, tmp_path / "whole.beton", page_size=PAGE, progress=False))
    assert out.read_bytes() == (tmp_path / "whole.beton").read_bytes()


def test_resuming_a_finished_run_has_nothing_to_do(photos, tmp_path):
    out = tmp_path / "o.beton"
    prepare(PrepareRequest(photos, out, progress=False))
    before = out.stat().st_mtime_ns
    report = prepare(PrepareRequest(photos, out, resume=True, progress=False))
    assert report.resumed == report.num_samples == 600
    assert out.stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="already exists, made with other settings"):
        prepare(PrepareRequest(photos, out, resume=True, quality=50, progress=False))


def test_resume_refuses_what_was_begun_otherwise(photos, tmp_path):
    out = tmp_path / "o.beton"
    interrupt_after(300, source=photos, out=out)
    with pytest.raises(MismatchError, match=r"quality.*without --resume"):
        prepare(
            PrepareRequest(photos, out, resume=True, quality=50, page_size=PAGE, progress=False)
        )
    other = noise_folder(tmp_path / "other", 600, seed=5)
    with pytest.raises(MismatchError, match="source"):
        prepare(PrepareRequest(other, out, resume=True, page_size=PAGE, progress=False))
    # Without --resume it begins again.
    assert prepare(PrepareRequest(photos, out, progress=False)).resumed == 0
    assert left_beside(out) == {"other"}


def test_resume_with_nothing_to_resume_is_a_fresh_run(photos, tmp_path):
    assert (
        prepare(PrepareRequest(photos, tmp_path / "o.beton", resume=True, progress=False)).resumed
        == 0
    )


def test_damaged_journal_only_costs_time(photos, tmp_path):
    out = tmp_path / "o.beton"
    interrupt_after(500, source=photos, out=out)
    for path in tmp_path.iterdir():
        data = path.read_bytes()
        if path.suffix == ".journal":
            path.write_bytes(data[:-7])  # cut inside its last record
        elif ".tmp-" in path.name:
            path.write_bytes(data[: len(data) * 2 // 3])
    prepare(PrepareRequest(photos, out, resume=True, page_size=PAGE, progress=False))
    prepare(PrepareRequest(photos, tmp_path / "whole.beton", page_size=PAGE, progress=False))
    assert out.read_bytes() == (tmp_path / "whole.beton").read_bytes()


def test_a_killed_worker_ends_the_run(test_data, tmp_path):
    out = tmp_path / "o.beton"
    run = start(source=test_data("imagenet-300"), out=out, workers=2)
    wait_until(lambda: len(children_of(run.pid)) == 2, 20, "no workers appeared")
    workers = children_of(run.pid)
    os.kill(workers[0], signal.SIGKILL)
    assert run.wait(300) == 71
    assert "was killed" in run.stderr.read()
    assert not out.exists()
    wait_until_gone(workers)


def test_full_disk_leaves_no_file_and_says_so(photos, tmp_path):
    limit = 3 * PAGE

    def restrict():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    out = tmp_path / "o.beton"
    arguments = {"source": str(photos), "out": str(out), "page_size": PAGE, "progress": False}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(arguments)],
        preexec_fn=restrict,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 74, done.stderr
    assert "--resume" in done.stderr and done.stderr.count("\n") == 1
    assert not out.exists()
    # With room again, it resumes.
    assert (
        prepare(PrepareRequest(photos, out, resume=True, page_size=PAGE, progress=False)).resumed
        > 0
    )
    assert verify(out, progress=False).exit_code == 0


def test_two_writers_of_one_file(photos, tmp_path):
    out = tmp_path / "o.beton"
    runs = [start(source=photos, out=out, workers=1) for _ in range(2)]
    codes = sorted(run.wait(60) for run in runs)
    messages = [run.stderr.read() for run in runs]
    assert codes in ([0, 78], [0, 64]), messages  # 64: the first had already finished
    assert verify(out, progress=False).exit_code == 0
    assert left_beside(out) == set()


def test_two_writers_that_start_together_never_both_win(photos, tmp_path):
    small = tmp_path / "small"
    for path in sorted(photos.rglob("*.jpg"))[:6]:
        (small / "a").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, small / "a")
    out = tmp_path / "o.beton"
    runs = [start(source=small, out=out, workers=0) for _ in range(3)]
    assert sorted(run.wait(60) for run in runs)[0] == 0
    assert verify(out, progress=False).exit_code == 0


def test_killed_between_the_names_of_file_and_manifest_resume_tidies_up(photos, tmp_path):
    """Both are whole by then; what is left is a rename."""
    whole, out = tmp_path / "whole" / "o.beton", tmp_path / "killed" / "o.beton"
    for path in (whole, out):
        path.parent.mkdir()
        prepare(PrepareRequest(photos, path, progress=False, workers=0))
    staged = out.with_name("o.beton.manifest.json.next")
    out.with_name("o.beton.manifest.json").rename(staged)
    out.with_name("o.beton.journal").write_bytes(b"left")
    report = prepare(PrepareRequest(photos, out, progress=False, workers=0, resume=True))
    assert report.resumed == report.num_samples
    files = {path.name: path.read_bytes() for path in out.parent.iterdir()}
    assert files == {path.name: path.read_bytes() for path in whole.parent.iterdir()}
