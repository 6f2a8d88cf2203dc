"""The terms on features: by hand, against loops and dense forms, and where they must be zero."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

import torch.nn.functional as F

from kd.config import TrainConfig
from kd.methods.adapters import project
from kd.methods.batch import Batch, Prediction
from kd.methods.features import channel_divergence, cwd, pearson_distance, pkd, score_l2, score_weighted
from kd.methods.fgfi import _exchanged, fgfi, fgfi_masks, imitation
from kd.methods.fgfi_config import FgfiConfig
from kd.methods.masks import Grid, imitation_masks

CONFIG = TrainConfig(data="d.yaml", student="yolov5n", out="run", teachers=("t.pt",))


def random_level(seed=0, student=3, teacher=5, kernel=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    mask = torch.rand(2, 4, 6, generator=generator) < 0.3
    return draw(2, student, 4, 6), draw(2, teacher, 4, 6), mask, draw(teacher, student, kernel, kernel), draw(teacher)


def identity(channels):
    return torch.eye(channels)[:, :, None, None], torch.zeros(channels)


def dense(student, teacher, mask, weight, bias):
    """The formula as the paper writes it: project everything, mask afterwards."""
    adapted = F.conv2d(student, weight, bias, padding=weight.shape[-1] // 2)
    squares = (adapted - teacher).square().sum(1)
    return (squares * mask).sum() / (2 * mask.sum())


def test_worked_by_hand():
    # One image, two channels, two cells; the adapter doubles channel 0 and adds 1 to channel 1.
    student = torch.tensor([[[[1.0, 3.0]], [[2.0, 5.0]]]])
    teacher = torch.tensor([[[[4.0, 6.0]], [[0.0, 4.0]]]])
    weight = torch.tensor([[2.0, 0.0], [0.0, 1.0]])[:, :, None, None]
    bias = torch.tensor([0.0, 1.0])
    # Cell 0: adapted (2, 3), differences (-2, 3): 13. Cell 1: adapted (6, 6), differences (0, 2): 4.
    both = torch.tensor([[[True, True]]])
    first = torch.tensor([[[True, False]]])
    assert imitation(student, teacher, both, weight, bias).item() == pytest.approx(17 / 4)
    assert imitation(student, teacher, first, weight, bias).item() == pytest.approx(13 / 2)


def test_a_soft_mask_weighs_cells_by_the_teachers_score():
    student = torch.tensor([[[[1.0, 3.0]], [[2.0, 5.0]]]])
    teacher = torch.tensor([[[[4.0, 6.0]], [[0.0, 4.0]]]])
    mask, (weight, bias) = torch.tensor([[[True, True]]]), identity(2)
    # Differences (-3, 2) and (-3, 1): 13 and 10, by scores of 0.8 and 0.2.
    scores = torch.tensor([[[0.8, 0.2]]])
    assert imitation(student, teacher, mask, weight, bias, scores).item() == pytest.approx((13 * 0.8 + 10 * 0.2) / 2)
    alike = imitation(student, teacher, mask, weight, bias, torch.full((1, 1, 2), 0.3))
    assert alike.item() == pytest.approx(imitation(student, teacher, mask, weight, bias).item())
    assert imitation(student, teacher, ~mask, weight, bias, scores).item() == 0


def test_sums_over_channels():
    # Twice the same channels: twice the term, so the sum is no mean.
    student, teacher, mask, _, _ = random_level(student=4, teacher=4)
    once = imitation(student, teacher, mask, *identity(4))
    twice = imitation(student.repeat(1, 2, 1, 1), teacher.repeat(1, 2, 1, 1), mask, *identity(8))
    torch.testing.assert_close(twice, 2 * once)


@pytest.mark.parametrize("kernel", [1, 3])
def test_equals_the_dense_form_in_value_and_gradient(kernel):
    student, teacher, mask, weight, bias = random_level(kernel=kernel, dtype=torch.float64)
    inputs = [value.requires_grad_() for value in (student, weight, bias)]
    # `imitation` computes in float32, so compare with the dense form in float64 within float32 noise.
    got = imitation(student, teacher, mask, weight, bias)
    want = dense(student, teacher, mask, weight, bias)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
    for a, b in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_teacher_equal_to_student_gives_zero():
    student, _, mask, _, _ = random_level()
    assert imitation(student, student.clone(), mask, *identity(3)).item() == 0


@pytest.mark.parametrize("kernel", [1, 3])
def test_nothing_masked_in_gives_a_zero_that_can_be_differentiated(kernel):
    student, teacher, mask, weight, bias = random_level(kernel=kernel)
    student[0, 0, 0, 0] = float("inf")  # 0 * inf would be NaN
    inputs = [value.requires_grad_() for value in (student, weight, bias)]
    term = imitation(student, teacher, torch.zeros_like(mask), weight, bias)
    assert term.item() == 0
    if kernel == 1:
        assert all(not gradient.any() for gradient in torch.autograd.grad(term, inputs))


def test_no_gradient_into_the_teacher():
    student, teacher, mask, weight, bias = random_level()
    teacher.requires_grad_()
    weight.requires_grad_()
    imitation(student, teacher, mask, weight, bias).backward()
    assert teacher.grad is None
    assert weight.grad.any()


def test_teacher_features_may_come_from_inference_mode():
    student, teacher, mask, weight, bias = random_level()
    with torch.inference_mode():
        teacher = teacher * 1
    weight.requires_grad_()
    imitation(student, teacher, mask, weight, bias).backward()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("kernel", [1, 3])
def test_float32_under_autocast(kernel):
    student, teacher, mask, weight, bias = random_level(kernel=kernel)
    want = imitation(student, teacher, mask, weight, bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = imitation(student, teacher, mask, weight, bias)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)


def batch_of(boxes, strides=(8, 16)):
    generator = torch.Generator().manual_seed(1)
    sides = {stride: 64 // stride for stride in strides}
    student = {s: torch.randn(2, 3, n, n, generator=generator) for s, n in sides.items()}
    teacher = {s: torch.randn(2, 4, n, n, generator=generator) for s, n in sides.items()}
    layers = {s: [(torch.randn(4, 3, 1, 1, generator=generator), torch.randn(4, generator=generator))] for s in strides}
    adapters = {"fgfi": layers, "cwd": layers, "pkd": layers, "score-l2": layers}
    heads = [
        {s: Prediction(*(torch.randn(2, c, n, n, generator=generator) for c in (5, 8))) for s, n in sides.items()}
        for _ in range(2)
    ]
    rows = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 5)
    return Batch(student, teacher, adapters, rows[:, 1:], rows[:, 0].long(), heads[:1], heads[1:])


@pytest.mark.parametrize("assigned", [False, True])
def test_fgfi_sums_the_levels_with_a_normaliser_of_their_own(assigned):
    batch = batch_of([[0, 4, 4, 20, 30], [1, 30, 10, 60, 60]])
    config = TrainConfig(
        data="d", student="s", out="o", teachers=("t",), fgfi=FgfiConfig(threshold=0.4, assigned=assigned)
    )
    masks = imitation_masks(
        batch.boxes_xyxy, batch.image_index, 2, [Grid(8, 8, 8), Grid(16, 4, 4)], threshold=0.4, assigned=assigned
    )
    want = sum(
        dense(batch.student[s], batch.teacher[s], mask, *batch.adapters["fgfi"][s][0])
        for s, mask in zip((8, 16), masks, strict=True)
    )
    torch.testing.assert_close(fgfi(batch, config), want)


def test_fgfi_takes_the_priors_of_its_configuration():
    batch = batch_of([[0, 4, 4, 20, 30], [1, 30, 10, 60, 60]])
    priors = ((8, ((4.0, 9.0),)), (16, ((30.0, 50.0), (9.0, 20.0))))
    own = TrainConfig(data="d", student="s", out="o", teachers=("t",), fgfi=FgfiConfig(priors=priors))
    grids = [Grid(8, 8, 8), Grid(16, 4, 4)]
    masks = imitation_masks(batch.boxes_xyxy, batch.image_index, 2, grids, priors=dict(priors))
    assert all(torch.equal(a, b) for a, b in zip(fgfi_masks(batch, own), masks, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(fgfi_masks(batch, CONFIG), masks, strict=True))
    want = sum(
        dense(batch.student[s], batch.teacher[s], mask, *batch.adapters["fgfi"][s][0])
        for s, mask in zip((8, 16), masks, strict=True)
    )
    torch.testing.assert_close(fgfi(batch, own), want)


def test_fgfi_reproduces_the_defects_of_the_papers_port_when_asked():
    batch = batch_of([[0, 4, 4, 20, 30], [1, 30, 10, 60, 60]])
    layers = {s: batch.adapters["fgfi"][s][0] for s in (8, 16)}
    for weight, _ in layers.values():
        weight.requires_grad_()
    right = dict(zip((8, 16), fgfi_masks(batch, CONFIG), strict=True))

    def term(*defects):
        return fgfi(batch, replace(CONFIG, fgfi=FgfiConfig(defects=defects)))

    def by_hand(masks):
        return sum(dense(batch.student[s], batch.teacher[s], mask, *layers[s]) for s, mask in masks.items())

    assert term("adapter") == term()
    assert (term().requires_grad, term("adapter").requires_grad) == (True, False)
    torch.testing.assert_close(term("level"), by_hand({8: right[8]}))
    exchanged = {s: mask.transpose(1, 2) for s, mask in right.items()}
    torch.testing.assert_close(term("mask"), by_hand(exchanged))
    assert not torch.isclose(term("mask"), term())


def test_exchanged_rows_and_columns_of_a_wide_mask_keep_what_fits():
    wide = torch.zeros(1, 2, 4, dtype=torch.bool)
    wide[0, 0, 1] = wide[0, 1, 3] = True
    assert _exchanged(wide).nonzero().tolist() == [[0, 1, 0]]


def test_fgfi_without_boxes_is_zero():
    assert fgfi(batch_of([]), CONFIG).item() == 0


# --- cwd, pkd, score-l2 -----------------------------------------------------------------------------------


def pair(seed=0, shape=(2, 3, 4, 5)):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator), torch.randn(*shape, generator=generator)


def channels(features):
    """Each channel of each image as a plain list of its cells."""
    return [channel.flatten().tolist() for image in features for channel in image]


SCORE = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(3))
FORMULAS = {
    "cwd": channel_divergence,
    "pkd": pearson_distance,
    "score-l2": lambda student, teacher: score_weighted(student, teacher, SCORE.to(student.device)),
}


def test_channel_divergence_worked_by_hand():
    # One channel of two cells: the teacher gives (3/4, 1/4), the student halves.
    teacher = torch.tensor([[[[math.log(3.0), 0.0]]]])
    student = torch.zeros(1, 1, 1, 2)
    want = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert channel_divergence(student, teacher).item() == pytest.approx(want)
    assert channel_divergence(student, teacher * 2, temperature=2.0).item() == pytest.approx(4 * want)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_channel_divergence_equals_plain_loops(temperature):
    student, teacher = pair()
    total = 0.0
    for s, t in zip(channels(student), channels(teacher), strict=True):
        p, q = ([math.exp(x / temperature) for x in row] for row in (t, s))
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    want = temperature**2 * total / 6  # two images of three channels
    assert channel_divergence(student, teacher, temperature).item() == pytest.approx(want, rel=1e-5)


def test_pearson_distance_worked_by_hand():
    # Channel 0 rises with the teacher (r = 1), channel 1 falls (r = -1): 1 - r is 0 and 2, the mean 1.
    teacher = torch.tensor([[[[1.0, 2.0, 3.0]], [[1.0, 2.0, 3.0]]]])
    student = torch.tensor([[[[10.0, 30.0, 50.0]], [[6.0, 4.0, 2.0]]]])
    assert pearson_distance(student, teacher).item() == pytest.approx(1.0, abs=1e-5)


def test_pearson_distance_is_one_minus_the_correlation_over_batch_and_cells():
    student, teacher = pair()
    correlations = [
        statistics.correlation(student[:, c].flatten().tolist(), teacher[:, c].flatten().tolist()) for c in range(3)
    ]
    assert pearson_distance(student, teacher).item() == pytest.approx(1 - statistics.fmean(correlations), rel=1e-4)


def test_pearson_distance_ignores_scale_and_offset_and_survives_a_constant_channel():
    student, teacher = pair()
    torch.testing.assert_close(pearson_distance(3 * student + 5, teacher), pearson_distance(student, teacher))
    student[:, 0] = 7.0
    student.requires_grad_()
    term = pearson_distance(student, teacher)
    term.backward()
    assert term.isfinite()
    assert student.grad.isfinite().all()


def test_score_weighted_worked_by_hand():
    # Two channels, two cells of scores 1 and 1/2: (1 * (4 + 0) + 1/2 * (1 + 1)) / (2 * 1.5).
    student = torch.tensor([[[[3.0, 1.0]], [[5.0, 1.0]]]])
    teacher = torch.tensor([[[[1.0, 0.0]], [[5.0, 2.0]]]])
    assert score_weighted(student, teacher, torch.tensor([[[1.0, 0.5]]])).item() == pytest.approx(5 / 3)


def test_score_weighted_equals_plain_loops():
    student, teacher = pair()
    total = weight = 0.0
    for b in range(2):
        for y in range(4):
            for x in range(5):
                score = SCORE[b, y, x].item()
                weight += score * 3
                total += score * sum((student[b, c, y, x] - teacher[b, c, y, x]).item() ** 2 for c in range(3))
    assert score_weighted(student, teacher, SCORE).item() == pytest.approx(total / weight, rel=1e-5)


def test_a_score_of_zero_everywhere_gives_zero_with_zero_gradients():
    student, teacher = pair()
    student.requires_grad_()
    term = score_weighted(student, teacher, torch.zeros(2, 4, 5))
    term.backward()
    assert term.item() == 0
    assert not student.grad.any()


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas_on_features_keep_the_invariants(name):
    student, teacher = pair()
    formula, want = FORMULAS[name], FORMULAS[name](student, teacher)
    assert formula(student, student.clone()).item() == 0
    teacher.requires_grad_()
    student.requires_grad_()
    formula(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.any()
    with torch.inference_mode():
        frozen = teacher.detach() * 1
    formula(student, frozen).backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = formula(student, teacher)
    assert under.dtype == torch.float32
    assert torch.equal(under, want)
    large = formula(student.detach().half() * 1e4, teacher.detach().half())  # squares beyond half precision
    assert large.dtype == torch.float32
    assert large.isfinite()


def test_project_puts_relu_between_layers_and_none_at_the_end():
    first, second = torch.tensor([[1.0], [-1.0]])[:, :, None, None], torch.tensor([[1.0, -2.0]])[:, :, None, None]
    layers = [(first, torch.zeros(2)), (second, torch.tensor([-0.5]))]
    features = torch.tensor([[[[3.0, -4.0]]]])
    # 3 -> (3, 0) -> 2.5; -4 -> (0, 4) -> -8.5: negative, as nothing cuts the output.
    assert project(features, layers).flatten().tolist() == [2.5, -8.5]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert project(features, layers).dtype == torch.float32


@pytest.mark.parametrize(
    ("method", "formula"), [(cwd, channel_divergence), (pkd, pearson_distance)], ids=["cwd", "pkd"]
)
def test_cwd_and_pkd_sum_the_levels(method, formula):
    batch = batch_of([])
    want = sum(formula(F.conv2d(batch.student[s], *batch.adapters["cwd"][s][0]), batch.teacher[s]) for s in (8, 16))
    torch.testing.assert_close(method(batch, CONFIG), want)


def test_score_l2_weights_by_the_best_class_of_the_mean_of_both_branches():
    batch = batch_of([])
    other = {s: Prediction(p.scores.flip(1), p.boxes) for s, p in batch.teacher_heads[0].items()}
    both = replace(batch, teacher_heads=[batch.teacher_heads[0], other])
    want = 0
    for s in (8, 16):
        score = ((batch.teacher_heads[0][s].scores + other[s].scores) / 2).sigmoid().max(1).values
        want += score_weighted(F.conv2d(batch.student[s], *batch.adapters["cwd"][s][0]), batch.teacher[s], score)
    torch.testing.assert_close(score_l2(both, CONFIG), want)
