"""Methods that compare what two decoders' queries say: a student's and a teacher's, paired by Hungarian matching.

In: class logits and boxes of each query. Out: a scalar, unweighted.
Invariant: float32 under autocast, and no gradient reaches the teacher.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from kd.config import TrainConfig
from kd.methods.batch import Batch, Method, Queries
from kd.methods.boxes import giou

L1, GIOU = 5.0, 2.0  # the shares of a box beside its class, as in the loss of DETR and all of its kind


def differences(student: Queries, teacher: Queries) -> Tensor:
    """How much each of N queries differs from each of M of a teacher: [..., N, M], 0 where both say the same.

    KL(teacher || student) of the per-class Bernoulli scores, summed over classes, + 5 |b_s - b_t|_1 + 2 (1 - GIoU).
    """
    with torch.autocast(student.logits.device.type, enabled=False):
        own, theirs = student.logits.float(), teacher.logits.float()
        scores = theirs.sigmoid()  # [..., M, K]
        said = (scores * F.logsigmoid(theirs) + (1 - scores) * F.logsigmoid(-theirs)).sum(-1)  # [..., M]
        heard = F.logsigmoid(own) @ scores.mT + F.logsigmoid(-own) @ (1 - scores).mT  # [..., N, M]
        a, b = student.boxes.float()[..., :, None, :], teacher.boxes.float()[..., None, :, :]
        apart = L1 * (a - b).abs().sum(-1) + GIOU * (1 - giou(_corners(a), _corners(b)))
        return said[..., None, :] - heard + apart


def _corners(boxes: Tensor) -> Tensor:
    centre, side = boxes.split(2, -1)
    return torch.cat((centre - side / 2, centre + side / 2), -1)


@torch.no_grad()
def pairs(student: Queries, teacher: Queries, weights: Tensor) -> Tensor:
    """Which of each image's N queries is paired with each of M <= N of its teacher's: [B, M].

    Of all ways to give each of the teacher's a query of its own, the one with the least sum of `differences` times
    ``weights`` [B, M]. Both are of one decoder layer, [B, N, .] and [B, M, .].
    """
    costs = (differences(student, teacher) * weights[:, None]).nan_to_num().mT.cpu().numpy()  # [B, M, N]
    found = [linear_sum_assignment(cost)[1] for cost in costs]  # its rows are 0 .. M - 1
    return torch.stack([torch.from_numpy(columns) for columns in found]).to(weights.device)


def query_divergence(student: Queries, teacher: Queries) -> Tensor:
    """`differences` of paired queries, the mean over the student's decoder layers and, by confidence, over pairs.

    ``student`` [B, L, N, .], of all decoder layers, ``teacher`` [B, M, .], of its last one. The teacher's N most
    confident queries count, each by its highest class score w; every layer of the student is paired with them anew:

        sigma_l = argmin over injections of sum_m w_m d(s_l,sigma(m), t_m)
        1 / L * sum over l of sum_b,m w_m d(s_l,sigma_l(m), t_m) / sum_b,m w_m

    Fewer than one confident query in all count as one, as in Ultralytics' own loss. Returns a float32 scalar.

    From DETRDistill (Chang et al., ICCV 2023) is the Hungarian matching of predictions with predictions and that each
    decoder layer learns; there each stage learns from the teacher's same stage, with the objects and the background
    apart, and the assignment has costs of its own, not the loss. From KD-DETR (Wang et al., CVPR 2024) are the
    divergence of classes with L1 and GIoU of boxes, and the weight, a point's highest class score; there nothing is
    matched, since both models are given the same further queries, which asks for decoders of one width. Neither
    DETRDistill's target-aware features and query priors nor KD-DETR's sampling of such queries is here.
    """
    kept = min(student.logits.shape[2], teacher.logits.shape[1])
    weights, order = teacher.logits.detach().float().sigmoid().amax(-1).topk(kept, 1)  # [B, M]
    images = torch.arange(len(order), device=order.device)[:, None]
    teacher = Queries(*(values.detach()[images, order] for values in teacher))
    terms = []
    for layer in range(student.logits.shape[1]):
        own = Queries(*(values[:, layer] for values in student))
        own = Queries(*(values[images, pairs(own, teacher, weights)] for values in own))  # [B, M, .]
        alone = [Queries(*(values[:, :, None] for values in queries)) for queries in (own, teacher)]  # [B, M, 1, .]
        terms.append((weights * differences(*alone)[..., 0, 0]).sum())
    return torch.stack(terms).mean() / weights.sum().clamp(min=1)


def queries(batch: Batch, config: TrainConfig) -> Tensor:
    """Matched queries: `query_divergence` of the student's decoder layers from the teacher's last one."""
    assert batch.student_queries  # as kd.training.rtdetr sees to
    assert batch.teacher_queries  # as kd.distillation.teacher does
    teacher = Queries(batch.teacher_queries.logits[..., batch.classes], batch.teacher_queries.boxes)
    return query_divergence(batch.student_queries, teacher)


METHODS: dict[str, Method] = {"queries": queries}
