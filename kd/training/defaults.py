"""What a teacher given alone means: the way to learn from it that docs/results shows to be the best.

In: a configuration that says who teaches and nothing of how. Out: one that says how.
Invariant: it depends on models and class names alone, so a run that is resumed by the same options comes to it again.
"""

from __future__ import annotations

from dataclasses import replace

from kd.config import TrainConfig
from kd.errors import DistillationError, ModelError, UsageError
from kd.methods.facts import SOFT_LABELS, WEIGHTS
from kd.training.start import require_source
from kd.training.taught import require_askable
from kd.ultra import models
from kd.ultra.data import resolve_data


def choose(config: TrainConfig) -> TrainConfig:
    """The configuration with the way to learn from its teacher; unchanged where it says one.

    A student that is an architecture of the teacher's family inherits its weights, and trains without it from there.
    Any other learns from soft labels, or by fgfi where the teacher has no head or classes to make them with, or the
    student a decoder. What is amiss with a model is left to `kd.training.check` to say. Raises DataError.
    """
    if not config.unsettled:
        return config
    features = replace(config, methods=(("fgfi", WEIGHTS["fgfi"]),))
    if models.is_rtdetr(config.student):
        return features
    soft = replace(config, methods=((SOFT_LABELS, WEIGHTS[SOFT_LABELS]),))
    data = resolve_data(config.data)
    try:
        require_askable(soft, data)
    except (ModelError, DistillationError):
        return features
    try:
        inheriting = replace(config, teachers=(), teacher_weights=(), inherit=config.teachers[0])
        require_source(inheriting, models.load_model(config.student).model)
    except (ModelError, UsageError):
        return soft
    return inheriting if data["channels"] == 3 else soft
