"""The options of `kd train`, each declared once: name, type, default and help text.

The command line, plans and the checks of both read this declaration. Adding an option that is a value of the run: a
field here and one of the same name in `kd.config.TrainConfig`.
Invariant: standard library alone; the default of such an option is TrainConfig's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from kd.config import TrainConfig
from kd.methods.facts import BUILT_IN, CHOICES, SOFT_LABELS
from schemas.option_groups import Option

Batch = Annotated[int, Option("Images per step.")]
SkipBadLabels = Annotated[bool, Option("Go on without images or labels that cannot be used, and count them.")]


@dataclass(frozen=True)
class TrainOptions:
    """The options in the order of their help."""

    data: Annotated[Path | None, Option("A YOLO dataset's data.yaml.")] = None
    student: Annotated[
        str | None, Option("A .pt, a .yaml, or a name such as yolov5n (fresh weights).", metavar="M")
    ] = None
    teacher: Annotated[
        list[str] | None,
        Option(
            "A trained detector to learn from; give it again for several, whose weights are taken as shares. Without "
            "one, a plain run.",
            metavar="T[=WEIGHT]",
        ),
    ] = None
    inherit: Annotated[
        str | None,
        Option(
            "A trained detector of the student's family that its first weights are computed from, as kd inherit does "
            "it; with --teacher or without.",
            metavar="T",
        ),
    ] = None
    combine: Annotated[
        Literal["mean", "best"],
        Option("Several teachers: their mean, or for each image the one whose scores are highest on it."),
    ] = TrainConfig.combine
    teacher_imgsz: Annotated[
        int | None, Option("Image size in pixels that teachers see.  [default: the student's]", metavar="N")
    ] = None
    teacher_cache: Annotated[
        Path | None,
        Option(
            "For soft-labels: what the teacher says about the training images, as kd cache writes it; made there if it "
            "is not there yet, for other runs to share.  [default: teacher.npz in --out]",
            metavar="FILE",
        ),
    ] = None
    method: Annotated[
        list[str] | None,
        Option(
            f"What to imitate: {CHOICES}; give it again for several. "
            f"Or alone: {SOFT_LABELS}, the teacher's detections, asked for once before the first epoch, or {BUILT_IN}, "
            f"Ultralytics' own distillation. Beside other options of how to imitate: fgfi.  "
            "[default: none but --inherit T, where it fits, else soft-labels]",
            metavar="NAME[=WEIGHT]",
        ),
    ] = None
    weight: Annotated[float | None, Option("Weight of the one method (lambda).")] = None
    balance: Annotated[
        float | None,
        Option(
            "In place of weights: each method's gradient in the features becomes R (such as 0.1) times that of the "
            "task loss, measured on the first 16 batches.",
            metavar="R",
        ),
    ] = None
    schedule: Annotated[
        list[str] | None,
        Option(
            "How much the methods count in the course of the run: constant, warmup (rising over the first tenth of the "
            "epochs), cosine (falling to 0), first-half (off in the second), no-closing (off in the last epochs, those "
            "without mosaic); give it again for several, which multiply.  [default: constant]",
            metavar="NAME",
        ),
    ] = None
    every: Annotated[
        int, Option("Ask the teacher at every Nth step alone, where the methods then count N times.", metavar="N")
    ] = TrainConfig.every
    unlabeled: Annotated[
        Path | None,
        Option(
            "A folder of images, at any depth, that the methods see and the task loss does not: each step takes as "
            "many as its batch has, and about twice as long.",
            metavar="DIR",
        ),
    ] = None
    fgfi: Annotated[
        list[str] | None,
        Option(
            "Where and how fgfi imitates: threshold=0.5 of a box's best anchor, assigned=true (the best over all "
            "levels), mask=boxes (cells inside boxes, no anchors), soft=true (cells by the teacher's score), kernel=3 "
            "(of the adapter).",
            metavar="KEY=VALUE",
        ),
    ] = None
    priors: Annotated[
        Path | None,
        Option(
            "JSON of dtld inspect --anchors: fgfi's anchor priors by stride, in pixels of the training image "
            "(--imgsz), and a classic student's own anchors.  [default: YOLOv5's]"
        ),
    ] = None
    epochs: Annotated[int, Option("Passes over the training images.")] = TrainConfig.epochs
    imgsz: Annotated[int, Option("Image size in pixels, a multiple of 32.")] = TrainConfig.imgsz
    batch: Annotated[
        str,
        Option(
            "Images per step; or auto, the most that a GPU has memory for, or auto:0.5, for a share of it.",
            metavar="N|auto[:SHARE]",
        ),
    ] = str(TrainConfig.batch)
    device: Annotated[
        str | None, Option("Processor, GPU, or several GPUs.  [default: a GPU if any]", metavar="cpu|0|0,1")
    ] = None
    seed: Annotated[int, Option("Decides initial weights and data order.")] = TrainConfig.seed
    freeze: Annotated[int, Option("Keep the first N layers as they are.", metavar="N")] = TrainConfig.freeze
    out: Annotated[Path, Option("The run's folder.")] = Path("run")
    resume: Annotated[
        bool, Option("Continue the run in --out, which was cut off, as it was started; no other option is needed.")
    ] = False
    overwrite: Annotated[bool, Option("Replace an earlier run in --out.")] = False
    dry_run: Annotated[bool, Option("Check everything, print the plan, write nothing.")] = False
    allow_weak_teacher: Annotated[bool, Option("Distil from a teacher that the check would refuse.")] = False
    skip_bad_labels: SkipBadLabels = False
    allow_overlap: Annotated[bool, Option("Train on images that val or test has too, as coco128 does.")] = False
    log: Annotated[
        list[str] | None,
        Option(
            "Log the run there too, through Ultralytics; may be given again.  [default: nowhere]",
            metavar="tensorboard|mlflow|wandb",
        ),
    ] = None
    set: Annotated[list[str] | None, Option("Any Ultralytics training argument.", metavar="KEY=VALUE")] = None
