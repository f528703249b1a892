"""The network of a run's newest valid checkpoint, and the images that it is shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fastrot.config import Config, validate
from fastrot.data.dataset import Dataset
from fastrot.data.digits import TRAIN_NAME, VAL_NAME
from fastrot.data.loader import Loader, LoaderSpec, build_loader
from fastrot.data.open import open_dataset
from fastrot.data.sampling.crops import Crop
from fastrot.data.sampling.sampler import Sampler
from fastrot.data.subset import DatasetSubset
from fastrot.distributed.world import World, pick_device
from fastrot.errors import FastrotError, MismatchError, UsageError
from fastrot.models.backbones import RotationModel, build_model
from fastrot.report.run.files import RunFiles
from fastrot.runs.checkpoint import newest_checkpoint
from fastrot.runs.folder import read_run_id
from fastrot.system.console import Say
from fastrot.training.data import EMBEDDED, val_crop
from fastrot.training.rotation import RotationTask

_CPU_PIXELS = 2000 * 96**2  # in the source images of one section: takes a minute or two
_LEAST = 200
_BATCH_PIXELS = 2**19


@dataclass(frozen=True)
class Network:
    """A trained network, in eval mode, in float32.

    Attributes:
        model: backbone and head, on ``device``.
        config: settings of the run, as stored in the checkpoint.
        step: number of optimizer steps of training.
        device: device of the model.
        task: makes the views.
    """

    model: RotationModel
    config: Config
    step: int
    device: torch.device
    task: RotationTask


@dataclass(frozen=True)
class Images:
    """Images of the run's data.

    Attributes:
        samples: the dataset.
        crop: test transform of the run.
        name: what the page calls the images.
        held_out: whether they are the run's held-out images.
    """

    samples: Dataset
    crop: Crop
    name: str
    held_out: bool


def load_network(run: RunFiles) -> Network:
    """Load the newest valid checkpoint of a run.

    Raises:
        FastrotError: there is no checkpoint, or it does not fit its settings.
    """
    checkpoint = newest_checkpoint(run.path / "checkpoints", read_run_id(run.path))
    if checkpoint is None:
        raise UsageError("the run has no checkpoint")
    try:
        config: Config = validate(checkpoint.state["config"], "its checkpoint's settings")
        model = build_model(config.model, seed=config.train.seed)
        model.load_state_dict(
            {
                name.removeprefix("model."): tensor
                for name, tensor in checkpoint.tensors.items()
                if name.startswith("model.")
            }
        )
    except (KeyError, TypeError, RuntimeError) as error:
        raise MismatchError(
            f"the checkpoint at step {checkpoint.step} does not fit: {error}"
        ) from None
    # A run that continues may need the whole GPU.
    device = pick_device("cpu" if run.is_live else "auto", World())
    model = model.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]
    return Network(model, config, checkpoint.step, device, RotationTask(config, device, None))


def open_images(run: RunFiles, config: Config) -> Images:
    """Open the held-out images of a run, or its training images if it has none.

    Raises:
        FastrotError: the images are not where the settings point, or are damaged.
    """
    name, part = config.data.val, VAL_NAME
    if name is None:
        name, part = config.data.train, TRAIN_NAME
    if name is None:
        raise UsageError("the settings name no data")
    path = run.path / "data" / part if name == EMBEDDED else run.locate(name)
    samples = open_dataset(
        path, checksums=config.data.checksums, follow_symlinks=config.data.follow_symlinks
    )
    if not len(samples):
        raise UsageError(f"{path}: holds no images")
    held_out = config.data.val is not None
    words = "held-out images" if held_out else "training images"
    return Images(samples, val_crop(config), words, held_out)


def chosen(images: Images, network: Network, most: int) -> NDArray[np.int64]:
    """Return at most ``most`` evenly spaced samples; fewer if they are large and on a CPU.

    Returns:
        Sample ids of shape (M,), increasing.
    """
    if network.device.type == "cpu":
        most = min(most, max(_LEAST, _CPU_PIXELS // images.crop.size**2))
    count = min(most, len(images.samples))
    return np.linspace(0, len(images.samples) - 1, count).astype(np.int64)


@contextmanager
def open_reader(
    images: Images, ids: NDArray[np.int64], network: Network, say: Say
) -> Iterator[Loader]:
    """Open a loader of the images ``ids``, in this order, with the reference decoder.

    A bad sample is replaced as in training, and its name is reported with ``say``.
    """
    subset = DatasetSubset(images.samples, ids)
    batch = max(1, min(len(ids), _BATCH_PIXELS // images.crop.size**2))
    spec = LoaderSpec(
        subset,
        Sampler(len(ids), batch, mode="sequential", drop_last=False),
        images.crop,
        0,
        network.device,
        0,
        on_bad_sample="skip",
        on_bad=lambda error: say(f"replaced bad sample {error.name}: {error.reason}"),
        exact=True,
    )
    loader = build_loader("reference", spec)
    try:
        loader.set_epoch(0)
        yield loader
    finally:
        loader.close()


def reason(error: FastrotError) -> str:
    """Return the first line of an error, as the page shows it."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
