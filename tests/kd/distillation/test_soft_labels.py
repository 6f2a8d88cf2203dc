"""The term of soft labels against a slow one cell by cell, and where it must be nothing."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG_DICT, IterableSimpleNamespace
from ultralytics.utils.metrics import bbox_iou
from ultralytics.utils.ops import xywh2xyxy

from kd.distillation.rows import ROWS
from kd.distillation.soft_labels import SoftLabels
from tests.dtld_data import REPOSITORY

SIDE, CLASSES, STRIDES = 128, 3, (8, 16, 32)
LABELS = {  # image -> class, box as centre and size
    0: [(0, 0.3, 0.3, 0.4, 0.4), (1, 0.75, 0.7, 0.3, 0.4)],
    1: [(2, 0.5, 0.5, 0.6, 0.5)],
    2: [],
}


class Case:
    """A criterion with the term that watches it, raw outputs of a network, and a batch."""

    def __init__(self, architecture, rows, labels=LABELS, **hyp):
        torch.manual_seed(0)
        model = DetectionModel(architecture, nc=CLASSES, verbose=False)
        model.args = IterableSimpleNamespace(**{**DEFAULT_CFG_DICT, **hyp})
        if hyp.get("cls_pw"):
            model.class_weights = torch.tensor([0.5, 1.0, 1.5])
        self.task, self.term, self.answers = model.init_criterion(), SoftLabels(), {}
        self.term.watch(self.task)
        self.branches = [self.task.one2many, self.task.one2one] if hasattr(self.task, "one2many") else [self.task]
        for criterion in self.branches:
            criterion.assigner.register_forward_hook(lambda a, asked, said: self.answers.update({id(a): said}))
        feats = [torch.zeros(len(labels), 4, SIDE // s, SIDE // s) for s in STRIDES]
        cells = sum((SIDE // s) ** 2 for s in STRIDES)
        bins = self.branches[0].reg_max
        outputs = [
            {
                "scores": torch.randn(len(labels), CLASSES, cells, requires_grad=True),
                "boxes": (torch.randn(len(labels), 4 * bins, cells) + (2 if bins == 1 else 0)).requires_grad_(),
                "feats": feats,
            }
            for _ in self.branches
        ]
        self.preds = dict(zip(("one2many", "one2one"), outputs, strict=True)) if len(outputs) > 1 else outputs[0]
        self.outputs = outputs
        flat = [(i, *label) for i, of in labels.items() for label in of]
        table = torch.tensor(flat).reshape(-1, 6)
        self.batch = {
            "img": torch.zeros(len(labels), 3, SIDE, SIDE), "batch_idx": table[:, 0], "cls": table[:, 1:2],
            "bboxes": table[:, 2:], ROWS: tuple(torch.tensor(rows.get(i, [])).reshape(-1, 4 + CLASSES) for i in labels),
        }  # fmt: skip

    def __call__(self):
        self.loss = self.task(self.preds, self.batch)[0]
        return self.term(self.task, self.preds, self.batch)


def row(label, *scores, shift=0.0):
    _, x, y, w, h = label
    return (x + shift, y, w, h, *scores)


ROWS_OF = {
    0: [
        row(LABELS[0][0], 0.7, 0.2, 0.1, shift=0.02),  # the first label's object
        row(LABELS[0][0], 0.5, 0.1, 0.1, shift=0.1),  # the same, farther from it
        (0.2, 0.8, 0.3, 0.3, 0.1, 0.6, 0.0),  # no label's, sure
        (0.25, 0.8, 0.3, 0.3, 0.5, 0.2, 0.0),  # another one over it
        (0.8, 0.2, 0.3, 0.3, 0.2, 0.2, 0.0),  # no label's, unsure
    ],
    2: [(0.5, 0.5, 0.5, 0.5, 0.9, 0.0, 0.0)],  # in an image without labels
}
PLAIN = str(REPOSITORY / "kd" / "models" / "yolov8p.yaml")
DUAL = "yolo26n.yaml"  # reg_max 1, so boxes without distributions


def slowly(criterion, output, answer, batch):
    """The difference of two losses by loops over images, cells and classes."""
    _, _, targets, assigned, of = answer
    total = max(float(targets.sum()), 1)
    logits = output["scores"].permute(0, 2, 1)
    weights = [1.0] * CLASSES if criterion.class_weights is None else criterion.class_weights.flatten().tolist()
    centres = [((x + 0.5) * s, (y + 0.5) * s, s) for s in STRIDES for y in range(SIDE // s) for x in range(SIDE // s)]
    change = torch.zeros(())
    by_teacher = targets.new_zeros(*targets.shape[:2], 4)
    by_labels, shared = by_teacher.clone(), torch.zeros_like(assigned)
    for image in range(len(logits)):
        labels = xywh2xyxy(batch["bboxes"][batch["batch_idx"] == image] * SIDE)
        boxes, scores = xywh2xyxy(batch[ROWS][image][:, :4] * SIDE), batch[ROWS][image][:, 4:]
        same = torch.tensor([[float(bbox_iou(label, box, xywh=False)) for box in boxes] for label in labels])
        for cell, (x, y, _) in enumerate(centres):
            if assigned[image, cell]:
                overlaps = same[int(of[image, cell])] if len(boxes) else torch.zeros(1)
                if overlaps.max() < 0.5:
                    continue
                best, target = int(overlaps.argmax()), targets[image, cell]
                shared[image, cell] = True
                by_teacher[image, cell], by_labels[image, cell] = boxes[best], labels[int(of[image, cell])]
                for k in range(CLASSES):
                    soft = target.sum() * scores[best, k]
                    two = (cross_entropy(logits[image, cell, k], goal) for goal in (soft, target[k]))
                    change = change + criterion.hyp.cls * weights[k] * (next(two) - next(two))
                continue
            inside = [
                scores[i]
                for i, (x1, y1, x2, y2) in enumerate(boxes.tolist())
                if x1 < x < x2 and y1 < y < y2 and scores[i].max() > 0.25
                and (not len(labels) or same[:, i].max() < 0.5)
            ]  # fmt: skip
            for k in range(CLASSES if inside else 0):
                share = max(one[k] for one in inside)
                negative = cross_entropy(logits[image, cell, k], torch.zeros(()))
                change = change - criterion.hyp.cls * weights[k] * share * negative
    points = torch.tensor([[x / s, y / s] for x, y, s in centres])
    strides = torch.tensor([[float(s)] for _, _, s in centres])
    distances = output["boxes"].permute(0, 2, 1)
    decoded = criterion.bbox_decode(points, distances)
    for sign, boxes in ((1, by_teacher), (-1, by_labels)):
        overlap, sides = criterion.bbox_loss(
            distances, decoded, points, boxes / strides, targets, 1.0, shared, torch.tensor([SIDE, SIDE]), strides
        )
        change = change + sign * (criterion.hyp.box * overlap + criterion.hyp.dfl * sides)
    return change / total, int(shared.sum())


@pytest.mark.parametrize("architecture", [PLAIN, DUAL])
@pytest.mark.parametrize("hyp", [{}, {"cls_pw": 0.5, "cls": 0.7, "box": 5.0, "dfl": 2.0}], ids=["", "gains"])
def test_it_is_the_difference_of_two_losses(architecture, hyp):
    case = Case(architecture, ROWS_OF, **hyp)
    found = case()
    shares = [case.task.o2m, case.task.o2o] if architecture == DUAL else [1.0]
    slow = [
        slowly(criterion, output, case.answers[id(criterion.assigner)], case.batch)
        for criterion, output in zip(case.branches, case.outputs, strict=True)
    ]
    expected = sum(share * change for share, (change, _) in zip(shares, slow, strict=True))
    assert all(shared for _, shared in slow)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    parts = [output[key] for output in case.outputs for key in ("scores", "boxes")]
    gradients = (torch.autograd.grad(term, parts, retain_graph=True) for term in (found, expected))
    for own, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(own, slow, rtol=1e-3, atol=1e-6)


def test_a_teacher_that_says_what_the_labels_say_changes_nothing():
    rows = {
        i: [row(label, *(float(k == label[0]) for k in range(CLASSES))) for label in of] for i, of in LABELS.items()
    }
    assert float(Case(PLAIN, rows)().detach()) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("rows", [{}, {1: [(0.9, 0.1, 0.1, 0.1, 0.2, 0.2, 0.2)]}], ids=["silent", "unsure"])
@pytest.mark.parametrize("labels", [LABELS, {0: [], 1: []}], ids=["labels", "no labels"])
def test_a_teacher_that_says_nothing_changes_nothing(rows, labels):
    assert float(Case(PLAIN, rows, labels)().detach()) == 0


def test_a_label_that_is_missing_is_no_negative_where_the_teacher_is_certain():
    case = Case(PLAIN, {0: [(0.5, 0.5, 0.4, 0.4, 1.0, 0.0, 0.0)], 1: []}, {0: [], 1: []})
    term = case()
    (gradient,) = torch.autograd.grad(case.loss.sum() / 2 + term, case.preds["scores"])
    inside = torch.zeros(SIDE // 8, SIDE // 8, dtype=torch.bool)
    inside[5:11, 5:11] = True  # centres within 38.4 and 89.6 px
    none = gradient.abs() < 1e-6
    assert none[0, 0, : inside.numel()].reshape(inside.shape).equal(inside)
    assert not none[0, 1:].any()
    assert not none[1].any()


def test_what_was_seen_is_used_once():
    case = Case(PLAIN, ROWS_OF)
    case()
    with pytest.raises(KeyError):
        case.term(case.task, case.preds, case.batch)
