"""A folder of real photos, its .beton, and the command that trains on it."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.program import Server, pairs


class Photos:
    """64 photos of 128 px in four classes.

    Attributes:
        folder: of class folders.
        beton: the same, converted with their bytes kept, with a manifest beside it.
    """

    def __init__(self, source: Path, folder: Path, server: Server) -> None:
        self.folder, self.beton = folder / "photos", folder / "photos.beton"
        for each in sorted((source / "val").iterdir())[:4]:
            (self.folder / each.name).mkdir(parents=True)
            for file in sorted(each.iterdir())[:16]:
                shutil.copy(file, self.folder / each.name)
        done = server.run("prepare", str(self.folder), str(self.beton), "--copy")
        assert done.code == 0, done.text

    def copy(self, folder: Path, *, beton: bool) -> Path:
        """The data, to be damaged."""
        if not beton:
            return Path(shutil.copytree(self.folder, folder / "photos"))
        for file in self.beton.parent.glob(f"{self.beton.name}*"):
            if not file.name.endswith(".checked.json"):
                shutil.copy(file, folder)
        return folder / self.beton.name


def train_on(data: Path, out: Path, loader: str, *settings: str) -> list[str]:
    """Arguments that train for four epochs of four steps."""
    usual = (
        *("model.name=resnet18", "model.width=8", "data.resolution=32", "train.global_batch=16"),
        *("train.threads=1", "sinks.tensorboard=false", "train.sample_log=ids", "train.epochs=4"),
        *("data.workers=1", "train.checkpoint_steps=4"),
    )
    return ["train", "--data", str(data), "--loader", loader, "--out", str(out),
            *pairs(*usual, *settings)]  # fmt: skip
