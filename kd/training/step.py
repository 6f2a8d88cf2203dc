"""One training step, as Ultralytics' loop does it."""

from __future__ import annotations

from typing import Any

import torch
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils.torch_utils import autocast


def one_step(trainer: DetectionTrainer, batch: dict[str, Any]) -> None:
    """Forward, backward and optimizer step (`BaseTrainer._do_train`) on a batch of the trainer's loader."""
    amp = torch.bfloat16 if trainer.args.amp == "bf16" else trainer.amp
    with autocast(amp, device=trainer.device.type):
        loss, _ = trainer.model(trainer.preprocess_batch(dict(batch)))
    trainer.scaler.scale(loss.sum()).backward()
    trainer.optimizer_step()
