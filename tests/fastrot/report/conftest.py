"""Small runs to report on, and a headless Chromium that is spoken to over a pipe."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fastrot.benchmarks.sweep_record import CellRecord, Measured
from fastrot.data.sample import digits
from fastrot.evaluation.result import Result, Score

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_SECONDS = 60.0

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "'\"><script>alert(2)<!script>",
    "a \u202e& b \u00e9\u732b",
    "{{ 7 * 7 }}",
)
"""Names of classes, which are names of folders."""

_SETTINGS = (
    *("model.name=resnet18", "model.width=8", "model.stem=small", "data.resolution=16"),
    *("data.val_resize=16", "data.workers=0", "train.global_batch=8", "train.max_steps=6"),
    *("train.epochs=2", "train.threads=1", "train.log_seconds=0.001", "sinks.tensorboard=false"),
    *("train.checkpoint_steps=3", "data.crop=random_resized"),
)


def find_browser() -> str | None:
    """Path of an installed Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One tab; a context manager. Events that arrive meanwhile are kept in ``events``."""

    def __init__(self, program: str) -> None:
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        options = (
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking"),
            *("--remote-debugging-pipe", f"--user-data-dir={self._profile.name}", "about:blank"),
        )

        def place() -> None:  # the protocol's descriptors are 3 and 4
            os.dup2(to_browser, 1000)
            os.dup2(from_browser, 1001)
            os.dup2(1000, 3)
            os.dup2(1001, 4)

        self._process = subprocess.Popen(
            [program, *options],
            preexec_fn=place,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        os.set_blocking(self._read, False)
        self._buffer = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []
        pages = self.call("Target.getTargets")["targetInfos"]
        target = next(page["targetId"] for page in pages if page["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session: str | None = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    _session: str | None = None

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *failure: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)
        self._profile.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def open(self, path: Path, *, width: int = 1200, dark: bool = False, media: str = "") -> None:
        """Load a file at a window's width and wait for it."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def value(self, expression: str) -> Any:
        """Value of an expression of JavaScript in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def requests(self) -> list[str]:
        """Addresses that the page asked for; long ones are cut."""
        sent = [e for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"][:200] for event in sent]

    def complaints(self) -> list[str]:
        """What stands in the console."""
        kinds = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        return [json.dumps(e["params"]) for e in self.events if e.get("method") in kinds]

    def screenshot(self, path: Path) -> None:
        """Write a picture of the whole page."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + _SECONDS
        while b"\0" not in self._buffer:
            assert time.monotonic() < deadline, "the browser does not answer"
            try:
                chunk = os.read(self._read, 2**20)
                assert chunk, "the browser has ended"
                self._buffer += chunk
            except BlockingIOError:
                time.sleep(0.01)
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 24 digits in classes of hostile names, with 16 held out; do not change it."""
    folder = tmp_path_factory.mktemp("report")
    images, labels = digits()
    for label, name in enumerate(HOSTILE):
        rows = (labels == label).nonzero()[0][:10]
        for place, row in enumerate(rows):
            target = folder / ("train" if place < 6 else "val") / name
            target.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[row]).save(target / f"<b>{place}.png")
    out = folder / "run"
    command = [sys.executable, "-m", "fastrot", "train", "--out", str(out)]
    command += ["--data", str(folder / "train"), "--val", str(folder / "val")]
    command += [word for setting in _SETTINGS for word in ("--set", setting)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture(scope="session")
def write_result() -> Callable[..., Path]:
    """Writes a result into the eval folder of a run."""

    def write(
        run: Path,
        name: str,
        protocol: str,
        scores: list[Score],
        *,
        random: list[Score] | None = None,
        label: str = "test transform",
    ) -> Path:
        result = Result(
            protocol=protocol,
            label=label,
            scores=scores,
            random=random,
            settings={},
            changed=[],
            weights={"source": str(run), "digest": ""},
            data={"train": "train.beton", "test": "test.beton"},
            caches={},
            seconds={},
            record={"command": ["/bin/fastrot", "eval", protocol, "a run"]},
        )
        path = run / "eval" / name / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(result.to_json()))
        return path

    return write


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A browser; skips where there is none."""
    program = find_browser()
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    with Browser(program) as found:
        yield found


MACHINE = {
    "date": "2026-11-27",
    "command": "fastrot bench sweep",
    "system": "Linux",
    "python": "3.11.7",
    "processor": "Xeon",
    "cores": 8,
    "packages": {"torch": "2.15.0", "numpy": "2.4.6"},
    "commit": "c" * 40,
    "gpus": ["NVIDIA H100", "NVIDIA H100"],
    "driver": "580.1",
}


@pytest.fixture(scope="session")
def cell() -> Callable[..., CellRecord]:
    """Makes the record of a cell with numbers that are easy to reckon with."""

    def make(
        axes: dict[str, Any] | None = None,
        rates: tuple[float, ...] = (100.0, 100.0, 100.0),
        *,
        settings: dict[str, Any] | None = None,
        machine: dict[str, Any] | None = None,
        failed: str | None = None,
        key: str | None = None,
        kind: Any = "train",
        host: str = "Xeon, 8 cores, 2 x H100",
        code: str = "c0de",
        attempts: int = 1,
        **numbers: Any,
    ) -> CellRecord:
        axes = {} if axes is None else axes
        ranks = int(axes.get("ranks", 1))
        values: dict[str, Any] = {
            "ranks": ranks,
            "nodes": int(axes.get("nodes", 1)),
            "global_batch": int(axes.get("batch_per_rank", 50)) * ranks,
            "views": 4,
            "images_per_s": rates,
            "steps_ms": {"p50": 500.0, "p95": 600.0, "p99": 700.0},
            "data_wait": (0.1, 0.2, 0.3),
            "first_batch_s": 0.5,
            "loader_images_per_s": 400.0,
            "compute_images_per_s": 110.0,
            "flops_per_view": 1e9,
            "peak_flops": 1e12,
            "memory_bytes": 2**31,
            "loss": 1.25,
            "busy": 0.01,
            **numbers,
        }
        plain = {"workers": axes.get("data.workers", 2), "train": "/data/in.beton"}
        config: dict[str, Any] = {
            "data": plain | {"loader": axes.get("data.loader", "native")},
            "train": {"global_batch": values["global_batch"], "threads": 4, "epochs": 9.0},
        }
        for name, value in (settings or {}).items():
            section, _, leaf = name.partition(".")
            config[section][leaf] = value
        return CellRecord(
            key=key or "-".join(["k", *map(str, axes.values()), host[-4:], code]).replace("/", "_"),
            sweep="tried",
            kind=kind,
            axes=axes,
            config=config,
            code=code,
            host=host,
            status="failed" if failed else "done",
            reason=failed,
            exit_code=71 if failed else 0,
            attempts=attempts,
            seconds=30.0,
            job=None,
            record=MACHINE | (machine or {}),
            measured=None if failed else Measured(**values),
        )

    return make
