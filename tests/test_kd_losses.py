"""The imitation term: by hand, against the dense form, and where it must be zero."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

import torch.nn.functional as F  # noqa: E402

from kd.config import DEFAULT_WEIGHTS, FgfiConfig, TrainConfig  # noqa: E402
from kd.losses import METHODS, Batch, fgfi, fgfi_masks, imitation  # noqa: E402
from kd.masks import Grid, imitation_masks  # noqa: E402

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
    weight = {s: torch.randn(4, 3, 1, 1, generator=generator) for s in strides}
    bias = {s: torch.randn(4, generator=generator) for s in strides}
    rows = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 5)
    return Batch(student, teacher, weight, bias, rows[:, 1:], rows[:, 0].long())


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
        dense(batch.student[s], batch.teacher[s], mask, batch.weight[s], batch.bias[s])
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
        dense(batch.student[s], batch.teacher[s], mask, batch.weight[s], batch.bias[s])
        for s, mask in zip((8, 16), masks, strict=True)
    )
    torch.testing.assert_close(fgfi(batch, own), want)


def test_fgfi_without_boxes_is_zero():
    assert fgfi(batch_of([]), CONFIG).item() == 0


def test_every_method_has_a_default_weight():
    assert METHODS.keys() == DEFAULT_WEIGHTS.keys()
