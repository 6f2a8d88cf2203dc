"""Methods that compare two heads' outputs in the same cells: classes, boxes, box distributions.

In: rows of N cells, raw as the heads give them; with anchors, a cell's for each. Out: a scalar, unweighted.
Invariant: float32, 0 with zero gradients for N = 0, and no gradient into the teacher; torch only.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.config import TrainConfig
from kd.methods import boxes
from kd.methods.batch import Batch, Method, Prediction

CLASS_TEMPERATURE = 2.0  # mild: scores near 0 still tell which classes are alike, without drowning those near 1
BOX_TEMPERATURE = 10.0  # Zheng et al.'s choice


def soft_targets(
    student: Tensor, teacher: Tensor, temperature: float = CLASS_TEMPERATURE, share: Tensor | None = None
) -> Tensor:
    """KL(teacher || student) of per-class Bernoulli scores sigmoid(z / T): T^2 / N * sum over cells and classes.

    Hinton, Vinyals and Dean, 2015, section 2, for sigmoid heads. Its gradient is that of the cross-entropy with soft
    targets, but it is 0 where both agree. T^2 keeps the gradient's size independent of T.

    ``student``, ``teacher`` logits [N, K] of the same K classes, ``share`` [N] how much each cell counts in the sum; as
    one by default. Returns a float32 scalar.
    """
    s, t = student.float() / temperature, teacher.detach().float() / temperature
    p = t.sigmoid()
    divergence = p * (F.logsigmoid(t) - F.logsigmoid(s)) + (1 - p) * (F.logsigmoid(-t) - F.logsigmoid(-s))
    if share is not None:
        divergence = divergence * share.detach().float()[:, None]
    return divergence.sum() * temperature**2 / max(len(s), 1)


def class_targets(student: Prediction, teacher: Prediction) -> Tensor:
    """`soft_targets` of the same classes in N cells; with anchors also of the objectness, and a cell's classes count by
    the teacher's.

    Where a teacher sees nothing its classes mean nothing: the objectness-scaled distillation of Mehta and Ozturk (ECCV
    Workshops 2018), with soft targets in place of their squares. Returns a float32 scalar.
    """
    if student.objectness is None or teacher.objectness is None:
        return soft_targets(student.scores, teacher.scores)
    sure = teacher.objectness.float().sigmoid()[:, 0]
    return soft_targets(student.objectness, teacher.objectness) + soft_targets(
        student.scores, teacher.scores, share=sure
    )


def distances(boxes: Tensor) -> Tensor:
    """A head's box channels [N, 4 * reg_max] as left, top, right, bottom of the centre, in cells [N, 4].

    With reg_max > 1 the expectation of four distributions over 0 .. reg_max - 1 (DFL); with reg_max 1 the channels
    themselves.
    """
    rows = boxes.float().unflatten(1, (4, -1))  # [N, 4, reg_max]
    bins = rows.shape[2]
    return rows[..., 0] if bins == 1 else (rows.softmax(2) * torch.arange(bins, device=rows.device)).sum(2)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """`kd.methods.boxes.giou` of boxes around the same points, which are left out.

    ``a``, ``b`` distances [N, 4] left, top, right, bottom, in any unit. Returns [N] in -1..1; boxes without area, or
    with sides below 0 as heads of reg_max 1 may give them, give no NaN.

    >>> giou(torch.tensor([[1.0, 1, 1, 1]]), torch.tensor([[1.0, 1, 3, 1]]))
    tensor([0.5000])
    """
    signs = a.new_tensor([-1, -1, 1, 1])
    return boxes.giou(a * signs, b * signs)


def box_divergence(student: Tensor, teacher: Tensor, confidence: Tensor) -> Tensor:
    """1 - GIoU of student's and teacher's boxes, the mean over cells weighted by the teacher's confidence.

    The IoU term of BCKD (Yang et al., ICCV 2023), with GIoU for a gradient between boxes apart and the teacher's
    confidence for a weight. Fewer than one confident cell in all count as one, as in Ultralytics' own loss.

    ``student`` [N, 4 * reg_max], ``teacher`` [N, 4 * its reg_max], ``confidence`` [N]. Returns a float32 scalar.
    """
    return _weighted(1 - giou(distances(student), distances(teacher.detach())), confidence)


def localisation(student: Tensor, teacher: Tensor, confidence: Tensor, temperature: float = BOX_TEMPERATURE) -> Tensor:
    """KL(teacher || student) of the four sides' distributions, the mean over sides and, by confidence, over cells.

    T^2 * KL of softmax(z / T) over a side's bins (LD; Zheng et al., CVPR 2022).

    ``student``, ``teacher`` [N, 4 * reg_max] of one reg_max > 1, ``confidence`` [N]. Returns a float32 scalar.
    """
    log_s = (student.float().unflatten(1, (4, -1)) / temperature).log_softmax(2)  # [N, 4, reg_max]
    log_t = (teacher.detach().float().unflatten(1, (4, -1)) / temperature).log_softmax(2)
    return _weighted((log_t.exp() * (log_t - log_s)).sum(2).mean(1) * temperature**2, confidence)


def _weighted(terms: Tensor, confidence: Tensor) -> Tensor:
    confidence = confidence.detach().float()
    return (terms * confidence).sum() / confidence.sum().clamp(min=1)


def logits(batch: Batch, config: TrainConfig) -> Tensor:
    """Soft targets: `class_targets` on the cells that count."""
    return _over_branches(
        class_targets(c.student, c.teacher._replace(scores=c.teacher.scores[:, batch.classes])) for c in batch.cells
    )


def box(batch: Batch, config: TrainConfig) -> Tensor:
    """Teacher's boxes as targets: `box_divergence` on the cells that count, by the teacher's confidence."""
    return _over_branches(box_divergence(c.student.boxes, c.teacher.boxes, c.confidence) for c in batch.cells)


def ld(batch: Batch, config: TrainConfig) -> Tensor:
    """Localisation distillation: `localisation` on the cells that count, by the teacher's confidence."""
    return _over_branches(localisation(c.student.boxes, c.teacher.boxes, c.confidence) for c in batch.cells)


def _over_branches(terms: Iterable[Tensor]) -> Tensor:
    """The mean over a head's branches, so that a weight means the same for dual heads."""
    return torch.stack(list(terms)).mean()


METHODS: dict[str, Method] = {"logits": logits, "box": box, "ld": ld}
