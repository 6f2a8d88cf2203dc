"""The term of soft labels of a classic student against a slow one place by place, and where it must be nothing."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy
from ultralytics.utils.metrics import bbox_iou
from ultralytics.utils.ops import xywh2xyxy

from kd.distillation.rows import ROWS
from kd.distillation.soft_anchors import AnchoredSoftLabels
from kd.ultra import classic
from kd.ultra.classic.loss import match
from tests.kd_models import tiny_classic

SIDE, CLASSES = 128, 3
LABELS = {0: [(0, 0.3, 0.3, 0.4, 0.4), (1, 0.75, 0.7, 0.3, 0.4)], 1: [(2, 0.5, 0.5, 0.6, 0.5)], 2: []}
ROWS_OF = {  # image -> box, scores of the three classes
    0: [
        (0.32, 0.3, 0.4, 0.36, 0.9, 0.3, 0.1),
        (0.1, 0.9, 0.15, 0.15, 0.1, 0.7, 0.0),
        (0.3, 0.3, 0.2, 0.2, 0.6, 0.0, 0.0),  # no label's, in places that answer for one
    ],
    1: [(0.9, 0.1, 0.1, 0.1, 0.1, 0.2, 0.2), (0.48, 0.52, 0.6, 0.6, 0.3, 0.1, 0.6)],
    2: [(0.5, 0.5, 0.3, 0.3, 0.0, 0.8, 0.2), (0.52, 0.5, 0.3, 0.3, 0.9, 0.0, 0.2)],  # two that ask for the same places
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    found = classic.Model(tiny_classic(), nc=CLASSES)
    found.args = {"imgsz": SIDE}
    for layer in found.model[-1].m:
        torch.nn.init.normal_(layer.weight, std=0.1)
        torch.nn.init.zeros_(layer.bias)  # objectness that is worth something everywhere
    return found.train()


def batch_of(rows, labels=LABELS):
    flat = [(image, *label) for image, of in labels.items() for label in of]
    targets = torch.tensor(flat, dtype=torch.float32).reshape(-1, 6)
    return {
        "img": torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)),
        "batch_idx": targets[:, 0], "cls": targets[:, 1:2], "bboxes": targets[:, 2:],
        ROWS: [torch.tensor(rows.get(i, ()), dtype=torch.float32).reshape(-1, 4 + CLASSES) for i in range(3)],
    }  # fmt: skip


def term_of(model, rows, labels=LABELS):
    """The term, the model's outputs and its own loss per image."""
    batch, task = batch_of(rows, labels), model.init_criterion()
    preds = model(batch["img"])
    return AnchoredSoftLabels()(task, preds, batch), preds, task(preds, batch)[0].sum() / 3


def slow_loss(model, preds, rows, labels=LABELS):
    """The loss by a teacher's rows, place by place; without rows the official one."""
    task, head, total = model.init_criterion(), model.model[-1], 0.0
    for raw, anchors, balance in zip(preds["raw"], head.anchors, task.balance, strict=True):
        height, width = raw.shape[2:4]

        def cells(box, width=width, height=height):
            return torch.tensor(box) * torch.tensor([width, height, width, height])

        boxes, classes, aims, room = [], [], torch.zeros(raw.shape[:4]), torch.zeros(raw.shape[:4])
        answering = set()
        for image, (kind, *box) in ((i, label) for i, of in labels.items() for label in of):
            overlaps = [
                float(bbox_iou(*(xywh2xyxy(torch.tensor([b])) for b in (box, row[:4])), xywh=False))
                for row in rows.get(image, ())
            ]
            goal, scores, highest = box, [float(k == kind) for k in range(CLASSES)], 1.0
            if overlaps and max(overlaps) >= 0.5:
                row = rows[image][overlaps.index(max(overlaps))]
                highest = max(row[4:])
                goal, scores = row[:4], [score / highest for score in row[4:]]
            found = match(torch.tensor([[image, kind, *box]]), anchors, height, width)
            for place in zip(*(axis.tolist() for axis in found.place), strict=True):
                out, corner = raw[place], torch.tensor([place[3], place[2], 0, 0])
                xy, wh = 2 * out[:2].sigmoid() - 0.5, (2 * out[2:4].sigmoid()) ** 2 * anchors[place[1]]
                iou = bbox_iou(torch.cat((xy, wh))[None], (cells(goal) - corner)[None], xywh=True, CIoU=True)[0, 0]
                boxes.append(1 - iou)
                classes.append(cross_entropy(out[5:], torch.tensor(scores)))
                aims[place] = float(iou.detach().clamp(min=0)) * highest
                answering.add(place)
        for image, row in ((i, row) for i, of in rows.items() for row in of if max(row[4:]) > 0.25):
            if any(
                float(bbox_iou(*(xywh2xyxy(torch.tensor([b])) for b in (label[1:], row[:4])), xywh=False)) >= 0.5
                for label in labels.get(image, ())
            ):
                continue
            found = match(torch.tensor([[image, 0, *row[:4]]]), anchors, height, width)
            for place in set(zip(*(axis.tolist() for axis in found.place), strict=True)) - answering:
                room[place] = max(room[place], max(row[4:]))
        entropy = cross_entropy(raw[..., 4], aims, reduction="none")
        negatives = cross_entropy(raw[..., 4], torch.zeros_like(aims), reduction="none")
        total = total + task.gains[1] * balance * (entropy - room * negatives).mean()
        if boxes:
            total = total + task.gains[0] * torch.stack(boxes).mean() + task.gains[2] * torch.stack(classes).mean()
    return total


def test_the_slow_loss_is_the_official_one_without_a_teacher(model):
    _, preds, loss = term_of(model, {})
    assert float(slow_loss(model, preds, {}).detach()) == pytest.approx(float(loss.detach()), rel=1e-5)


def test_it_is_the_difference_of_two_losses(model):
    found, preds, loss = term_of(model, ROWS_OF)
    expected = slow_loss(model, preds, ROWS_OF) - loss
    assert abs(float(expected.detach())) > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    own, slow = (torch.autograd.grad(term, preds["raw"], retain_graph=True) for term in (found, expected))
    for pair in zip(own, slow, strict=True):
        torch.testing.assert_close(*pair, rtol=1e-3, atol=1e-8)


def test_a_teacher_that_says_what_the_labels_say_changes_nothing(model):
    hard = torch.eye(CLASSES).tolist()
    rows = {i: [(*box, *hard[kind]) for kind, *box in of] for i, of in LABELS.items()}
    assert float(term_of(model, rows)[0].detach()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("rows", [{}, {1: [(0.9, 0.1, 0.1, 0.1, 0.2, 0.2, 0.2)]}], ids=["silent", "unsure"])
@pytest.mark.parametrize("labels", [LABELS, {}], ids=["labels", "no labels"])
def test_a_teacher_that_says_nothing_changes_nothing(model, rows, labels):
    found, preds, _ = term_of(model, rows, labels)
    assert float(found.detach()) == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(found, preds["raw"]))


def test_a_label_that_is_missing_is_no_negative_where_the_teacher_is_certain(model):
    row = (0.5, 0.5, 0.2, 0.3, 1.0, 0.0, 0.0)
    found, preds, loss = term_of(model, {0: [row]}, {})
    gradients = torch.autograd.grad(loss + found, preds["raw"])
    for gradient, anchors in zip(gradients, model.model[-1].anchors, strict=True):
        places = match(torch.tensor([[0, 0, *row[:4]]]), anchors, *gradient.shape[2:4]).place
        none = gradient[..., 4].abs() < 1e-9
        assert none[places].all()
        none[places] = False
        assert not none.any()


def test_a_class_that_the_student_has_not_leaves_no_class(model):
    found, preds, _ = term_of(model, {1: [(0.5, 0.5, 0.6, 0.5, 0.0, 0.0, 0.0)]})
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(found, preds["raw"]))
    assert found.isfinite()
