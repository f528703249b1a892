"""What trains on one rank: model, optimizer, step, loaders and validation, built for a run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastrot import __version__
from fastrot.data.classes import ClassMatch, lookalike_notes, match_classes
from fastrot.data.dataset import Dataset
from fastrot.data.loader import Loader, LoaderSpec, build_loader
from fastrot.data.loaders.progressive import ProgressiveLoader
from fastrot.data.overlap import find_overlap
from fastrot.data.sampling.sampler import Sampler
from fastrot.data.subset import spread
from fastrot.errors import BadDataError, MismatchError
from fastrot.models.backbones import build_model
from fastrot.models.precision import autocast_dtype
from fastrot.runs.bad_samples import BadSamples
from fastrot.runs.checkpoint import Checkpoint
from fastrot.system.console import Say
from fastrot.training.data import RunData, train_crop, val_crop
from fastrot.training.loop import Snapshot
from fastrot.training.optim import (
    build_optimizer,
    keep_rate_on_device,
    learning_rate,
    load_training_tensors,
    training_tensors,
)
from fastrot.training.resolve import ResolvedRun
from fastrot.training.rotation import RotationTask
from fastrot.training.schedule import Schedule
from fastrot.training.step import TrainStep
from fastrot.training.step_backend import wrap_model
from fastrot.training.validate import Between, validate

_BANK_IMAGES = 4096


class Trainer:
    """Model, optimizer, loaders and validation of a run on one rank.

    Args:
        run: the run, with nothing left to decide.
        data: its opened datasets.
        out: the run folder.
        stack: closes the loaders.
        say: prints one line to the user.

    Attributes:
        config: settings of the run.
        model: backbone and rotation head, on the device.
        task: computes the views and the loss.
        step: trains on the batches of one step.
        loader: training batches of this rank.
        bad_samples: samples that were replaced.
    """

    def __init__(
        self, run: ResolvedRun, data: RunData, out: Path, *, stack: ExitStack, say: Say
    ) -> None:
        config, world, device, backend = run.config, run.world, run.device, run.backend
        self.config, self._run, self._data = config, run, data
        self._stack, self._say = stack, say
        self._imported: Mapping[str, Any] | None = None
        self.bad_samples = BadSamples(out / "bad_samples.jsonl", config.data.max_bad, world, say)
        dtype = autocast_dtype(config.train.precision)
        self.model = build_model(config.model, seed=config.train.seed).to(device)
        if config.train.precision == "fp64":
            self.model = self.model.double()
        if config.train.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.task = RotationTask(config, device, dtype, channels=backend.channels)
        self.optimizer = build_optimizer(self.model, config.optim)
        self.scaler = torch.amp.GradScaler(device.type) if dtype == torch.float16 else None
        wrapped = wrap_model(
            self.model,
            backend,
            world=world,
            device=device,
            sync_bn=config.model.sync_bn,
            # Accumulation skips reductions of micro-batches, which a static graph does not allow.
            static_graph=run.batch.accumulation == 1,
            say=say,
        )
        if backend.graph:
            keep_rate_on_device(self.optimizer, device)
        self.step = TrainStep(
            wrapped,
            self.optimizer,
            self.task,
            device=device,
            scaler=self.scaler,
            world=world,
            graph=backend.graph,
        )
        # Their worker processes are forked before FFCV or DALI start threads in this one.
        self._classes: ClassMatch | None = None
        self._val_is_train = False
        self._val_loader, self._bank = self._validation_loaders()
        self.loader = self._training_loader()

    def _training_loader(self) -> Loader:
        config, train, order = self.config, self._data.train, self._run.order
        growth = config.data.progressive
        if not growth:
            return self._loader(config.data.loader, train, order, part="train")
        return ProgressiveLoader(
            growth,
            lambda side: self._loader(config.data.loader, train, order, part="train", side=side),
        )

    def _loader(
        self, name: str, samples: Dataset, order: Sampler, *, part: str, side: int | None = None
    ) -> Loader:
        config = self.config
        crop = train_crop(config) if part == "train" else val_crop(config)
        spec = LoaderSpec(
            dataset=samples,
            sampler=order,
            crop=crop if side is None else replace(crop, size=side),
            seed=config.train.seed,
            device=self._run.device,
            workers=config.data.workers or 0,
            on_bad_sample=config.data.on_bad_sample,
            on_bad=partial(self.bad_samples.note, part),
            exact=config.data.exact_decode,
            views=config.pretext.views if part == "train" else "all",
        )
        loader = build_loader(name, spec)
        self._stack.callback(loader.close)
        if part == "train" and loader.reads:
            self._say(f"{samples.path}: {loader.reads}")
        return loader

    def _validation_loaders(self) -> tuple[Loader | None, Loader | None]:
        """Return loaders of held-out samples and of labelled training samples for the quick kNN.

        Both are reference loaders: a measurement must not depend on the choice of loader.
        """
        val, train, world = self._data.val, self._data.train, self._run.world
        if val is None:
            return None, None
        batch = self._run.batch.per_pass
        order = Sampler(
            len(val),
            batch * world.size,
            mode="sequential",
            drop_last=False,
            rank=world.rank,
            world=world.size,
        )
        loader = self._loader("reference", val, order, part="val")
        if world.is_main:  # it writes the numbers; the others need not read for it
            overlap = find_overlap(train, val)
            self._val_is_train = overlap.all_of_them
            if warning := overlap.warning(val):
                self._say(warning)
        self._classes = self._match_classes(train, val)
        if self._classes is None:
            return loader, None
        bank = spread(train, _BANK_IMAGES)
        bank_order = Sampler(len(bank), batch, mode="sequential", drop_last=False)
        return loader, self._loader("reference", bank, bank_order, part="knn")

    def _match_classes(self, train: Dataset, val: Dataset) -> ClassMatch | None:
        """Match the classes of the validation data to the training data's; None means no kNN."""
        if self.config.train.val_knn == "never":
            return None
        if several := [each for each in (train, val) if each.labels.ndim == 2]:
            self._say(
                f"no quick kNN in validations: {several[0].path} has several classes per image"
            )
            return None
        if not (_labelled(train) and _labelled(val)):
            return None
        try:
            match = match_classes(train, val)
        except (BadDataError, MismatchError) as error:
            self._say(f"warning: no quick kNN in validations: {error}")
            return None
        told = lookalike_notes(train, val)
        for note in match.notes:
            if note not in told:
                self._say(note)
        return match

    def schedule(self) -> Schedule:
        """Return the schedule of the run, in steps."""
        train, per_epoch = self.config.train, self._run.order.steps_per_epoch
        schedule_steps = max(1, round(train.epochs * per_epoch))
        total = min(schedule_steps, train.max_steps or schedule_steps)
        optim = self.config.optim
        return Schedule(
            total_steps=total,
            steps_per_epoch=per_epoch,
            accumulation=self._run.batch.accumulation,
            views_per_image=self.task.views_per_image,
            rate=lambda step: learning_rate(step, per_epoch, schedule_steps, optim),
            validation_steps=max(1, round(train.val_epochs * per_epoch)),
            checkpoint_steps=train.checkpoint_steps,
            checkpoint_seconds=60 * train.checkpoint_minutes,
            log_seconds=train.log_seconds,
            keep_checkpoints=train.keep_checkpoints,
            sample_log=train.sample_log,
        )

    def validate(self, between: Between) -> Mapping[str, Any]:
        """Measure the model on the held-out samples; ``between`` is called before each batch."""
        assert self._val_loader is not None
        for buffer in self.model.buffers():  # use those of the checkpoint, even if ranks differ
            self._run.world.copy_from_main(buffer)
        result = validate(
            self.model,
            self.task,
            self._val_loader,
            self._bank,
            self._classes,
            device=self._run.device,
            world=self._run.world,
            between=between,
        )
        numbers = {**result.metrics(), "confusion": result.confusion.tolist()}
        return {**numbers, "val_is_train": True} if self._val_is_train else numbers

    @property
    def validates(self) -> bool:
        """Return whether there is anything to validate on."""
        return self._val_loader is not None

    def snapshot(self) -> Snapshot:
        """Return everything that a checkpoint holds besides the step."""
        state = {
            "fastrot": __version__,
            "torch": torch.__version__,
            "config": self.config.model_dump(mode="json"),
            "data": {
                "train": {"digest": self._data.train.digest, "samples": len(self._data.train)},
            },
            "threads": torch.get_num_threads(),
            "world_size": self._run.world.size,
            "scaler": self.scaler.state_dict() if self.scaler else None,
            **({} if self._imported is None else {"imported": self._imported}),
        }
        backbone = {name: value for name, value in self.model.backbone.state_dict().items()}
        tensors = training_tensors(self.model, self.optimizer)
        return Snapshot(tensors, state, {"backbone.safetensors": backbone})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of this run, or begin with imported weights.

        Raises:
            MismatchError: it was trained on other data, or its tensors do not fit the model.
        """
        self._imported = checkpoint.state.get("imported")
        saved = checkpoint.state["data"]["train"]  # None: imported weights, which have none
        if saved is not None and saved["digest"] != self._data.train.digest:
            raise MismatchError(
                f"{self._data.train.path}: not the data this run was started with "
                f"({saved['samples']} samples then, {len(self._data.train)} now, or different "
                "contents); pass the original data, or start a new run with another --out"
            )
        load_training_tensors(self.model, self.optimizer, checkpoint.tensors)
        if self.scaler is not None and checkpoint.state["scaler"]:
            self.scaler.load_state_dict(checkpoint.state["scaler"])
        if checkpoint.state["threads"] not in (None, torch.get_num_threads()):
            self._say(
                f"{torch.get_num_threads()} torch threads now, {checkpoint.state['threads']} when "
                "the checkpoint was written: valid, but not bit-identical to an uninterrupted run"
            )


def _labelled(samples: Dataset) -> bool:
    return bool(samples.labels.min() >= 0) and len(np.unique(samples.labels)) >= 2
