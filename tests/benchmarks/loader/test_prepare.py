"""``fastrot bench loader --what prepare`` on real photos, beside FFCV's writer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from fastrot.benchmarks.loader.converters import ConversionJob, open_stream
from fastrot.cli.app import main
from fastrot.data.beton import BetonFile


@pytest.fixture(scope="module")
def photos(test_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for path in sorted(test_data("imagenet-300").glob("*.JPEG"))[:12]:
        shutil.copyfile(path, folder / path.name)
    return folder


def test_each_converter_converts_everything(photos: Path, tmp_path: Path) -> None:
    for name in ("prepare", "prepare --copy", "limit", "file_copy"):
        job = ConversionJob(str(photos), str(tmp_path / name), 100, 80, workers=1, converter=name)
        stream = open_stream(asdict(job))
        assert [next(stream.deliveries).images for _ in range(2)] == [12, 12]
    small, whole = (BetonFile.open(tmp_path / name) for name in ("prepare", "prepare --copy"))
    with small, whole:
        assert max(small.widths.max(), small.heights.max()) == 100
        assert max(whole.widths.max(), whole.heights.max()) > 100
    originals = b"".join(path.read_bytes() for path in sorted(photos.iterdir()))
    assert (tmp_path / "file_copy").read_bytes() == originals
    assert not (tmp_path / "limit").exists()


@pytest.mark.chaos
def test_a_run_beside_ffcv(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ffcv")
    out = tmp_path / "out.json"
    arguments = ["bench", "loader", "--what", "prepare", "--data", str(photos), "--json", str(out)]
    arguments += ["--max-side", "100", "--rounds", "2", "--repeat", "2"]
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert not left.value.code
    found = json.loads(out.read_text())
    assert found["left_out"] == {}
    assert list(found["points"]) == ["prepare", "ffcv", "limit", "prepare --copy", "file_copy"]
    assert set(found["ratios"]) == {"ffcv", "limit", "file_copy"}
    assert found["ratios"]["file_copy"] < 3  # so few bytes: noise, not an order
    assert found["data"]["images"] == 24
    rates = {name: point["images_per_second"] for name, point in found["points"].items()}
    assert all(rate["repeats"] == 2 and rate["low"] > 0 for rate in rates.values())
    text = capsys.readouterr().out
    assert "prepare / ffcv" in text and "prepare --copy / file_copy" in text
