"""What a teacher says about images goes through their augmentation with them.

In: Ultralytics' training dataset and a `TeacherCache`. Out: batches with one more key, a tensor of rows for each image.
Invariant: rows are never among the objects of a sample, so that what is drawn at random, what the images show and what
the student's own loss sees are those of a run without a teacher. Each transform moves the rows with what it has drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from ultralytics.data import augment
from ultralytics.data.dataset import YOLODataset
from ultralytics.utils.instance import Instances
from ultralytics.utils.metrics import bbox_ioa

from kd.distillation.cache import StudentClasses
from kd.distillation.cache_file import TeacherCache, image_sha256
from kd.errors import DistillationError

ROWS = "teacher_rows"  # of a sample: boxes as `instances`, their numbers in the cache as `cls`; then [N, 4 + K]
COVERED = 0.1  # share of a row that a patch may cover: what Ultralytics asks of an object that a patch brings along

Sample = dict[str, Any]


class TaughtDataset(YOLODataset):
    """Ultralytics' training dataset with a teacher's rows in each sample; made by `teach`."""

    cache: TeacherCache
    classes: StudentClasses
    images: list[str]  # SHA-256 by index

    def get_image_and_label(self, index: int) -> Sample:
        """The sample before augmentation, and its image's rows."""
        sample = super().get_image_and_label(index)
        rows = self.cache.rows_of(self.images[index])
        instances = Instances(self.cache.boxes(rows), bbox_format="xywh", normalized=True)
        sample[ROWS] = {"instances": instances, "cls": np.arange(rows.start, rows.stop)}
        return sample

    def __getitem__(self, index: int) -> Sample:
        """The augmented sample, its rows as a tensor [N, 4 + K]: centre and size in 0..1 of it, and the scores."""
        sample = super().__getitem__(index)
        boxes_xywh, rows = sample[ROWS]
        scores = self.classes.scores(self.cache.scores(rows))
        sample[ROWS] = torch.from_numpy(np.concatenate((boxes_xywh, scores), 1, dtype=np.float32))
        return sample

    def build_transforms(self, hyp: Any) -> augment.Compose:
        """The transforms, which move rows too; Ultralytics builds them anew when mosaic is closed."""
        transforms = super().build_transforms(hyp)
        _adapt(transforms)
        return transforms


def teach(dataset: YOLODataset, cache: TeacherCache, classes: StudentClasses) -> None:
    """Make a training dataset give the rows of a cache that has all its images.

    Raises DistillationError for a transform of Ultralytics that nothing is known of.
    """
    dataset.__class__ = TaughtDataset
    dataset.cache, dataset.classes = cache, classes
    dataset.images = [image_sha256(Path(file)) for file in dataset.im_files]
    _adapt(dataset.transforms)


def _as_objects(sample: Sample) -> Sample:
    """The sample as if the rows were its objects."""
    view = {**sample, **sample[ROWS]}
    if "mix_labels" in sample:
        view["mix_labels"] = [_as_objects(other) for other in sample["mix_labels"]]
    return view


class _Moving(augment.BaseTransform):
    """A transform that moves rows as it moves objects."""

    def apply_instances(self, labels: Sample, params: dict[str, Any] | None = None) -> Sample:
        """Move the objects, and the rows by the same parameters."""
        of_rows = self.of_rows(labels, params)
        moved = super().apply_instances(_as_objects(labels), of_rows)
        labels = super().apply_instances(labels, params)
        labels[ROWS] = {key: moved[key] for key in ("instances", "cls")}
        return labels

    def of_rows(self, labels: Sample, params: Any) -> Any:
        """The parameters with the rows of other images in place of their objects."""
        return params


class Mosaic(_Moving, augment.Mosaic):
    """Rows are shifted, clipped and joined as objects are."""

    def of_rows(self, labels: Sample, params: Any) -> Any:
        """Patches whose objects are the rows."""
        layout = [{**patch, "labels_patch": _as_objects(patch["labels_patch"])} for patch in params["layout"]]
        return {**params, "layout": layout}


class RandomPerspective(_Moving, augment.RandomPerspective):
    """Rows are moved, clipped and left out as boxes without polygons are."""


class MixUp(_Moving, augment.MixUp):
    """Rows of both images."""


class CutMix(_Moving, augment.CutMix):
    """Rows of the image around the patch, and of the one in it."""

    def of_rows(self, labels: Sample, params: Any) -> Any:
        """The same patch; rows that it covers go, and its own come."""
        if params.get("skip"):
            return params
        rows, area = labels[ROWS], params["area"][None]
        bare = bbox_ioa(area, rows["instances"].bboxes)[0] <= COVERED
        labels[ROWS] = {"instances": rows["instances"][bare], "cls": rows["cls"][bare]}
        other = labels["mix_labels"][0][ROWS]["instances"]
        return {**params, "indexes2": np.nonzero(bbox_ioa(area, other.bboxes)[0] >= COVERED)[0]}


class RandomFlip(_Moving, augment.RandomFlip):
    """Rows are mirrored as objects are."""

    def apply_instances(self, labels: Sample, params: dict[str, Any] | None = None) -> Sample:
        """Leave the rows as they are where nothing is mirrored."""
        moving = super().apply_instances if params["flip"] else super(_Moving, self).apply_instances
        return moving(labels, params)


class Format(augment.Format):
    """Rows become boxes in 0..1 of the augmented image, centre and size, and their numbers."""

    def apply_instances(self, labels: Sample, params: dict[str, Any] | None = None) -> Sample:
        """Format the objects, and the rows."""
        rows = labels.pop(ROWS)
        rows["instances"].convert_bbox("xywh")
        rows["instances"].normalize(params["w"], params["h"])
        labels[ROWS] = rows["instances"].bboxes, rows["cls"]
        return super().apply_instances(labels, params)


#: Transforms that move objects, by Ultralytics' class, and those that move none or, as copy-paste, bring some along of
#: which the teacher has said nothing.
MOVING = {
    augment.Mosaic: Mosaic,
    augment.RandomPerspective: RandomPerspective,
    augment.MixUp: MixUp,
    augment.CutMix: CutMix,
    augment.RandomFlip: RandomFlip,
    augment.Format: Format,
}
STILL = (augment.Compose, augment.CopyPaste, augment.Albumentations, augment.RandomHSV)


def _adapt(transform: Any) -> None:
    """Make a transform, and those inside it, move rows. Raises DistillationError for one that is not known."""
    kind = type(transform)
    if kind in MOVING:
        transform.__class__ = MOVING[kind]
    elif kind not in (*MOVING.values(), *STILL):
        raise DistillationError(
            f"soft-labels: got the transform {kind.__name__} of Ultralytics, expected one of those that kd knows: "
            f"choose another method, and please report this with your Ultralytics version"
        )
    for inner in (*getattr(transform, "transforms", ()), getattr(transform, "pre_transform", None)):
        if isinstance(inner, augment.BaseTransform | augment.Compose):
            _adapt(inner)
