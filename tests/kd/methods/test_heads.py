"""The terms on heads: by hand, against plain loops, which cells count, and where they must be zero."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

from torchvision.ops import generalized_box_iou

from kd.config import TrainConfig
from kd.methods.batch import Batch, Prediction
from kd.methods.heads import box_divergence, class_targets, distances, giou, localisation, soft_targets
from kd.methods.masks import Grid, foreground
from kd.methods.registry import METHODS

CONFIG = TrainConfig(data="d.yaml", student="yolov5n", out="run", teachers=("t.pt",))


def draw(*shape, seed=0):
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def softmax(values):
    exponentials = [math.exp(v) for v in values]
    return [e / sum(exponentials) for e in exponentials]


# --- formulas -------------------------------------------------------------------------------------------


def test_soft_targets_worked_by_hand():
    # One cell, one class: the teacher gives 3/4, the student 1/2.
    want = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    student, teacher = torch.tensor([[0.0]]), torch.tensor([[math.log(3.0)]])
    assert soft_targets(student, teacher, 1.0).item() == pytest.approx(want)
    assert soft_targets(student, 2 * teacher, 2.0).item() == pytest.approx(4 * want)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_soft_targets_equal_plain_loops(temperature):
    student, teacher = draw(7, 3), draw(7, 3, seed=1)
    total = 0.0
    for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
        p, q = (1 / (1 + math.exp(-z / temperature)) for z in (t, s))
        total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    want = total * temperature**2 / 7
    assert soft_targets(student, teacher, temperature).item() == pytest.approx(want, rel=1e-5)


def test_soft_targets_have_the_gradient_of_the_cross_entropy_with_them():
    student, teacher = draw(7, 3).requires_grad_(), draw(7, 3, seed=1)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(student, teacher.sigmoid(), reduction="sum") / 7
    got, want = (torch.autograd.grad(term, student)[0] for term in (soft_targets(student, teacher, 1.0), entropy))
    torch.testing.assert_close(got, want)


def test_soft_targets_of_saturated_scores_are_finite():
    student = torch.tensor([[500.0, -500.0]], requires_grad=True)
    term = soft_targets(student, torch.tensor([[-500.0, 500.0]]))
    term.backward()
    assert term.isfinite()
    assert student.grad.isfinite().all()


def test_distances_are_the_expectation_of_each_side():
    # Side by side: all weight on bin 2, evenly on 0 and 1, on bin 0, evenly on all three.
    rows = torch.full((4, 3), -100.0)
    rows[0, 2] = rows[1, 0] = rows[1, 1] = rows[2, 0] = 0.0
    rows[3] = 0.0
    torch.testing.assert_close(distances(rows.reshape(1, 12)), torch.tensor([[2.0, 0.5, 0.0, 1.0]]))
    assert distances(torch.tensor([[1.0, -2.0, 3.0, 4.0]])).tolist() == [[1.0, -2.0, 3.0, 4.0]]  # reg_max 1


def test_giou_worked_by_hand():
    a = torch.tensor([[1.0, 1, 1, 1]])  # 2 x 2
    assert giou(a, torch.tensor([[1.0, 1, 3, 1]])).item() == pytest.approx(0.5)  # 4 x 2 around it: 4 / 8
    assert giou(a, torch.tensor([[-1.0, 1, 3, 1]])).item() == pytest.approx(0.0)  # touches it: 0 - (8 - 8) / 8
    assert giou(a, torch.tensor([[-2.0, 1, 4, 1]])).item() == pytest.approx(-0.2)  # apart: 0 - (10 - 8) / 10


def test_giou_equals_torchvisions_on_boxes_around_any_centre():
    a, b = draw(50, 4).abs(), draw(50, 4, seed=1).abs()
    centre = draw(50, 2, seed=2)
    boxes = [torch.cat((centre - side[:, :2], centre + side[:, 2:]), 1) for side in (a, b)]
    torch.testing.assert_close(giou(a, b), generalized_box_iou(*boxes).diagonal(), rtol=1e-4, atol=1e-5)


def test_box_divergence_equals_plain_loops():
    student, teacher, confidence = draw(6, 4 * 5), draw(6, 4 * 3, seed=1), torch.tensor([0.9, 0.1, 0.5, 0.7, 0.3, 0.2])
    total = 0.0
    for n in range(6):
        s, t = (
            [sum(i * p for i, p in enumerate(softmax(side))) for side in rows[n].reshape(4, -1).tolist()]
            for rows in (student, teacher)
        )
        inter = (min(s[0], t[0]) + min(s[2], t[2])) * (min(s[1], t[1]) + min(s[3], t[3]))
        hull = (max(s[0], t[0]) + max(s[2], t[2])) * (max(s[1], t[1]) + max(s[3], t[3]))
        union = sum((d[0] + d[2]) * (d[1] + d[3]) for d in (s, t)) - inter
        total += confidence[n].item() * (1 - inter / union + (hull - union) / hull)
    want = total / confidence.sum().item()
    assert box_divergence(student, teacher, confidence).item() == pytest.approx(want, rel=1e-5)


def test_boxes_that_are_apart_or_inside_out_have_a_gradient_and_no_nan():
    student = torch.tensor([[-4.0, 1, 6, 1], [-1, -1, -1, -1], [0, 0, 0, 0]], requires_grad=True)
    term = box_divergence(student, torch.tensor([[1.0, 1, 1, 1]] * 3), torch.ones(3))
    term.backward()
    assert term.isfinite()
    assert student.grad.isfinite().all()
    assert student.grad[0].any()


def test_localisation_worked_by_hand():
    # One side differs: the teacher puts 3/4 on bin 0, the student half; the mean over four sides.
    teacher = torch.zeros(1, 8)
    teacher[0, 0] = math.log(3.0)
    want = (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)) / 4
    assert localisation(torch.zeros(1, 8), teacher, torch.ones(1), 1.0).item() == pytest.approx(want)
    assert localisation(torch.zeros(1, 8), 10 * teacher, torch.ones(1), 10.0).item() == pytest.approx(100 * want)


def test_localisation_equals_plain_loops():
    student, teacher, confidence = draw(6, 4 * 5), draw(6, 4 * 5, seed=1), torch.tensor([0.9, 0.1, 0.5, 0.7, 0.3, 0.2])
    total = 0.0
    for n in range(6):
        for side in range(4):
            p, q = (softmax((rows[n].reshape(4, 5)[side] / 10).tolist()) for rows in (teacher, student))
            total += confidence[n].item() * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 4 * 100
    want = total / confidence.sum().item()
    assert localisation(student, teacher, confidence).item() == pytest.approx(want, rel=1e-3)


def test_less_than_one_confident_cell_in_all_counts_as_one():
    student, teacher = draw(1, 8), draw(1, 8, seed=1)
    for formula in (box_divergence, localisation):
        full, tenth = (formula(student, teacher, torch.tensor([c])) for c in (1.0, 0.1))
        torch.testing.assert_close(tenth, full / 10)


FORMULAS = {
    "soft_targets": soft_targets,
    "box_divergence": lambda student, teacher: box_divergence(student, teacher, torch.full((len(student),), 0.6)),
    "localisation": lambda student, teacher: localisation(student, teacher, torch.full((len(student),), 0.6)),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas_on_heads_keep_the_invariants(name):
    student, teacher, formula = draw(5, 12), draw(5, 12, seed=1), FORMULAS[name]
    want = formula(student, teacher)
    assert formula(student, student.clone()).item() == 0
    teacher.requires_grad_()
    student.requires_grad_()
    formula(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.any()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = formula(student, teacher)
    assert under.dtype == torch.float32
    assert torch.equal(under, want)
    assert formula(student.detach().half(), teacher.detach().half()).dtype == torch.float32
    student.grad = None
    none = formula(student[:0], teacher[:0])
    none.backward()
    assert none.item() == 0
    assert not student.grad.any()


# --- which cells count ----------------------------------------------------------------------------------


def test_foreground_equals_a_loop_over_cells():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(40, 2, generator=generator) * torch.tensor([90.0, 60.0])
    side = torch.rand(40, 2, generator=generator) ** 3 * 50
    boxes = torch.cat((corner, corner + side), 1)
    image = torch.randint(0, 3, (40,), generator=generator)
    for stride in (8, 16, 32):
        grid = Grid(stride, 64 // stride, 96 // stride)
        want = torch.zeros(3, grid.height, grid.width, dtype=torch.bool)
        for b, (x1, y1, x2, y2) in zip(image.tolist(), boxes.tolist(), strict=True):
            for i in range(grid.height):
                for j in range(grid.width):
                    x, y = (j + 0.5) * stride, (i + 0.5) * stride
                    held = [
                        min(int((low + high) / 2 // stride), cells - 1)
                        for low, high, cells in ((x1, x2, grid.width), (y1, y2, grid.height))
                    ]
                    in_x, in_y = x1 <= x <= x2 or held[0] == j, y1 <= y <= y2 or held[1] == i
                    want[b, i, j] |= in_x and in_y
        assert torch.equal(foreground(boxes, image, 3, grid), want)


def test_the_smallest_box_has_a_cell_and_no_box_has_none():
    grid = Grid(32, 2, 3)
    tiny = torch.tensor([[33.0, 1.0, 34.0, 2.0]])
    assert foreground(tiny, torch.tensor([1]), 2, grid).nonzero().tolist() == [[1, 0, 1]]
    assert not foreground(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), 2, grid).any()


def heads_batch(boxes=(), *, reg_max=4, confident=(), classes=(2, 0), branches=(1, 1)):
    """Student of two classes and teacher of three on an 8 x 8 and a 4 x 4 level; the teacher doubts all other cells."""
    strides = {8: 8, 16: 4}
    student_heads = [
        {s: Prediction(draw(2, 2, n, n, seed=b), draw(2, 4 * reg_max, n, n, seed=b + 1)) for s, n in strides.items()}
        for b in range(branches[0])
    ]
    teacher_heads = []
    for b in range(branches[1]):
        head = {}
        for s, n in strides.items():
            scores = torch.full((2, 3, n, n), -9.0)
            for stride, image, cls, y, x in confident:
                if stride == s:
                    scores[image, cls, y, x] = 2.0
            head[s] = Prediction(scores, draw(2, 4 * reg_max, n, n, seed=b + 7))
        teacher_heads.append(head)
    rows = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 5)
    features = {s: torch.zeros(2, 1, n, n) for s, n in strides.items()}
    return Batch(
        features, features, {}, rows[:, 1:], rows[:, 0].long(), student_heads, teacher_heads, classes and list(classes)
    )


def test_cells_are_those_in_boxes_and_those_of_which_the_teacher_is_confident():
    batch = heads_batch([[1, 0, 0, 16, 8]], confident=[(8, 0, 2, 3, 4), (8, 0, 1, 6, 6)])
    (found,) = batch.cells
    # Image 0: the confident cell (not the one of a class that the student has not); image 1: two cells of stride 8
    # inside the box; stride 16: the one that holds its centre.
    assert found.confidence.tolist() == pytest.approx([0.8808, 0.0001, 0.0001, 0.0001], abs=1e-4)
    student, teacher = batch.student_heads[0], batch.teacher_heads[0]
    assert torch.equal(found.student.scores[0], student[8].scores[0, :, 3, 4])
    assert torch.equal(found.student.boxes[1:3], student[8].boxes[1, :, 0, :2].T)
    assert torch.equal(found.teacher.boxes[3], teacher[16].boxes[1, :, 0, 0])


def test_confidence_is_in_any_class_where_the_teachers_are_others():
    (found,) = heads_batch(confident=[(8, 0, 1, 6, 6)], classes=None).cells
    assert found.confidence.tolist() == pytest.approx([0.8808], abs=1e-4)


def test_logits_compare_classes_of_the_same_name():
    batch = heads_batch([[0, 0, 0, 8, 8]], confident=[(8, 1, 0, 2, 2)])
    (found,) = batch.cells
    want = soft_targets(found.student.scores, found.teacher.scores[:, [2, 0]])
    torch.testing.assert_close(METHODS["logits"](batch, CONFIG), want)


@pytest.mark.parametrize("name", ["logits", "box", "ld"])
def test_branches_learn_from_their_like_alone(name):
    boxes = [[0, 0, 0, 30, 30]]
    both = heads_batch(boxes, branches=(2, 2))
    single = [
        METHODS[name](replace(both, student_heads=[s], teacher_heads=[t]), CONFIG)
        for s, t in zip(both.student_heads, both.teacher_heads, strict=True)
    ]
    torch.testing.assert_close(METHODS[name](both, CONFIG), torch.stack(single).mean())
    fewer = replace(both, teacher_heads=both.teacher_heads[:1])
    torch.testing.assert_close(METHODS[name](fewer, CONFIG), single[0])
    fewer = replace(both, student_heads=both.student_heads[:1])
    torch.testing.assert_close(METHODS[name](fewer, CONFIG), single[0])


@pytest.mark.parametrize("name", ["logits", "box", "ld"])
def test_without_boxes_and_confident_cells_a_term_is_zero_with_zero_gradients(name):
    batch = heads_batch()
    for prediction in batch.student_heads[0].values():
        prediction.scores.requires_grad_()
        prediction.boxes.requires_grad_()
    term = METHODS[name](batch, CONFIG)
    assert term.item() == 0
    term.backward()
    assert not any(v.grad is not None and v.grad.any() for p in batch.student_heads[0].values() for v in p[:2])


@pytest.mark.parametrize("reg_max", [1, 4])
@pytest.mark.parametrize("name", ["logits", "box", "ld"])
def test_predictions_may_come_from_inference_mode(name, reg_max):
    batch = heads_batch([[0, 0, 0, 30, 30]], reg_max=reg_max)
    with torch.inference_mode():
        frozen = {s: Prediction(p.scores * 1, p.boxes * 1) for s, p in batch.teacher_heads[0].items()}
    for prediction in batch.student_heads[0].values():
        prediction.scores.requires_grad_()
        prediction.boxes.requires_grad_()
    METHODS[name](replace(batch, teacher_heads=[frozen]), CONFIG).backward()
    grads = [v.grad for p in batch.student_heads[0].values() for v in p[:2] if v.grad is not None]
    assert all(g.isfinite().all() for g in grads)


def test_every_batch_with_boxes_gives_terms_above_zero():
    # So the guard against terms that stay 0 does not stop a run of tiny objects and a teacher in doubt.
    batch = heads_batch([[0, 33, 1, 33.5, 1.5]])
    assert all(METHODS[name](batch, CONFIG).item() > 0 for name in ("logits", "box", "ld"))


# --- heads with anchors ---------------------------------------------------------------------------------

ANCHORS = 2


def anchored_batch(boxes=(), confident=()):
    """Two classes, two anchors, one level of 4 x 4 cells; the teacher doubts all other places."""
    scores, objectness = torch.full((2, 2, ANCHORS * 4, 4), 3.0), torch.full((2, 1, ANCHORS * 4, 4), -9.0)
    for image, anchor, y, x in confident:
        objectness[image, 0, anchor * 4 + y, x] = 2.0
    teacher = Prediction(scores, draw(2, 4, ANCHORS * 4, 4, seed=2), objectness)
    student = Prediction(*(draw(2, c, ANCHORS * 4, 4, seed=c) for c in (2, 4, 1)))
    rows = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 5)
    maps = {8: torch.zeros(2, 1, 4, 4)}
    return Batch(maps, maps, {}, rows[:, 1:], rows[:, 0].long(), [{8: student}], [{8: teacher}], [0, 1])


def test_with_anchors_a_cell_counts_for_each_in_a_box_and_for_those_of_which_the_teacher_is_confident():
    batch = anchored_batch([[1, 8, 8, 16, 16]], confident=[(0, 1, 2, 3)])
    (found,) = batch.cells
    sure = 1 / (1 + math.exp(-2)) / (1 + math.exp(-3))  # objectness times class
    assert found.confidence.tolist() == pytest.approx([sure, 0.0001, 0.0001], abs=1e-4)
    student, teacher = batch.student_heads[0][8], batch.teacher_heads[0][8]
    assert torch.equal(found.student.scores, torch.stack([student.scores[b, :, y, x] for b, y, x in PLACES]))
    assert torch.equal(found.teacher.objectness, torch.stack([teacher.objectness[b, :, y, x] for b, y, x in PLACES]))
    assert all(METHODS[name](batch, CONFIG).item() > 0 for name in ("logits", "box"))


PLACES = ((0, 4 + 2, 3), (1, 1, 1), (1, 4 + 1, 1))  # image, row, column


def test_with_anchors_a_cells_score_is_the_highest_of_its_anchors():
    batch = anchored_batch([[1, 8, 8, 16, 16]], confident=[(0, 1, 2, 3), (1, 0, 1, 1)])
    score, sure = batch.score(8), 1 / (1 + math.exp(-2)) / (1 + math.exp(-3))
    assert score.shape == (2, 4, 4)
    assert (score > 0.5).nonzero().tolist() == [[0, 2, 3], [1, 1, 1]]
    assert batch.image_scores.tolist() == pytest.approx([sure, sure])  # a cell in doubt by one anchor is none by both


def test_classes_count_by_the_teachers_objectness_worked_by_hand():
    half, three, rare = 0.0, math.log(3.0), -math.log(3.0)
    student = Prediction(torch.tensor([[half]]), torch.zeros(1, 4), torch.tensor([[half]]))
    teacher = Prediction(torch.tensor([[2 * three]]), torch.zeros(1, 4), torch.tensor([[2 * rare]]))  # T = 2
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)  # of 3/4 or 1/4 from 1/2
    want = 4 * divergence * (1 + 0.1)  # the objectness itself is 1 / (1 + 9)
    assert class_targets(student, teacher).item() == pytest.approx(want)
    same = class_targets(teacher, teacher)
    assert same.item() == 0


def test_no_gradient_reaches_a_teacher_with_anchors():
    batch = anchored_batch([[1, 8, 8, 16, 16]])
    for prediction in (batch.student_heads[0][8], batch.teacher_heads[0][8]):
        for maps in prediction:
            maps.requires_grad_()
    sum(METHODS[name](batch, CONFIG) for name in ("logits", "box")).backward()
    assert all(maps.grad.any() for maps in batch.student_heads[0][8])
    assert all(maps.grad is None for maps in batch.teacher_heads[0][8])
