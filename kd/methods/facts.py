"""What each distillation method is and needs, a row per method: options, help and refusals derive from it.

Invariant: standard library alone. The method itself is the function of the same name in `kd.methods.registry`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Adapter:
    """The convolutions, with ReLU between them, that carry a student's channels into its teacher's."""

    convolutions: int = 1
    bias: bool = True


@dataclass(frozen=True)
class Facts:
    """One method: its default weight, what the student ``imitates``, whose it is, and what it needs.

    ``needs_head``: the teacher's head runs, not its features alone. ``boxes_only``: it looks near ground-truth boxes
    alone, so at no unlabelled image. ``adapter`` is None for a method that compares head outputs. ``same_classes``:
    the teacher needs each of the student's classes, by name; ``same_bins``: box distributions of as many bins.
    ``queries``: it compares the queries of two RT-DETRs, where others that need a head compare cells of YOLO's.
    """

    name: str
    weight: float
    imitates: str
    source: str
    needs_head: bool = False
    boxes_only: bool = False
    adapter: Adapter | None = None
    same_classes: bool = False
    same_bins: bool = False
    queries: bool = False


# A default weight starts kd_loss near 1, with a box_loss near 6, unless the method's source says otherwise. In brackets
# the unweighted term on a first batch (BCCD, 256 px, a yolov8n teacher trained for two epochs, yolov5n with fresh
# weights, box_loss 5.4).
_ROWS = (
    Facts(
        "fgfi", 0.01,  # (152) a sum over channels, so large by itself; 0.01 gave the better seeds of the first trials
        "features near ground truth", "Wang et al., CVPR 2019", boxes_only=True, adapter=Adapter(),
    ),
    Facts(
        "cwd", 1.0,  # (1.1)
        "where each channel is active: KL over the cells", "Shu et al., ICCV 2021",
        adapter=Adapter(bias=False),  # a softmax over cells takes a bias out again
    ),
    Facts(
        "pkd", 1.0,  # (3.0) 1 - r starts at 1 on each of three levels, and its authors weigh it more: 6
        "features up to scale and offset: 1 - Pearson's r", "Cao et al., NeurIPS 2022",
        adapter=Adapter(bias=False),  # so does a zero mean
    ),
    Facts(
        "logits", 1.0,  # (0.9)
        "class scores as soft targets, T = 2", "Hinton et al., 2015", needs_head=True, same_classes=True,
    ),
    Facts(
        "box", 1.0,  # (0.9)
        "boxes, 1 - GIoU weighted by the teacher's confidence", "after Yang et al., ICCV 2023", needs_head=True,
    ),
    Facts(
        "ld", 0.25,  # (4.5) its authors' own weight too
        "box distributions, T = 10", "Zheng et al., CVPR 2022", needs_head=True, same_bins=True,
    ),
    Facts(
        "score-l2", 6.0,  # (2.6) Ultralytics' own default (`dis`), kept so that the term is theirs
        "features weighted by the teacher's class score", "Ultralytics' built-in term, equal to it in a test",
        needs_head=True, adapter=Adapter(convolutions=2),
    ),
    Facts(
        "queries", 0.2,  # (5.1, of which classes are most: one rtdetr-p from another, 160 px, giou_loss 1.8)
        "queries of a decoder, matched: classes and boxes by the teacher's confidence",
        "after Chang et al., ICCV 2023, and Wang et al., CVPR 2024", needs_head=True, same_classes=True, queries=True,
    ),
)  # fmt: skip

FACTS: dict[str, Facts] = {facts.name: facts for facts in _ROWS}
DEFAULT_WEIGHTS: dict[str, float] = {facts.name: facts.weight for facts in _ROWS}

BUILT_IN = "built-in"  # no term of ours: Ultralytics' own distillation, the reference (kd/training/builtin.py)
SOFT_LABELS = "soft-labels"  # the teacher's detections, asked for once and cached (kd/distillation/soft_labels.py)
WEIGHTS = {**DEFAULT_WEIGHTS, BUILT_IN: 6.0, SOFT_LABELS: 0.5}  # all that --method takes

NEEDS_HEAD = frozenset(facts.name for facts in _ROWS if facts.needs_head and not facts.queries)  # of YOLO's form
NEEDS_QUERIES = frozenset(facts.name for facts in _ROWS if facts.queries)
BOXES_ONLY = frozenset(facts.name for facts in _ROWS if facts.boxes_only)
ON_FEATURES = tuple(facts.name for facts in _ROWS if facts.adapter)
ON_HEADS = tuple(facts.name for facts in _ROWS if not facts.adapter)


def either(names: Iterable[str]) -> str:
    """Names as a choice.

    >>> either(["fgfi", "cwd", "pkd"])
    'fgfi, cwd or pkd'
    """
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


HEADLESS = either(facts.name for facts in _ROWS if not facts.needs_head)  # what a refusal offers in place of a head
CHOICES = f"{either(ON_FEATURES)} (features), {either(ON_HEADS)} (head outputs)"  # as the help of --method says
