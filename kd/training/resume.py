"""Runs that survive a kill: Ultralytics' trainer, with a sidecar `last.kd.pt` for what its `last.pt` forgets.

In: the run folder of a killed run. Out: the same run going on as if nothing had happened; bit for bit on a CPU.
Invariant: checkpoint and sidecar are saved as a pair (kd/training/checkpoints.py).

Random numbers are not saved: every epoch starts from seeds of its own. Saved states would have to follow the sampler
and its workers in the middle of their work, and would differ between the arms once a term draws random numbers.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.modules.head import Detect
from ultralytics.utils import RANK
from ultralytics.utils.torch_utils import unwrap_model

from kd.errors import RunError
from kd.files import sha256
from kd.training.checkpoints import FORMAT, load_sidecar, partial_of, sidecar_of
from kd.training.disk import write_text, writing
from kd.ultra.classic import Model, is_classic_yaml, official_names

OOM_RETRIES = 3  # after so many halved batches Ultralytics lets an error pass


class ResumableTrainer(DetectionTrainer):
    """Ultralytics' trainer for detectors, whose killed runs end like uninterrupted ones.

    On a CPU, where images are loaded in the training process. Loader workers run ahead of training into the next
    epochs, so with them a resumed run sees another order of images, as random as the first.
    """

    started: float  # time.monotonic() of the process's start, for the time that a run took over all its processes
    seconds_before = 0.0  # that earlier processes took
    _pending: dict[str, Any] | None = None  # what the first epoch after a resume takes over
    _accumulate = 1
    _waiting = 0  # batches since the last step of the optimizer
    _shift = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what Ultralytics' trainer takes."""
        self.started = time.monotonic()
        super().__init__(*args, **kwargs)

    @property
    def sidecar(self) -> Path:
        """Where the state is that `last.pt` does not hold."""
        return sidecar_of(self.last)

    @property
    def adapters(self) -> nn.Module | None:
        """What is trained with the student and is in no checkpoint."""
        return None

    @property
    def accumulate(self) -> int:
        """Batches per step of the optimizer, as Ultralytics compares it with its count of batches.

        It counts from the start of training, also after a resume, where the first step would come at once. Until
        that step the number is shifted by the batches that the killed process had done.
        """
        return self._accumulate + self._shift

    @accumulate.setter
    def accumulate(self, value: int) -> None:
        self._accumulate = value

    def get_model(self, cfg: Any = None, weights: nn.Module | None = None, verbose: bool = True) -> nn.Module:
        """Build the student, of which models that this process has built before must not change the first weights."""
        Detect.legacy = False  # Ultralytics sets it on the class for older heads, and v10's draws the more for it
        if not is_classic_yaml(cfg):
            return super().get_model(cfg, weights, verbose)
        model = self.set_model_names_for_load(Model(cfg, self.data["channels"], self.data["nc"]))
        if weights:
            model.load(weights)
        return model

    def _setup_train(self) -> None:
        self.add_callback("on_train_epoch_start", ResumableTrainer._begin_epoch)
        self.add_callback("on_train_batch_start", ResumableTrainer._count_batch)
        super()._setup_train()

    def _build_train_pipeline(self) -> None:
        """Build it, and count batches from the first epoch that there is to do."""
        super()._build_train_pipeline()
        self._waiting = self.start_epoch * len(self.train_loader)

    def _begin_epoch(self) -> None:
        """Seed the epoch; in the first one after a resume, take over what the killed process had at hand."""
        self._oom_retries = OOM_RETRIES  # a run has the batch that it says: its twins, and who resumes it, have it too
        # Python, numpy and torch, CUDA's generators too; an epoch that is done again after a NaN draws other images.
        sequence = np.random.SeedSequence((self.args.seed, self.epoch, self.nan_recovery_attempts, RANK + 1))
        seed = int(sequence.generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        loader = self.train_loader
        if not loader.num_workers or self.epoch == self.start_epoch:
            if RANK != -1:
                loader.sampler.set_epoch(self.epoch)  # Ultralytics does so later, when workers have asked it already
            loader.reset()  # its sampler is in the middle of its generator
            loader.generator.manual_seed(seed)
        state, self._pending = self._pending, None
        if state is None:
            return
        for name, parameter in unwrap_model(self.model).named_parameters():
            if name in state["gradients"]:
                parameter.grad = state["gradients"][name].to(self.device)
        self._waiting = state["waiting"]
        self._shift = self.epoch * len(loader) - self._waiting
        if not loader.num_workers:
            for index in state["buffer"]:
                loader.dataset.load_image(index)  # mosaics take their other images from the latest ones
        if not self.args.time:  # that setting asks how long this process has trained
            self.train_time_start -= _last_time(self.csv)

    def _count_batch(self) -> None:
        self._waiting += 1

    def optimizer_step(self) -> None:
        """Step, and count the batches from here."""
        super().optimizer_step()
        self._waiting = self._shift = 0

    def save_model(self) -> bool:
        """Write checkpoints and sidecar under partial names, then rename them: a killed run leaves a whole pair."""
        last, best, numbered = self.last, self.best, self.wdir / f"epoch{self.epoch}.pt"  # the last by save_period
        try:
            self.last, self.best = partial_of(last), partial_of(best)
            try:
                with writing(last), official_names():
                    saved = super().save_model()
            finally:
                self.last, self.best = last, best
            with writing(self.sidecar):
                torch.save(self._state(), partial_of(self.sidecar))
            paths = [path for path in (self.sidecar, best, last) if partial_of(path).exists()]  # the first one commits
            for path in paths:
                with writing(path), partial_of(path).open("rb") as file:
                    os.fsync(file.fileno())
        except Exception:  # the earlier ones stay; what there is of these takes room
            for path in (partial_of(self.sidecar), partial_of(best), partial_of(last), numbered):
                path.unlink(missing_ok=True)
            raise
        for path in paths:
            partial_of(path).replace(path)
        return saved

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        """Add a row to results.csv."""
        with writing(self.csv):
            super().save_metrics(metrics)

    def _state(self) -> dict[str, Any]:
        """What the next epoch depends on and `last.pt` holds in half precision or not at all."""
        model, average = unwrap_model(self.model), self.ema.ema.state_dict()
        dataset = self.train_loader.dataset
        return {
            "format": FORMAT,
            "epoch": self.epoch,
            "checkpoint": sha256(partial_of(self.last)),
            "student": {key: value for key, value in model.state_dict().items() if key in average},
            "average": average,
            "adapters": self.adapters.state_dict() if self.adapters else {},
            "optimizer": self.optimizer.state_dict(),
            "gradients": {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
            "waiting": self._waiting,
            "schedule": getattr(getattr(model, "criterion", None), "updates", None),  # of a dual head
            "buffer": [int(index) for index in getattr(dataset, "buffer", [])],
            "stop": bool(self.stop),
            "seconds": self.seconds_before + time.monotonic() - self.started,
        }

    def _load_checkpoint_state(self, ckpt: dict) -> None:
        """Load the optimizer and the average in full precision, and the adapters; for resume and NaN recovery."""
        self._pending = state = load_sidecar(self.sidecar)
        super()._load_checkpoint_state({**ckpt, "optimizer": state["optimizer"]})
        self.ema.ema.load_state_dict(state["average"])
        if self.adapters:
            self.adapters.load_state_dict(state["adapters"])

    def resume_training(self, ckpt: dict | None) -> None:
        """Resume from a whole pair; Ultralytics goes on with the average in half precision as the student."""
        if ckpt is None or not self.resume:
            return
        if load_sidecar(self.sidecar, mmap=True)["checkpoint"] != sha256(self.last):
            raise RunError(
                f"{self.sidecar}: got the sidecar of another checkpoint, expected that of {self.last.name} beside it: "
                f"bring back the one that was there, or start anew with --overwrite"
            )
        super().resume_training(ckpt)
        state, model = self._pending, unwrap_model(self.model)
        model.load_state_dict(state["student"], strict=False)  # the adapters are in the model, and loaded
        if state["schedule"] is not None:
            model.criterion.updates = state["schedule"] - 1
            model.criterion.update()
        self.seconds_before = state["seconds"]
        if RANK in {-1, 0}:
            _keep_rows(self.csv, self.start_epoch)

    def _handle_nan_recovery(self, epoch: int) -> bool:
        """Recover in the first epoch after a resume too, where Ultralytics thinks that there is no checkpoint yet."""
        start, self.start_epoch = self.start_epoch, 0
        try:
            recovered = super()._handle_nan_recovery(epoch)
        finally:
            self.start_epoch = start
        if recovered:  # Ultralytics drops the gradients and counts from the start again
            self._pending, self._shift, self._waiting = None, 0, epoch * len(self.train_loader)
        return recovered

    def final_eval(self) -> None:
        """Leave the checkpoints to kd.training.run, which strips and scores both of them."""


def _keep_rows(results: Path, epochs: int) -> None:
    """Drop the rows of results.csv after so many epochs: a run may be killed between its row and its checkpoint."""
    if results.exists():
        lines = results.read_text(encoding="utf-8").splitlines(keepends=True)
        write_text(results, "".join(lines[: epochs + 1]))


def _last_time(results: Path) -> float:
    """The seconds of training in the last row of results.csv, 0 without one."""
    rows = results.read_text(encoding="utf-8").splitlines()[1:] if results.exists() else []
    return float(rows[-1].split(",")[1]) if rows else 0.0
