"""Ultralytics' own distillation (`distill_model`), run as it is: the reference that other methods are held against.

In: a TrainConfig with the one method `built-in`. Out: a run like any other, its finished checkpoints plain students.
Invariant: model, loss, optimizer and checkpoints are Ultralytics'; initial weights and data order are those of the
plain run of the same seed. Its half-done checkpoints hold its wrapper and cannot be resumed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ultralytics.models.yolo.detect import DetectionTrainer

from kd.config import TrainConfig
from kd.training.resume import ResumableTrainer
from kd.training.trainer import Trainer


class BuiltInTrainer(Trainer):
    """The trainer of all runs, without this project's terms and sidecar."""

    def set_model_attributes(self) -> None:
        """Leave the criterion alone; Ultralytics wraps student and teacher afterwards."""
        ResumableTrainer.set_model_attributes(self)

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        """Leave out the validation column of its term, which only training has."""
        super().save_metrics({key: value for key, value in metrics.items() if key != "val/dis_loss"})

    def save_model(self) -> bool:
        """Write Ultralytics' checkpoints alone: its recovery from NaN wants its wrapper in them."""
        return DetectionTrainer.save_model(self)

    def _load_checkpoint_state(self, ckpt: dict) -> None:
        DetectionTrainer._load_checkpoint_state(self, ckpt)


def builtin_trainer(config: TrainConfig, logs: tuple[str, ...] = ()) -> type[BuiltInTrainer]:
    """The trainer bound to a configuration, as `kd.training.trainer.trainer_class` does it."""
    return type("BuiltInTrainer", (BuiltInTrainer,), {"config": config, "logs": logs})


def builtin_settings(config: TrainConfig) -> dict[str, Any]:
    """Ultralytics' arguments besides the student's: teacher and weight."""
    return {"distill_model": config.teachers[0], "dis": config.methods[0][1]}


def nearest_own(config: TrainConfig) -> TrainConfig:
    """The same run by score-l2, whose levels, projector and demands on the teacher are the built-in's."""
    return replace(config, methods=(("score-l2", config.methods[0][1]),))
