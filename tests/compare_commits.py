"""Hold two commits against each other, bit for bit, on this machine.

    python tests/compare_commits.py OLD [NEW] [--data .test-data/imagenette-128]

Each commit is checked out into a worktree of its own and built there. Both then prepare the same
photos, train 20 deterministic steps of ``digits`` and of ``photos_cpu``, extract features, and run
``eval suite``. Afterwards NEW takes over what OLD left: it resumes a run that was stopped half-way,
reads the features, and reports on the run folder. What differs is listed, and the exit code is 1.

Bits depend on the processor and on the versions of torch and its libraries, so golden values in a
repository could not hold everywhere; two commits on one machine can be compared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

ROOT = Path(__file__).resolve().parent.parent
STEPS = 20
_DETERMINISTIC = (
    *("train.deterministic=true", "train.threads=1", "train.sample_log=ids"),
    *("data.workers=1", "sinks.tensorboard=false"),
)
_SUITE = (
    *("features.resolution=64", "features.resize=72", "linear.epochs=2", "linear.milestones=[1]"),
)
_MODES = ("cached-1", "augmented")


@dataclass
class Side:
    """One of the two commits.

    Attributes:
        name: ``old`` or ``new``.
        commit: as git names it.
        source: its worktree.
        work: where its commands leave their files.
        digests: what was found, by a name that both sides share.
    """

    name: str
    commit: str
    source: Path
    work: Path
    digests: dict[str, str] = field(default_factory=dict)

    def fastrot(self, *words: object) -> None:
        """Run a command of this commit; its output is shown when it fails."""
        environment = {
            **os.environ, "PYTHONPATH": str(self.source), "OMP_NUM_THREADS": "1", "NO_COLOR": "1",
        }  # fmt: skip
        command = [sys.executable, "-m", "fastrot", *map(str, words)]
        done = subprocess.run(
            command, cwd=self.work, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(
                f"{self.name} ({self.commit}): fastrot {' '.join(map(str, words))}: exit code "
                f"{done.returncode}\n{done.stdout}{done.stderr}"
            )


def settings(*pairs: str) -> list[str]:
    """``--set`` before each of the pairs."""
    return [word for pair in pairs for word in ("--set", pair)]


def digest_of_tensors(path: Path) -> str:
    """Hash of the names, types and values of a safetensors file, whatever else is in it."""
    digest = hashlib.sha256()
    with safe_open(path, framework="pt") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().flatten().view(dtype=_byte()).numpy().tobytes())
    return digest.hexdigest()


def _byte() -> Any:
    import torch

    return torch.uint8


def digest_of_json(tree: Any) -> str:
    """Hash of plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def digest_of_file(path: Path) -> str:
    """Hash of the bytes of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- what is compared -----------------------------------------------------------------------


def prepare(side: Side, data: Path) -> None:
    """Convert the photos; the files differ in nothing."""
    for part in ("train", "val"):
        side.fastrot("prepare", data / part, f"{part}.beton", "--workers", 2)
        side.digests[f"{part}.beton"] = digest_of_file(side.work / f"{part}.beton")


def train(side: Side, data: Path) -> None:
    """Take 20 steps of two recipes: weights, optimizer, samples and losses."""
    recipes: dict[str, tuple[str, ...]] = {
        "digits": (),
        "photos_cpu": ("--ffcv", "train.beton", "--val", "val.beton"),
    }
    for recipe, words in recipes.items():
        for steps, out in ((STEPS, recipe), (STEPS // 2, f"{recipe}-half")):
            side.fastrot(
                "train", "-c", recipe, *words, "--out", out,
                *settings(*_DETERMINISTIC, f"train.max_steps={steps}"),
            )  # fmt: skip
            if steps == STEPS:
                note_run(side, recipe, side.work / out)


def note_run(side: Side, name: str, run: Path) -> None:
    """Note the newest checkpoint of a run, and which samples each step took."""
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    assert newest.name.endswith(f"{STEPS:08}"), newest
    for path in sorted(newest.glob("*.safetensors")):
        side.digests[f"{name}: {path.name} of step {STEPS}"] = digest_of_tensors(path)
    side.digests[f"{name}: samples.jsonl"] = digest_of_file(run / "samples.jsonl")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    rows = [row for row in rows if row["step"] == STEPS and row["kind"] == "validation"]
    if rows:
        numbers = {name: value for name, value in rows[-1].items() if name != "time"}
        side.digests[f"{name}: validation"] = digest_of_json(numbers)


def extract(side: Side, data: Path) -> None:
    """Extract the features of the test photos, of the test transform and of two random crops."""
    for crops in (0, 2):
        cache = f"cache-{crops}"
        words = settings("features.resolution=64", "features.resize=72")
        side.fastrot(
            "extract", "photos_cpu", "--data", "val.beton", "--out", cache, "--crops", crops, *words
        )
        note_cache(side, cache, side.work / cache)


def note_cache(side: Side, name: str, cache: Path) -> None:
    """Note every array of a feature cache, and what its manifest says it depends on."""
    for path in sorted(cache.glob("*.npy")):
        side.digests[f"{name}: {path.name}"] = digest_of_file(path)
    manifest = json.loads((cache / "manifest.json").read_text())
    side.digests[f"{name}: identity"] = digest_of_json(manifest["identity"])


def evaluate(side: Side, data: Path) -> None:
    """Run the suite on all photos: every score of every result."""
    side.fastrot(
        "eval", "suite", "photos_cpu", "--imagenet", "train.beton", "val.beton", "--out", "suite",
        "--mode", ",".join(_MODES), "--not-beside-random", *settings(*_SUITE),
    )  # fmt: skip
    note_suite(side, side.work / "suite")


def note_suite(side: Side, out: Path) -> None:
    """Note the scores of every protocol of a suite."""
    results = sorted(out.glob("*/result.json"))
    assert len(results) >= 3, results
    for path in results:
        result = json.loads(path.read_text())
        name = f"{result['protocol']} ({result['label']})"  # folders were named otherwise once
        side.digests[f"suite: scores of {name}"] = digest_of_json(result["scores"])


def take_over(old: Side, new: Side) -> list[str]:
    """Let NEW resume what OLD left; return what went wrong."""
    wrong = []
    there = new.work / "taken-over"
    shutil.copytree(old.work, there, symlinks=True)
    after = Side("new, after old", new.commit, new.source, there)
    for recipe in ("digits", "photos_cpu"):
        half = there / f"{recipe}-half"
        after.fastrot("train", "--out", half, "--resume", *settings(f"train.max_steps={STEPS}"))
        note_run(after, recipe, half)
    stamps = {path: path.stat().st_mtime_ns for path in there.glob("cache-*/*.npy")}
    extract(after, there)
    wrong += [f"{path.name}: extracted again" for path, stamp in stamps.items()
              if path.stat().st_mtime_ns != stamp]  # fmt: skip
    parts = {path: path.stat().st_mtime_ns for path in there.glob("suite/*/parts-*/*.json")}
    assert parts, "the suite of old left no parts"
    evaluate(after, there)
    wrong += [f"{path.relative_to(there)}: evaluated again" for path, stamp in parts.items()
              if not path.exists() or path.stat().st_mtime_ns != stamp]  # fmt: skip
    after.fastrot("report", "photos_cpu")
    for name, digest in after.digests.items():
        if old.digests[name] != digest:
            wrong.append(f"{name}: after taking over the run of old, not that of old")
    return wrong


# --- the two sides --------------------------------------------------------------------------


@contextmanager
def worktree(commit: str, folder: Path) -> Iterator[Path]:
    """Check a commit out beside this checkout, build its kernels, and remove it at the end."""
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
    try:
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if not list((folder / "kernels").glob("_native*.so")):
            raise SystemExit(f"{commit}: its kernels did not build\n{done.stdout}{done.stderr}")
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def timed(side: Side, act: Callable[[Side, Path], None], data: Path) -> None:
    """Carry out one of the comparisons on a side, and say how long it took."""
    began = time.monotonic()
    act(side, data)
    print(f"{side.name}: {act.__name__}: {time.monotonic() - began:.0f} s", flush=True)


def main() -> int:
    """Compare the two commits of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", help="commit")
    parser.add_argument("new", nargs="?", default="HEAD", help="commit (default: HEAD)")
    parser.add_argument("--data", type=Path, default=ROOT / ".test-data" / "imagenette-128")
    options = parser.parse_args()
    data = options.data.resolve()
    if not (data / "train").is_dir():
        raise SystemExit(f"--data {data}: no folder train/ there; the tests unpack it, or name one")
    with tempfile.TemporaryDirectory(prefix="fastrot-compare-") as folder:
        base = Path(folder)
        with (
            worktree(options.old, base / "old") as old_source,
            worktree(options.new, base / "new") as new_source,
        ):
            sides = []
            for name, source in (("old", old_source), ("new", new_source)):
                words = ["git", "-C", str(source), "rev-parse", "--short", "HEAD"]
                commit = subprocess.run(words, capture_output=True, text=True, check=True).stdout
                (base / f"{name}-work").mkdir()
                sides.append(Side(name, commit.strip(), source, base / f"{name}-work"))
            old, new = sides
            for act in (prepare, train, extract, evaluate):
                for side in sides:
                    timed(side, act, data)
            wrong = [
                f"{name}: differs" if name in new.digests else f"{name}: only in old"
                for name, digest in old.digests.items()
                if new.digests.get(name) != digest
            ]
            wrong += [f"{name}: only in new" for name in new.digests.keys() - old.digests.keys()]
            wrong += take_over(old, new)
    for line in wrong:
        print(f"DIFFERENT  {line}")
    print(f"{old.commit} and {new.commit}: {len(old.digests)} things compared, {len(wrong)} differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
