"""The seam into Ultralytics: its trainers, with distillation terms in the criterion and adapters on the model.

In: a TrainConfig as a class attribute, for Ultralytics starts its own processes from the class alone. Out: Ultralytics'
files, plus `last.kd.pt` beside `last.pt` (kd/training/checkpoints.py).
Invariant: every checkpoint is a plain Ultralytics student, mid-run too; adapters live in the optimizer and in
`last.kd.pt`, the teacher in neither. Nothing of Ultralytics' training is patched; how it reads images and labels is
(kd/ultra/labels.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from ultralytics.models.rtdetr.train import RTDETRTrainer
from ultralytics.utils import RANK
from ultralytics.utils.torch_utils import TORCH_2_13, unwrap_model

from kd.config import SINGLE_CLASS, TrainConfig
from kd.distillation.cache import StudentClasses
from kd.distillation.cache_file import TeacherCache
from kd.distillation.criterion import Distillation
from kd.distillation.links import given_anchors, link_teachers, require_wired
from kd.distillation.rows import teach
from kd.distillation.rtdetr import RTDETRDistillation
from kd.distillation.unlabeled import Unlabeled
from kd.schedule import Progress, factor, turn
from kd.training import ranks
from kd.training.classic import fit_anchors, starting_point
from kd.training.resume import ResumableTrainer
from kd.training.room import room_for
from kd.ultra import classic, models, session
from kd.ultra.backbone import load_backbone
from kd.ultra.data import resolve_data, ultralytics_view

ADAPTERS = "kd_adapters"  # the attribute of the student that holds them
FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)  # have a fused step on CPUs


class Trainer(ResumableTrainer):
    """Ultralytics' trainer for detectors, distilling when its configuration names a teacher.

    Made by `trainer_class`. Plain and distilled runs go through the same class; with one seed they start from the
    same weights and see the same batches.
    """

    config: TrainConfig
    terms: type[Distillation] = Distillation  # how they come to the student's loss
    logs: tuple[str, ...] = ()  # packages that the run is logged to
    distillation: Distillation | None = None
    _step = 0  # batches of this epoch so far

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what Ultralytics' trainer takes, and its callbacks for what the run is logged to."""
        logs = () if ranks.leads() else self.logs  # the rank below logs
        super().__init__(*args, **{**kwargs, "_callbacks": session.callbacks(logs)})
        if ranks.world_size() > 1:  # Ultralytics counts the GPUs of this machine
            self.world_size, self.ddp = ranks.world_size(), RANK == -1
            if self.device.type == "cpu":
                self.args.amp = False  # Ultralytics asks rank 0 alone whether a CPU can

    @property
    def adapters(self) -> nn.Module | None:
        """The adapters, which are in the optimizer and the sidecar and in no checkpoint."""
        return self.distillation.adapters if self.distillation else None

    def train(self) -> None:
        """Train here, or in several processes: those that Ultralytics starts from this class, or torchrun's."""
        with ranks.launching(self) if self.ddp else ranks.ranked(self), room_for(self.config):
            ranks.train_as_first(self) if ranks.leads() else super().train()

    def _setup_ddp(self) -> None:
        ranks.join_on_cpu() if self.device.type == "cpu" else super()._setup_ddp()

    def get_dataset(self) -> dict[str, Any]:
        """The data as kd reads them, not by Ultralytics' own reader of the same file."""
        data = ultralytics_view(resolve_data(self.args.data))
        return {**data, "names": dict(SINGLE_CLASS), "nc": 1} if self.args.single_cls else data

    def setup_model(self) -> dict[str, Any] | None:
        """Build the student; a classic one from what kd reads, for Ultralytics takes its files for others."""
        if self.resume or not classic.is_classic(str(self.model)):
            return super().setup_model()
        priors = given_anchors(self.config)
        layout, weights = starting_point(self.model, self.args.pretrained, priors)
        self.model = self.get_model(layout, weights)
        if priors:  # weights bring their own
            self.model.model[-1].set_anchors([sizes for _, sizes in priors])
        return None

    def get_model(self, cfg: Any = None, weights: nn.Module | None = None, verbose: bool = True) -> nn.Module:
        """Build the student, on a backbone's own weights where `pretrained` names some.

        On a CPU it has the layout that Ultralytics keeps for GPUs, a sixth less time there too.
        """
        model = super().get_model(cfg, weights, verbose)
        if self.config.backbone and not self.resume:
            load_backbone(model, self.config.backbone)
        if self.device.type != "cpu" or self.args.channels_last is False:
            return model
        return model.to(memory_format=torch.channels_last)

    def build_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Build Ultralytics' optimizer; on a CPU its steps are torch's fused ones, which take a quarter of the time."""
        optimizer = super().build_optimizer(*args, **kwargs)
        if self.device.type == "cpu" and type(optimizer) in FUSED:
            for group in optimizer.param_groups:
                group["fused"] = True
        return optimizer

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> Any:
        """Ultralytics' dataset; for soft-labels, of training, with what the teacher says about its images."""
        dataset = super().build_dataset(img_path, mode, batch)
        if mode == "train" and self.config.cached:
            cache = TeacherCache.read(self.config.cache_file)
            names = resolve_data(self.args.data)["names"]
            teach(dataset, cache, StudentClasses.of(names, cache.names, self.config.view, self.config.teachers[0]))
        return dataset

    def set_model_attributes(self) -> None:
        """Make the terms and adapters as soon as the student is on its device, before EMA and optimizer exist."""
        super().set_model_attributes()
        if isinstance(self.model, classic.Model):
            self.model.args = vars(self.args)  # plain values, which the official repository can load
        if not self.config.distils:
            return
        with torch.random.fork_rng(devices=[]):  # a teacher built from a yaml draws its weights
            links = [] if self.config.cached else link_teachers(self.config, self.model, self.model.names, self.device)
        self.distillation = self.terms(self.model, links, self.config)
        self.model.add_module(ADAPTERS, self.distillation.adapters)

    def _setup_train(self) -> None:
        if self.config.distils and not self.config.built_in:
            self.add_callback("on_train_epoch_start", Trainer._begin_distillation)
            self.add_callback("on_train_batch_start", Trainer._schedule)
        if self.device.type == "cpu":
            self.world_size = 0  # Ultralytics would wrap the model for a GPU, which torch refuses for a CPU
        super()._setup_train()
        _record_optimizer(self.args, self.optimizer)
        if self.device.type == "cpu":
            torch.set_num_threads(session.TORCH_THREADS)  # Ultralytics leaves one core out: half the speed on two
            session.keep_freed_memory()
        if self.distillation:
            self.distillation.adopt(unwrap_model(self.model))
            require_wired(self.distillation.links, self.optimizer)
            if self.config.unlabeled:
                self.distillation.unlabeled = Unlabeled(self.config.unlabeled, self.train_loader.dataset, self.args)

    def _build_train_pipeline(self) -> None:
        """Build it over the ranks, with the model wrapped for them on a CPU as Ultralytics has done it on GPUs."""
        if RANK != -1 and self.device.type == "cpu":
            self.world_size = ranks.world_size()
            options = {"forward_sync_buffers" if TORCH_2_13 else "broadcast_buffers": False}  # its new and its old name
            self.model = DistributedDataParallel(self.model, find_unused_parameters=True, **options)
        super()._build_train_pipeline()
        student = unwrap_model(self.model)
        if isinstance(student, classic.Model) and not self.resume:
            fit_anchors(student, self.train_loader.dataset, self.config)

    def _begin_distillation(self) -> None:
        """Start an epoch's schedule and its order of unlabelled images: a new order where NaN has it done again."""
        self._step = 0
        if self.distillation.unlabeled:
            self.distillation.unlabeled.begin(self.args.seed, self.epoch, self.nan_recovery_attempts, RANK + 1)

    def _schedule(self) -> None:
        """Set the factor of the next step."""
        batches = len(self.train_loader)
        progress = Progress(self.epoch + self._step / batches, self.epochs, self.args.close_mosaic)
        share = turn(self.config.every, self.epoch * batches + self._step)
        self.distillation.factor = share and share * factor(self.config.schedules, progress)
        self._step += 1

    def _state(self) -> dict[str, Any]:
        """The sidecar's content, and the samples that weights are balanced by."""
        return {**super()._state(), "balance": self._samples}

    @property
    def _samples(self) -> dict[str, list[float]]:
        return self.distillation.balance.samples if self.distillation and self.distillation.balance else {}

    def _load_checkpoint_state(self, ckpt: dict) -> None:
        """Load what Ultralytics loads, and the samples."""
        super()._load_checkpoint_state(ckpt)
        self._samples.update(self._pending.get("balance", {}))

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        """Leave out the validation columns of terms that only training has: Ultralytics would log them as 0."""
        super().save_metrics({k: v for k, v in metrics.items() if not k.startswith("val/kd_")})

    def save_model(self) -> bool:
        """Write the checkpoints without the None that a deep copy leaves behind in place of the adapters."""
        self.ema.ema._modules.pop(ADAPTERS, None)
        return super().save_model()

    def _handle_nan_recovery(self, epoch: int) -> bool:
        """Recover without the adapters in sight: Ultralytics loads the student's state dict strictly."""
        model = unwrap_model(self.model)
        adapters = model._modules.pop(ADAPTERS, None)
        try:
            return super()._handle_nan_recovery(epoch)
        finally:
            if adapters is not None:
                model.add_module(ADAPTERS, adapters)


def _record_optimizer(args: Any, optimizer: torch.optim.Optimizer) -> None:
    """Write the optimizer that Ultralytics chose into the arguments, which checkpoints carry.

    Given as `--set`, they then make the same one again. Under `auto` Ultralytics sets a momentum of its own and leaves
    the argument alone: Adam's kinds train with the former; all others with the argument, since their warm-up ends at
    it, or without a warm-up with the former.
    """
    args.optimizer = type(optimizer).__name__
    group = optimizer.param_groups[0]
    if "betas" in group:
        args.momentum = group["betas"][0]
    elif not args.warmup_epochs > 0:
        args.momentum = group["momentum"]


class RTDETRStudentTrainer(Trainer, RTDETRTrainer):
    """The trainer for RT-DETR students: model, square images and validator are those of Ultralytics' own for them."""

    terms = RTDETRDistillation


def trainer_class(config: TrainConfig, logs: tuple[str, ...] = ()) -> type[Trainer]:
    """A Trainer bound to a configuration; a class, because Ultralytics ships nothing else to its worker processes.

    Raises ModelError for a student's checkpoint that holds no detector.
    """
    base = RTDETRStudentTrainer if models.is_rtdetr(config.student) else Trainer
    return type("Trainer", (base,), {"config": config, "logs": logs})
