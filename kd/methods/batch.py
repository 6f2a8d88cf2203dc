"""What a method may look at: features and head outputs of student and teacher, adapters' weights, ground-truth boxes.

In: tensors by stride, of the levels that student and teacher share. Out: the cells and scores that methods ask for.
Invariant: no gradient reaches the teacher; torch only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from kd.config import TrainConfig
from kd.methods.masks import Anchors, Grid, foreground

CONFIDENT = 0.25  # a teacher's class score from which its cell counts: what Ultralytics' predictor shows by default

#: The convolutions of an adapter in order, as (weight [C', C, k, k], bias [C'] or None); ReLU between them.
Layers = Sequence[tuple[Tensor, Tensor | None]]


class Prediction(NamedTuple):
    """A head's output on one level: ``scores`` [B, K, H, W] class logits, ``boxes`` [B, 4 * reg_max, H, W].

    A head with A anchors predicts A times for each cell: it has A H rows, those of an anchor below those of the one
    before, boxes of reg_max 1 and an ``objectness`` [B, 1, A H, W], logits.
    """

    scores: Tensor
    boxes: Tensor
    objectness: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> Prediction:
        """The same of changed maps."""
        return Prediction(*(change(maps) for maps in self if maps is not None))

    def confidence(self, classes: list[int] | None = None) -> Tensor:
        """The highest class score, of some ``classes`` or all, times any objectness, [B, A H, W] in 0..1; float32."""
        scores = self.scores.detach().float()
        highest = (scores if classes is None else scores[:, classes]).amax(1).sigmoid()
        return highest if self.objectness is None else highest * self.objectness.detach().float().sigmoid()[:, 0]


def _rows(mask: Tensor, maps: Tensor) -> Tensor:
    """The marked cells of maps [B, C, H, W], float32 [N, C]."""
    return maps.permute(0, 2, 3, 1)[mask].float()


def by_cell(rows: Tensor, height: int) -> Tensor:
    """What A H rows say of H rows of cells, the highest over the anchors: [B, A H, W] -> [B, H, W]."""
    return rows.unflatten(1, (-1, height)).amax(1)


class Queries(NamedTuple):
    """A decoder's output: ``logits`` [B, ..., N, K] of classes, ``boxes`` [B, ..., N, 4] of N queries.

    Boxes are centre, width and height as shares of the image. Behind B comes the decoder's layer, where there are some.
    """

    logits: Tensor
    boxes: Tensor


class Cells(NamedTuple):
    """The N cells of all shared levels that count for one branch of the heads; with anchors, a cell's for each.

    ``student`` and ``teacher`` are predictions as rows, [N, K], [N, 4 * reg_max] and any [N, 1]; ``confidence`` [N] the
    teacher's highest class score, in 0..1.
    """

    student: Prediction
    teacher: Prediction
    confidence: Tensor


@dataclass(frozen=True)
class Batch:
    """The images of a step and what one teacher makes of them, the dicts keyed by the student's stride.

    ``student`` [B, Cs, H, W] and ``teacher`` [B, Ct, H, W] features; ``adapters`` the layers from the student's
    channels to the teacher's, per method that has some; ``boxes_xyxy`` [N, 4] in pixels of the network's input,
    ``image_index`` [N] in 0..B-1. ``student_heads`` and ``teacher_heads``, only where the teacher has its head: the
    one-to-many branch, then a dual head's one-to-one branch; ``classes`` the teacher's class for each of the student's,
    or None where the teacher lacks one of them. ``student_queries`` are those of every layer of an RT-DETR's decoder,
    [B, L, N, .], ``teacher_queries`` those of the last one, [B, M, .], only where the teacher has its decoder.
    ``priors`` are the student's own anchors by stride, (width, height) in pixels, where its head has some.
    """

    student: Mapping[int, Tensor]
    teacher: Mapping[int, Tensor]
    adapters: Mapping[str, Mapping[int, Layers]]
    boxes_xyxy: Tensor
    image_index: Tensor
    student_heads: Sequence[Mapping[int, Prediction]] = ()
    teacher_heads: Sequence[Mapping[int, Prediction]] = ()
    classes: list[int] | None = None
    student_queries: Queries | None = None
    teacher_queries: Queries | None = None
    priors: Anchors | None = None

    @cached_property
    def cells(self) -> list[Cells]:
        """The cells inside a ground-truth box and those of which the teacher is confident, per branch of the heads.

        A one-to-one branch is compared with a one-to-one branch alone: a one-to-many one would teach it to find every
        object many times. Confidence is in the student's classes, or in any where the teacher's are others.
        """
        return [self._cells(*pair) for pair in zip(self.student_heads, self.teacher_heads, strict=False)]

    @property
    def image_scores(self) -> Tensor:
        """The teacher's mean confidence over the cells of each image that count, [B] in 0..1; 0 where none does.

        By its one-to-many branch.
        """
        levels = []
        for stride, (mask, confidence) in self._counting(self.teacher_heads[0]).items():
            height = self.student[stride].shape[2]
            levels.append((by_cell(mask, height), by_cell(confidence, height)))
        total = sum((confidence * mask).sum((1, 2)) for mask, confidence in levels)
        count = torch.stack([mask.sum((1, 2)) for mask, _ in levels]).sum(0)
        return total / count.clamp(min=1)

    def score(self, stride: int) -> Tensor:
        """The teacher's highest class score per cell of a level, [B, H, W] in 0..1, as Ultralytics weighs cells.

        In whichever classes the teacher has; a dual head's by the mean logits of its branches.
        """
        logits = torch.stack([head[stride].scores.float() for head in self.teacher_heads]).mean(0)  # [B, K, A H, W]
        mean = self.teacher_heads[0][stride]._replace(scores=logits)
        return by_cell(mean.confidence(), self.student[stride].shape[2])

    def select(self, images: Tensor) -> Batch:
        """The batch of these ``images`` [M] alone, indices in 0..B-1 without repetition, in their order."""
        place = self.image_index.new_full((len(next(iter(self.student.values()))),), -1)
        place[images] = torch.arange(len(images), device=place.device)
        index = place[self.image_index]  # [N], -1 for the boxes of images left out

        def heads(branches: Sequence[Mapping[int, Prediction]]) -> list[dict[int, Prediction]]:
            return [{s: maps.each(lambda m: m[images]) for s, maps in branch.items()} for branch in branches]

        return replace(
            self,
            student={stride: features[images] for stride, features in self.student.items()},
            teacher={stride: features[images] for stride, features in self.teacher.items()},
            boxes_xyxy=self.boxes_xyxy[index >= 0],
            image_index=index[index >= 0],
            student_heads=heads(self.student_heads),
            teacher_heads=heads(self.teacher_heads),
        )

    def _counting(self, teacher: Mapping[int, Prediction]) -> dict[int, tuple[Tensor, Tensor]]:
        """Per stride the cells that count, boolean [B, A H, W], and the teacher's confidence in each, [B, A H, W]."""
        counting = {}
        for stride, features in self.student.items():
            confidence = teacher[stride].confidence(self.classes)
            grid = Grid(stride, *features.shape[2:])
            inside = foreground(self.boxes_xyxy, self.image_index, len(features), grid)
            inside = inside.repeat(1, confidence.shape[1] // grid.height, 1)
            counting[stride] = inside | (confidence > CONFIDENT), confidence
        return counting

    def _cells(self, student: Mapping[int, Prediction], teacher: Mapping[int, Prediction]) -> Cells:
        counting = self._counting(teacher)

        def rows(head: Mapping[int, Prediction]) -> Prediction:
            """What a head says in the cells that count, of all levels."""
            levels = [head[s].each(partial(_rows, mask)) for s, (mask, _) in counting.items()]
            return Prediction(*(torch.cat(parts) for parts in zip(*levels, strict=True) if parts[0] is not None))

        confidence = torch.cat([confidence[mask] for mask, confidence in counting.values()])
        return Cells(rows(student), rows(teacher), confidence)


#: A method: the term of a batch, an unweighted float32 scalar. Finite and differentiable whatever the batch holds;
#: without boxes, and where these say where to look, 0 with zero gradients.
Method = Callable[[Batch, TrainConfig], Tensor]
