"""What a run would do, from the first batch of a trainer that is set up in a folder of its own and dropped.

In: a TrainConfig and what checking it has found. Out: the plan, as JSON has it.
Invariant: nothing is written outside of a temporary folder.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ultralytics.utils.torch_utils import unwrap_model

from kd.config import TrainConfig
from kd.distillation.criterion import term
from kd.methods.fgfi import fgfi_masks
from kd.runs.record import optimizer_of
from kd.training.build import build_trainer, translated
from kd.training.record import Checked, anchors_of
from kd.training.trainer import Trainer
from kd.ultra import session


def plan(config: TrainConfig, checked: Checked) -> dict[str, Any]:
    """What config.json would hold, the steps of an epoch, the optimizer, and the terms on the first batch."""
    alone = replace(untaught(config), device=config.one_device)
    with tempfile.TemporaryDirectory(prefix="kd-plan-") as scratch, session.silence():
        trainer = build_trainer(alone, checked.model, Path(scratch))
        translated(trainer._setup_train, Path(scratch))
        found = {
            **checked.record,
            "out": config.to_json()["out"],
            "steps_per_epoch": len(trainer.train_loader),
            "optimizer": optimizer_of(vars(trainer.args)),
            **anchors_of(unwrap_model(trainer.model)),
        }
        if trainer.distillation:
            found["first_batch"] = _first_batch(trainer)
    torch.set_num_threads(session.TORCH_THREADS)
    return found


def untaught(config: TrainConfig) -> TrainConfig:
    """The configuration without a teacher that is yet to be asked about the images: that is not done here."""
    if not config.cached or (config.teacher_cache and config.cache_file.exists()):
        return config
    return replace(
        config, teachers=(), methods=(), teacher_weights=(), teacher_cache=None, teacher_imgsz=None, schedules=()
    )


def _first_batch(trainer: Trainer) -> dict[str, Any]:
    """Boxes, mask shares by stride, unweighted terms and the teachers' shares of the first training batch."""
    distillation, config = trainer.distillation, trainer.config
    batch = trainer.preprocess_batch(next(iter(trainer.train_loader)))
    if config.cached:
        with torch.no_grad():
            _, items = distillation(trainer.model.train()(batch["img"]), batch)
        ((name, weight),) = config.methods
        return {"boxes": len(batch["bboxes"]), "terms": {name: float(items["kd_loss"]) / weight}}
    with torch.no_grad():
        trainer.model.train()
        inputs = distillation.inputs(distillation.forward(batch["img"]), batch)
        batches = distillation.weighted_batches(inputs)
        terms = {name: float(term(name, batches, config)) for name, _ in config.methods}
    plan = {"boxes": len(batch["bboxes"]), "terms": terms, "shares": [round(share, 4) for share, _ in batches]}
    if "fgfi" in terms:
        masks = {s: mask for b in inputs for s, mask in zip(b.student, fgfi_masks(b, config), strict=True)}
        plan["mask_share"] = {str(stride): round(float(masks[stride].float().mean()), 4) for stride in sorted(masks)}
    return plan
