"""All figures of an analysis, from frames and what models find in them; neither files nor networks.

In: frames, and per model its detections in falling confidence. Out: an `Analysis`.
Invariant: page and JSON are made of the same `figures`; each example is of something that is counted there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kd.analysis import threshold
from kd.analysis.errors import CLASS, KINDS, MISSED, RIGHT, Verdict, costs, explain
from kd.analysis.examples import SHOWN, Example, of_errors, of_lights, of_suspects
from kd.analysis.label_errors import CONFIDENT, Suspect, suspects
from kd.analysis.lights import Critical, Lights, critical, lights_of, recall_by_group, recall_row
from kd.analysis.pair import side_by_side
from kd.scoring.detection_metrics import Detections, average_precision
from kd.scoring.frames import Frame


@dataclass(frozen=True, eq=False)
class Judged:
    """What a model finds in each frame, all of it and what is ``sure`` enough to count, and what became of both."""

    found: Sequence[Detections]
    verdicts: Sequence[Verdict]
    sure: Sequence[Detections]
    sure_verdicts: Sequence[Verdict]

    def of_lights(self, lights: Lights, name: str) -> np.ndarray:
        """``found`` or ``missed`` of the sure verdicts, for each of the K lights."""
        return np.array(
            [getattr(self.sure_verdicts[f], name)[i] for f, i in zip(lights.frames, lights.places, strict=True)], bool
        )


@dataclass(frozen=True, eq=False)
class Analysis:
    """What there is to say and to show: ``figures`` for JSON, and what the pictures of each section are of."""

    frames: Sequence[Frame]
    names: Mapping[int, str]
    models: Sequence[Judged]
    suspected: Sequence[Suspect]
    figures: dict[str, Any]
    missed: Sequence[Sequence[Example]]  # of the critical lights, per model
    worst: Sequence[Mapping[str, Sequence[Example]]]  # by kind of error, per model
    alone: Sequence[Sequence[Example]]  # found by one of two models alone, per model
    suspects: Sequence[Example]


def judge(frames: Sequence[Frame], found: Sequence[Detections], conf: float) -> Judged:
    """Judge all detections, for what errors cost, and those from ``conf`` on, for what there is to count."""
    sure = [detections[detections.confidences >= conf] for detections in found]
    every, some = ([explain(d, f) for d, f in zip(these, frames, strict=True)] for these in (found, sure))
    return Judged(found, every, sure, some)


def measure(
    frames: Sequence[Frame], found: Sequence[Sequence[Detections]], names: Mapping[int, str], conf: float
) -> Analysis:
    """Analyse one or two models' detections, ``found[model][frame]``, at a working threshold.

    ``figures`` are ``{frames, objects, ignored, conf, critical: {what, rule, objects}, models, pair, suspects}``.
    """
    lights = lights_of(frames, names)
    matter = critical(frames, lights, names)
    models = [judge(frames, its, conf) for its in found]
    hits = [model.of_lights(lights, "found") for model in models]
    suspected = suspects(frames, [model.sure for model in models], [model.sure_verdicts for model in models])
    words = [_said_of(lights, model, names, conf) for model in models]
    worst = [_worst(model, frames, lights, matter, names, its) for model, its in zip(models, words, strict=True)]
    missed = [of_lights(lights, matter.chosen & ~its, matter.chosen, of) for its, of in zip(hits, words, strict=True)]
    alone: list[list[Example]] = []
    if len(models) == 2:
        both = ((hits[0], hits[1], words[0]), (hits[1], hits[0], words[1]))
        alone = [of_lights(lights, own & ~other, matter.chosen, its, 2 * SHOWN) for own, other, its in both]
    said = of_suspects(suspected, frames, names)
    figures: dict[str, Any] = {
        "frames": len(frames),
        "objects": len(lights),
        "ignored": sum(int((~frame.counted).sum()) for frame in frames),
        "conf": conf,
        "critical": {"what": matter.what, "rule": matter.rule, "objects": int(matter.chosen.sum())},
        "models": [_figures(m, frames, lights, matter, names, h) for m, h in zip(models, hits, strict=True)],
        "pair": side_by_side(*hits) if len(models) == 2 else None,
        "suspects": {"confidence": CONFIDENT, "labels": [example.as_json(frames) for example in said]},
    }
    for row, kinds in zip(figures["models"], worst, strict=True):
        row["worst"] = {kind: [example.as_json(frames) for example in examples] for kind, examples in kinds.items()}
    return Analysis(frames, names, models, suspected, figures, missed, worst, alone, said)


def _said_of(lights: Lights, model: Judged, names: Mapping[int, str], conf: float) -> list[str]:
    """A light's class, and the confidence with which the model finds it, be it below the threshold."""
    words = []
    confidences = threshold.confidence_of(model.found, model.verdicts, lights)
    for class_id, confidence in zip(lights.class_ids.tolist(), confidences.tolist(), strict=True):
        where = f"{'' if confidence >= conf else 'only '}at {confidence:.2g}" if confidence else "at no confidence"
        words.append(f"{names[class_id]}, {where}")
    return words


def _worst(
    model: Judged,
    frames: Sequence[Frame],
    lights: Lights,
    matter: Critical,
    names: Mapping[int, str],
    words: Sequence[str],
) -> dict[str, list[Example]]:
    found = {name: of_errors(kind, frames, model.sure, model.sure_verdicts, names) for kind, name in enumerate(KINDS)}
    return {**found, MISSED: of_lights(lights, model.of_lights(lights, "missed"), matter.chosen, words)}


def _figures(
    model: Judged,
    frames: Sequence[Frame],
    lights: Lights,
    matter: Critical,
    names: Mapping[int, str],
    hits: np.ndarray,
) -> dict[str, Any]:
    """One model's figures; precision and recall are those of the sure detections."""
    kinds = np.concatenate([verdict.kinds for verdict in model.sure_verdicts])
    right, wrong = int((kinds == RIGHT).sum()), int((kinds >= 0).sum())
    gains = costs(frames, model.found, model.verdicts)
    counts = {name: int((kinds == kind).sum()) for kind, name in enumerate(KINDS)}
    counts[MISSED] = int(model.of_lights(lights, "missed").sum())
    mistaken = {
        (f, int(light))
        for f, verdict in enumerate(model.sure_verdicts)
        for light in verdict.lights[verdict.kinds == CLASS]
    }
    seen = np.array(
        [pair in mistaken for pair in zip(lights.frames.tolist(), lights.places.tolist(), strict=True)], bool
    )
    missed = recall_row(~hits[matter.chosen])
    return {
        "ap50": _ap50(frames, model),
        "precision": right / (right + wrong) if right + wrong else None,
        **recall_row(hits),
        "false_alarms": wrong,
        "false_alarms_per_frame": wrong / len(frames),
        "critical": {
            "objects": missed["objects"],
            "missed": missed["found"],
            "share_missed": missed["recall"],
            "interval95": missed["interval95"],
            "seen_as_another_class": int((seen & matter.chosen & ~hits).sum()),
        },
        "errors": {kind: {"count": counts[kind], "ap50_cost": gains[kind]} for kind in (*KINDS, MISSED)},
        "recall_by": recall_by_group(lights, hits),
        "goals": threshold.goals(model.found, model.verdicts, lights, matter.chosen),
        "curves": threshold.curves(model.found, model.verdicts, lights, names),
    }


def _ap50(frames: Sequence[Frame], model: Judged) -> float:
    """The mean AP at IoU 0.5 that `kd evaluate` gives."""
    kinds, confidences, class_ids = (
        np.concatenate(arrays)
        for arrays in (
            [verdict.kinds for verdict in model.verdicts],
            [found.confidences for found in model.found],
            [found.class_ids for found in model.found],
        )
    )
    kept, truth = kinds >= RIGHT, np.concatenate([frame.class_ids[frame.counted] for frame in frames])
    return average_precision(kinds[kept] == RIGHT, confidences[kept], class_ids[kept], truth)
