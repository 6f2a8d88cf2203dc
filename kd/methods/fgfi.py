"""Fine-grained feature imitation (FGFI; Wang et al., CVPR 2019): features on the cells near ground truth."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.config import TrainConfig
from kd.methods.adapters import project
from kd.methods.batch import Batch, Method
from kd.methods.masks import YOLOV5_PRIORS, Grid, foreground, imitation_masks


def imitation(
    student: Tensor, teacher: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, score: Tensor | None = None
) -> Tensor:
    """Squared distance between adapted student and teacher features, over the masked cells of one level.

    1 / (2 N_p) * sum over masked cells of sum over channels (adapter(s) - t)^2, N_p the number of masked cells in
    the batch (equations 2 and 3); 0 without any. With ``score`` each cell counts as much as its score, in the sum and
    in N_p: a soft mask.

    ``student`` [B, Cs, H, W], ``teacher`` [B, Ct, H, W], ``mask`` boolean [B, H, W], ``weight`` [Ct, Cs, k, k],
    ``bias`` [Ct], ``score`` [B, H, W] in 0..1. Returns a float32 scalar. A 1x1 adapter projects only the masked cells,
    which is the same and cheap where they are few; a 3x3 one runs over the whole level.
    """
    with torch.autocast(student.device.type, enabled=False):
        if weight.shape[2:] == (1, 1):
            cells = student.permute(0, 2, 3, 1)[mask].float()  # [N_p, Cs]
            adapted = F.linear(cells, weight[:, :, 0, 0].float(), bias.float())  # [N_p, Ct]
        else:
            adapted = project(student, [(weight, bias)]).permute(0, 2, 3, 1)[mask]
        target = teacher.detach().permute(0, 2, 3, 1)[mask].float()
        squares = (adapted - target).square()
        if score is None:
            return squares.sum() / (2 * max(len(adapted), 1))
        share = score.detach()[mask].float()  # [N_p]
        return (squares.sum(1) * share).sum() / (2 * share.sum() + 1e-9)


def fgfi_masks(batch: Batch, config: TrainConfig) -> list[Tensor]:
    """The cells near ground truth that `fgfi` imitates: a boolean [B, H, W] per shared level.

    By the anchors that were asked for, else by the student's own, else by YOLOv5's.
    """
    boxes = (batch.boxes_xyxy, batch.image_index, len(next(iter(batch.student.values()))))
    grids = [Grid(stride, *features.shape[2:]) for stride, features in batch.student.items()]
    if config.fgfi.mask == "boxes":
        masks = [foreground(*boxes, grid) for grid in grids]
    else:
        masks = imitation_masks(
            *boxes,
            grids,
            threshold=config.fgfi.threshold,
            assigned=config.fgfi.assigned,
            priors=dict(config.fgfi.priors or ()) or batch.priors or YOLOV5_PRIORS,
        )
    return [_exchanged(mask) for mask in masks] if "mask" in config.fgfi.defects else masks


def fgfi(batch: Batch, config: TrainConfig) -> Tensor:
    """`imitation` on the cells near ground truth, summed over the shared levels."""
    defects, terms = config.fgfi.defects, []
    for s, mask in zip(batch.student, fgfi_masks(batch, config), strict=True):
        score = batch.score(s) if config.fgfi.soft else None
        layer = batch.adapters["fgfi"][s][0]
        if "level" in defects and s > min(batch.student):
            continue
        if "adapter" in defects:  # an optimizer leaves a parameter without a gradient as it is
            layer = (layer[0].detach(), layer[1].detach())  # type: ignore[union-attr]  # has a bias
        terms.append(imitation(batch.student[s], batch.teacher[s], mask, *layer, score))  # type: ignore[arg-type]  # has a bias
    return torch.stack(terms).sum()


def _exchanged(mask: Tensor) -> Tensor:
    """The mask [B, H, W] with rows and columns exchanged; of one that is not square what of it fits."""
    rows, columns = mask.shape[1:]
    other = torch.zeros_like(mask)
    side = min(rows, columns)
    other[:, :side, :side] = mask[:, :side, :side].transpose(1, 2)
    return other


METHODS: dict[str, Method] = {"fgfi": fgfi}
