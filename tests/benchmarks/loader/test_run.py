"""``fastrot bench loader`` beside real baselines: same crops, a report of the agreed shape."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastrot.benchmarks.compare.report import ComparisonReport
from fastrot.benchmarks.compare.runner import CompetitorError, CompetitorResults, Measurements
from fastrot.benchmarks.loader import baselines
from fastrot.benchmarks.loader.baselines import _Kind
from fastrot.benchmarks.loader.data import prepare_data
from fastrot.benchmarks.loader.readers.job import LoaderJob, Stored
from fastrot.benchmarks.loader.run import LoaderBenchRequest, run_loader
from fastrot.cli.app import main
from fastrot.data.beton import BetonWriter, Field, Kind
from fastrot.data.loaders.reference import crop_and_resize
from fastrot.data.open import open_dataset
from fastrot.data.prepare.convert import prepare
from fastrot.data.prepare.options import PrepareRequest
from fastrot.errors import MismatchError

SIZE, BATCH = 64, 16


@pytest.fixture(scope="module")
def photos(test_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for path in sorted(test_data("imagenet-300").glob("*.JPEG"))[:64]:
        with Image.open(path) as image:
            image.convert("RGB").reduce(2).save(folder / f"{path.stem}.jpg")
    return folder


@pytest.fixture(scope="module")
def beton(photos: Path) -> Path:
    out = photos.parent / f"{photos.name}.beton"
    prepare(PrepareRequest(photos, out, quality=90, workers=0, progress=False))
    return out


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("raw") / "raw.beton"
    random = np.random.default_rng(0)
    with BetonWriter(
        out, (Field("image", Kind.IMAGE), Field("label", Kind.INT)), capacity=40
    ) as writer:
        for side in range(60, 100):
            coarse = random.integers(0, 256, (side // 4, 12, 3), dtype=np.uint8)
            writer.add(coarse.repeat(5, axis=0).repeat(8, axis=1), 0)
        writer.commit()
    return out


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


# --- the baselines --------------------------------------------------------------------------


def first_batches(module: str, job: LoaderJob, count: int, **more: Any) -> list[np.ndarray]:
    import importlib

    opened = importlib.import_module(f"fastrot.benchmarks.loader.readers.{module}")
    stream = opened.open_stream({**asdict(job), **more})
    return [
        delivery.pixels.numpy().copy() for delivery in itertools.islice(stream.deliveries, count)
    ]


def expected(job: LoaderJob, count: int) -> list[np.ndarray]:
    samples = open_dataset(job.data)
    return [
        np.stack(
            [
                crop_and_resize(samples.decode(sample), box, job.size)
                for sample, box in zip(ids.tolist(), boxes, strict=True)
            ]
        )
        for ids, boxes in itertools.islice(job.batches(samples), count)
    ]


@pytest.mark.parametrize("source", ["photos", "beton", "raw"])
@pytest.mark.parametrize(
    ("module", "more", "tolerance"),
    [
        ("dali", {}, 0.6),
        ("torchvision", {}, 0.01),
        ("torchvision", {"decoder": "pillow"}, 0.01),
        ("own", {"loader": "reference"}, 0),
    ],
    ids=["dali", "torchvision", "pillow", "own"],
)
def test_every_competitor_makes_our_crops(
    request: pytest.FixtureRequest, source: str, module: str, more: dict[str, Any], tolerance: float
) -> None:
    if module == "dali":
        pytest.importorskip("nvidia.dali")
    job = LoaderJob(str(request.getfixturevalue(source)), size=SIZE, batch=BATCH, workers=1)
    # More than an epoch: boxes change from one to the next.
    wanted = expected(job, 5)
    found = first_batches(module, job, 5, **more)
    for batch, (ours, theirs) in enumerate(zip(wanted, found, strict=True)):
        apart = np.abs(ours.astype(int) - theirs).mean(axis=(1, 2, 3))
        assert apart.max() <= tolerance, f"batch {batch}"
    assert np.abs(wanted[0].astype(int) - wanted[4]).mean() > 10


def test_stored_bytes_are_those_of_the_file(beton: Path, raw: Path, photos: Path) -> None:
    for path in (beton, photos):
        stored = Stored(path)
        assert not stored.raw and len(stored.samples) == 64
        for sample in range(64):
            assert stored[sample].tobytes() == bytes(stored.samples.read(sample).data)
    pixels = Stored(raw)
    assert pixels.raw
    for sample in range(40):
        assert np.array_equal(pixels[sample], pixels.samples.decode(sample))


# --- the data -------------------------------------------------------------------------------


def test_small_data_is_repeated(beton: Path, raw: Path, photos: Path, tmp_path: Path) -> None:
    for number, source in enumerate((beton, raw, photos)):
        scratch = tmp_path / str(number)
        scratch.mkdir()
        data = prepare_data(source, repeat=3, scratch=scratch)
        once, thrice = open_dataset(source), open_dataset(data.path)
        n = len(once)
        assert data.samples == len(thrice) == 3 * n
        assert data.cached and data.num_bytes > 0
        assert data.raw_share == (source == raw)
        if source != photos:  # the files of a folder are sorted by name
            for sample in (0, n - 1, n, 3 * n - 1):
                assert np.array_equal(thrice.decode(sample), once.decode(sample % n))
        plain = open_dataset(data.path, checksums=True)
        assert {plain.decode(i).tobytes() for i in range(3 * n)} == {
            once.decode(i).tobytes() for i in range(n)
        }


def test_data_is_repeated_until_there_is_enough(beton: Path, tmp_path: Path) -> None:
    data = prepare_data(beton, repeat=None, scratch=tmp_path)
    assert (data.repeat, data.samples) == (47, 3008)
    (tmp_path / "again").mkdir()
    again = prepare_data(data.path, repeat=None, scratch=tmp_path / "again")
    assert (again.repeat, again.path) == (1, data.path)


# --- a whole run ----------------------------------------------------------------------------

POINT = {
    *("images_per_second", "bytes_per_second", "cpu_seconds_per_1000", "first_seconds"),
    *("import_seconds", "process_seconds", "peak_bytes", "steady_bytes", "file_page_bytes"),
    *("foreign_cores", "storage_bytes", "notes"),
}


@pytest.mark.parametrize(
    "peers", [["dali"], pytest.param(["ffcv", "dali"], marks=pytest.mark.chaos)]
)
def test_a_run_beside_its_baselines(
    beton: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    peers: list[str],
) -> None:
    for peer in peers:
        pytest.importorskip({"ffcv": "ffcv", "dali": "nvidia.dali"}[peer])
    absent = _Kind("ffcv", package="no_such_package")
    monkeypatch.setitem(baselines.BASELINES, "absent", absent)
    out, lines = tmp_path / "out.json", tmp_path / "results.jsonl"
    code, text, err = run(
        capsys,
        *("bench", "loader", "--data", beton, "--peers", ",".join([*peers, "absent"])),
        *("--size", SIZE, "--batch", BATCH, "--rounds", 2, "--seconds", 0.1, "--starts", 1),
        *("--repeat", 4, "--json", out, "--append", lines),
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out.read_text())
    assert found["left_out"] == {"absent": "the package no_such_package is not installed"}
    names = ["native", *peers, "decode_limit"]
    assert list(found["points"]) == names
    assert list(found["ratios"]) == names[1:]
    for name, point in found["points"].items():
        assert set(point) == POINT
        assert point["images_per_second"]["repeats"] == 2, name
        assert point["images_per_second"]["low"] > 0
        assert point["cpu_seconds_per_1000"]["low"] > 0
        assert point["storage_bytes"] == 0  # it was read into the page cache before
    for name, ratio in found["ratios"].items():
        spread = found["ratio_spreads"][name]
        assert spread["low"] <= ratio * 1.001 and ratio <= spread["high"] * 1.001
    assert found["ratios"]["decode_limit"] < 2  # a tenth of a second each: noise, not an order
    assert found["data"]["samples"] == 256 and found["data"]["repeat"] == 4
    assert found["settings"]["size"] == SIZE
    assert found["record"]["processor"]
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [record["point"] for record in records] == names
    assert records[0]["ratio"] is None and records[1]["ratio"]["repeats"] == 2
    assert "left out: absent: the package no_such_package is not installed" in text
    assert text.rstrip().splitlines()[-1].split()[:3] == ["native", "/", "decode_limit"]
    assert "left 0 s" in err


def test_a_baseline_that_cannot_read_the_data_says_so(photos: Path) -> None:
    """tests/benchmarks/compare/test_runner.py: it is left out with what it says."""
    pytest.importorskip("ffcv")
    with pytest.raises(MismatchError, match=r"FFCV reads only \.beton files"):
        first_batches("ffcv", LoaderJob(str(photos), size=SIZE, batch=BATCH, workers=1), 1)


# --- the arithmetic of the report -----------------------------------------------------------


def measured(*rates: float) -> Measurements:
    each = {"seconds": 2.0, "cpu_seconds": 3.0, "peak_bytes": 10, "steady_bytes": 5}
    each |= {"file_page_bytes": 1, "storage_bytes": 4, "foreign_cores": 0.0}
    start = {"first_seconds": 0.5, "import_seconds": 2, "process_seconds": 3, "notes": {}}
    return Measurements([start], [{"images": 2 * rate, **each} for rate in rates])


def report(**competitors: Measurements) -> ComparisonReport:
    names = list(competitors)
    return ComparisonReport(
        bench="loader",
        subject=names[0],
        compared=dict.fromkeys(names[1:], names[0]),
        results=CompetitorResults(competitors, {}),
        bytes_an_image=1000.0,
        settings={},
        data={},
        record={},
    )


def test_ratios_are_those_of_the_rounds() -> None:
    found = report(native=measured(400, 100, 300), baseline=measured(100, 50, 150)).to_json()
    assert found["ratios"] == {"baseline": 2.0}
    assert found["ratio_spreads"]["baseline"] == {"median": 2, "low": 2, "high": 4, "repeats": 3}
    point = found["points"]["native"]
    assert point["images_per_second"] == {"median": 300, "low": 100, "high": 400, "repeats": 3}
    assert point["cpu_seconds_per_1000"]["median"] == 5
    assert point["bytes_per_second"] == 300_000
    assert (point["peak_bytes"], point["storage_bytes"]) == (10, 12)


# --- wrong usage ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "ffcv,tensorflow"], "unknown name 'tensorflow'; choose ffcv, dali"),
        (["--loader", "fast"], "unknown --loader='fast'"),
        (["--what", "train"], "unknown --what='train'; choose load or prepare"),
        (["--rounds", "0"], "--rounds=0 must be at least 1"),
        (["--batch", "0"], "--batch=0 must be at least 1"),
        (["--size", "4"], "--size=4 must be at least 8"),
        (["--starts", "0"], "--starts=0 must be at least 1"),
        (["--repeat", "0"], "--repeat=0 must be at least 1"),
        (["--seconds", "0"], "--seconds=0.0 must be more than 0"),
        (["--workers", "99999"], "--workers=99999 must be from 1"),
        (["--crop", "padded"], "unknown --crop='padded'"),
        (["--json", "no/such/out.json"], "folder that exists"),
        (["--what", "prepare", "--peers", "dali"], "unknown name 'dali'; choose ffcv, limit"),
        (["--what", "prepare", "--quality", "0"], "--quality=0"),
        (["--batch", "1000", "--repeat", "1"], "--batch=1000 exceeds the 40 samples"),
    ],
)
def test_wrong_usage_is_64(
    capsys: pytest.CaptureFixture[str], raw: Path, arguments: list[str], message: str
) -> None:
    code, _, err = run(capsys, "bench", "loader", "--data", raw, *arguments)
    assert (code, message in err) == (64, True), err
    assert len(err.strip().splitlines()) == 1


def test_data_that_is_not_there_is_64(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "bench", "loader", "--data", "no/such.beton")
    assert (code, "no such file" in err) == (64, True)


def test_a_subject_that_fails_ends_the_run_with_its_code(photos: Path) -> None:
    with pytest.raises(CompetitorError, match=r"ffcv: .*FFCV reads only") as raised:
        run_loader(
            LoaderBenchRequest(
                photos, loader="ffcv", baselines=(), batch=BATCH, starts=1, repeat=1, progress=False
            )
        )
    assert raised.value.exit_code == 64
