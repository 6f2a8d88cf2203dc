"""Distillation terms: pure functions of tensors; those that compare heads cell by cell are in `kd.methods.heads`.

In: features and raw head outputs of student and teacher, adapters' weights, ground-truth boxes. Out: a scalar per
method, unweighted.
Invariant: a term is float32 under autocast, finite and differentiable for any batch (no boxes: 0 with zero
gradients where boxes say where to look), and no gradient reaches the teacher; torch only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.config import TrainConfig
from kd.methods.heads import box_divergence, localisation, soft_targets
from kd.methods.masks import YOLOV5_PRIORS, Grid, foreground, imitation_masks

CONFIDENT = 0.25  # a teacher's class score from which its cell counts: what Ultralytics' predictor shows by default

#: The convolutions of an adapter in order, as (weight [C', C, k, k], bias [C'] or None); ReLU between them.
Layers = Sequence[tuple[Tensor, Tensor | None]]


class Prediction(NamedTuple):
    """What a head says about one level: ``scores`` [B, K, H, W] class logits, ``boxes`` [B, 4 * reg_max, H, W]."""

    scores: Tensor
    boxes: Tensor


class Cells(NamedTuple):
    """The N cells of all shared levels that count for one branch of the heads.

    ``student`` and ``teacher`` are predictions as rows, [N, K] and [N, 4 * reg_max]; ``confidence`` [N] the teacher's
    highest class score, in 0..1.
    """

    student: Prediction
    teacher: Prediction
    confidence: Tensor


@dataclass(frozen=True)
class Batch:
    """What a method may look at; the dicts are keyed by the student's stride and hold the levels that both have.

    ``student`` [B, Cs, H, W] and ``teacher`` [B, Ct, H, W] features; ``adapters`` the layers from the student's
    channels to the teacher's, per method that has some; ``boxes_xyxy`` [N, 4] in pixels of the network's input,
    ``image_index`` [N] in 0..B-1. Only when a method looks at heads: ``student_heads`` and ``teacher_heads``, the
    one-to-many branch first and a dual head's one-to-one branch second; ``classes`` the teacher's class for each of
    the student's, or None where some have no like in the teacher.
    """

    student: Mapping[int, Tensor]
    teacher: Mapping[int, Tensor]
    adapters: Mapping[str, Mapping[int, Layers]]
    boxes_xyxy: Tensor
    image_index: Tensor
    student_heads: Sequence[Mapping[int, Prediction]] = ()
    teacher_heads: Sequence[Mapping[int, Prediction]] = ()
    classes: list[int] | None = None

    @cached_property
    def cells(self) -> list[Cells]:
        """The cells inside a ground-truth box and those of which the teacher is confident, per branch of the heads.

        Branches are compared with their like: a student's one-to-one branch learns from a teacher's only, since a
        one-to-many one would teach it to find every object many times. Confidence is in the student's classes, or in
        any where those of the teacher are others.
        """
        return [self._cells(*pair) for pair in zip(self.student_heads, self.teacher_heads, strict=False)]

    @property
    def image_scores(self) -> Tensor:
        """How sure the teacher is of each image: its mean confidence over the image's cells that count, [B] in 0..1.

        By its one-to-many branch; 0 where no cell counts.
        """
        levels = self._counting(self.teacher_heads[0]).values()
        total = sum((confidence * mask).sum((1, 2)) for mask, confidence in levels)
        return total / sum(mask.sum((1, 2)) for mask, _ in levels).clamp(min=1)

    def score(self, stride: int) -> Tensor:
        """The teacher's highest class score per cell of a level, [B, H, W] in 0..1, as Ultralytics weighs cells.

        In whichever classes the teacher has; a dual head's by the mean logits of its branches.
        """
        logits = torch.stack([head[stride].scores.float() for head in self.teacher_heads]).mean(0)  # [B, K, H, W]
        return logits.sigmoid().amax(1)

    def select(self, images: Tensor) -> Batch:
        """The batch of these ``images`` [M] alone, indices in 0..B-1 without repetition, in their order."""
        place = self.image_index.new_full((len(next(iter(self.student.values()))),), -1)
        place[images] = torch.arange(len(images), device=place.device)
        index = place[self.image_index]  # [N], -1 for the boxes of images left out

        def heads(branches: Sequence[Mapping[int, Prediction]]) -> list[dict[int, Prediction]]:
            return [{s: Prediction(*(m[images] for m in said)) for s, said in branch.items()} for branch in branches]

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
        """Per stride the cells that count, boolean [B, H, W], and the teacher's confidence in each, [B, H, W]."""
        counting = {}
        for stride in self.student:
            scores = teacher[stride].scores.detach().float()  # [B, K, H, W]
            scores = scores if self.classes is None else scores[:, self.classes]
            confidence = scores.amax(1).sigmoid()
            grid = Grid(stride, *confidence.shape[1:])
            inside = foreground(self.boxes_xyxy, self.image_index, len(scores), grid)
            counting[stride] = inside | (confidence > CONFIDENT), confidence
        return counting

    def _cells(self, student: Mapping[int, Prediction], teacher: Mapping[int, Prediction]) -> Cells:
        rows: list[list[Tensor]] = []
        for stride, (mask, confidence) in self._counting(teacher).items():
            maps = (*student[stride], *teacher[stride])
            rows.append([*(m.permute(0, 2, 3, 1)[mask].float() for m in maps), confidence[mask]])
        joined = [torch.cat(parts) for parts in zip(*rows, strict=True)]
        return Cells(Prediction(*joined[:2]), Prediction(*joined[2:4]), joined[4])


# ---------------------------------------------------------------- formulas on one level's features


def project(features: Tensor, layers: Layers) -> Tensor:
    """Student features in the teacher's channels: convolutions with ReLU between them, [B, Cs, H, W] -> [B, Ct, H, W].

    None after the last one, as SiLU targets are negative in places. Returns float32, under autocast too.
    """
    with torch.autocast(features.device.type, enabled=False):
        features = features.float()
        for i, (weight, bias) in enumerate(layers):
            features = features.relu() if i else features
            bias = None if bias is None else bias.float()
            features = F.conv2d(features, weight.float(), bias, padding=weight.shape[-1] // 2)
        return features


def imitation(
    student: Tensor, teacher: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, score: Tensor | None = None
) -> Tensor:
    """Squared distance between adapted student and teacher features, over the masked cells of one level.

    1 / (2 N_p) * sum over masked cells of sum over channels (adapter(s) - t)^2, N_p the number of masked cells in
    the batch (FGFI; Wang et al., CVPR 2019, equations 2 and 3); 0 without any. With ``score`` each cell counts as
    much as its score, in the sum and in N_p: a soft mask.

    ``student`` [B, Cs, H, W], ``teacher`` [B, Ct, H, W], ``mask`` boolean [B, H, W], ``weight`` [Ct, Cs, k, k],
    ``bias`` [Ct], ``score`` [B, H, W] in 0..1. Returns a float32 scalar. A 1x1 adapter projects only the cells it is
    asked for, which is the same and cheap where the mask is sparse; a 3x3 one runs over the whole level.
    """
    with torch.autocast(student.device.type, enabled=False):
        if weight.shape[2:] == (1, 1):
            cells = student.permute(0, 2, 3, 1)[mask].float()  # [N_p, Cs]
            adapted = F.linear(cells, weight[:, :, 0, 0].float(), bias.float())  # [N_p, Ct]
        else:
            dense = F.conv2d(student.float(), weight.float(), bias.float(), padding=weight.shape[-1] // 2)
            adapted = dense.permute(0, 2, 3, 1)[mask]
        target = teacher.detach().permute(0, 2, 3, 1)[mask].float()
        squares = (adapted - target).square()
        if score is None:
            return squares.sum() / (2 * max(len(adapted), 1))
        share = score.detach()[mask].float()  # [N_p]
        return (squares.sum(1) * share).sum() / (2 * share.sum() + 1e-9)


def channel_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """How differently two maps spread each channel over the cells: T^2 / (B C) * sum of KL(teacher || student).

    Each channel of each image becomes a distribution by a softmax over its cells at temperature T (CWD; Shu et al.,
    ICCV 2021). T = 1 as the method's detection configurations in mmrazor have it; the paper's 4
    is for segmentation.

    ``student``, ``teacher`` [B, C, H, W]. Returns a float32 scalar.
    """
    log_s = (student.float().flatten(2) / temperature).log_softmax(2)  # [B, C, H * W]
    log_t = (teacher.detach().float().flatten(2) / temperature).log_softmax(2)
    return (log_t.exp() * (log_t - log_s)).sum(2).mean() * temperature**2


def pearson_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the mean squared difference of features with zero mean and unit variance: 1 - r, the mean over channels.

    A channel is normalised over batch and cells, so r is its Pearson correlation between student and teacher, and
    neither scale nor offset of the features matter (PKD; Cao et al., NeurIPS 2022).

    ``student``, ``teacher`` [B, C, H, W]. Returns a float32 scalar in 0..2; a constant channel counts as all 0.
    """

    def normalised(features: Tensor) -> Tensor:
        centred = features - features.mean((0, 2, 3), keepdim=True)
        return centred * (centred.square().mean((0, 2, 3), keepdim=True) + 1e-6).rsqrt()

    return F.mse_loss(normalised(student.float()), normalised(teacher.detach().float())) / 2


def score_weighted(student: Tensor, teacher: Tensor, score: Tensor) -> Tensor:
    """Mean squared difference over channels and cells, each cell counting as much as the teacher's class score.

    sum(score * (s - t)^2) / (C * sum(score)), as Ultralytics 8.4 distils (`DistillationModel.loss_sl2`).

    ``student``, ``teacher`` [B, C, H, W], ``score`` [B, H, W] in 0..1. Returns a float32 scalar.
    """
    squares = (student.float() - teacher.detach().float()).square().sum(1)  # [B, H, W]
    score = score.detach().float()
    return (squares * score).sum() / (score.sum() * student.shape[1] + 1e-9)


# ---------------------------------------------------------------- methods: what is compared where


def fgfi_masks(batch: Batch, config: TrainConfig) -> list[Tensor]:
    """The cells near ground truth that `fgfi` imitates: a boolean [B, H, W] per shared level."""
    boxes = (batch.boxes_xyxy, batch.image_index, len(next(iter(batch.student.values()))))
    grids = [Grid(stride, *features.shape[2:]) for stride, features in batch.student.items()]
    if config.fgfi.mask == "boxes":
        return [foreground(*boxes, grid) for grid in grids]
    return imitation_masks(
        *boxes,
        grids,
        threshold=config.fgfi.threshold,
        assigned=config.fgfi.assigned,
        priors=dict(config.fgfi.priors) if config.fgfi.priors else YOLOV5_PRIORS,
    )


def fgfi(batch: Batch, config: TrainConfig) -> Tensor:
    """Fine-grained feature imitation: `imitation` on the cells near ground truth, summed over the shared levels."""
    terms = []
    for s, mask in zip(batch.student, fgfi_masks(batch, config), strict=True):
        score = batch.score(s) if config.fgfi.soft else None
        terms.append(imitation(batch.student[s], batch.teacher[s], mask, *batch.adapters["fgfi"][s][0], score))
    return torch.stack(terms).sum()


def cwd(batch: Batch, config: TrainConfig) -> Tensor:
    """Channel-wise distillation: `channel_divergence` of the adapted features, summed over the shared levels."""
    return _over_levels(batch, "cwd", channel_divergence)


def pkd(batch: Batch, config: TrainConfig) -> Tensor:
    """Pearson distillation: `pearson_distance` of the adapted features, summed over the shared levels."""
    return _over_levels(batch, "pkd", pearson_distance)


def score_l2(batch: Batch, config: TrainConfig) -> Tensor:
    """Ultralytics' built-in term: `score_weighted` of the projected features, summed over the shared levels."""
    terms = []
    for s, features in batch.student.items():
        adapted = project(features, batch.adapters["score-l2"][s])
        terms.append(score_weighted(adapted, batch.teacher[s], batch.score(s)))
    return torch.stack(terms).sum()


def logits(batch: Batch, config: TrainConfig) -> Tensor:
    """Soft targets: `soft_targets` of the class logits on the cells that count."""
    return _over_heads(soft_targets(c.student.scores, c.teacher.scores[:, batch.classes]) for c in batch.cells)


def box(batch: Batch, config: TrainConfig) -> Tensor:
    """Teacher's boxes as targets: `box_divergence` on the cells that count, by the teacher's confidence."""
    return _over_heads(box_divergence(c.student.boxes, c.teacher.boxes, c.confidence) for c in batch.cells)


def ld(batch: Batch, config: TrainConfig) -> Tensor:
    """Localisation distillation: `localisation` on the cells that count, by the teacher's confidence."""
    return _over_heads(localisation(c.student.boxes, c.teacher.boxes, c.confidence) for c in batch.cells)


METHODS: dict[str, Callable[[Batch, TrainConfig], Tensor]] = {
    "fgfi": fgfi,
    "cwd": cwd,
    "pkd": pkd,
    "logits": logits,
    "box": box,
    "ld": ld,
    "score-l2": score_l2,
}


def _over_levels(batch: Batch, method: str, formula: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The formula on each shared level's adapted student and teacher features, summed."""
    layers = batch.adapters[method]
    return torch.stack([formula(project(f, layers[s]), batch.teacher[s]) for s, f in batch.student.items()]).sum()


def _over_heads(terms: Iterable[Tensor]) -> Tensor:
    """The mean over branches, so that a weight means the same for dual heads."""
    return torch.stack(list(terms)).mean()
