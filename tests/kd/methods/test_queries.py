"""Matched queries against all ways to match them, and against the formulas that they are made of."""

from __future__ import annotations

from itertools import permutations

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import generalized_box_iou

from kd.methods.batch import Queries
from kd.methods.heads import soft_targets
from kd.methods.queries import GIOU, L1, differences, giou, pairs, query_divergence


def draw(*shape, classes=3, seed=0):
    """Queries [*shape, .] whose boxes lie in the image."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(*shape, 2, generator=generator) * 0.5 + 0.25
    side = torch.rand(*shape, 2, generator=generator) * 0.3 + 0.05
    return Queries(torch.randn(*shape, classes, generator=generator), torch.cat((centre, side), -1))


def of(queries, *index):
    return Queries(*(values[index] for values in queries))


def test_a_difference_is_of_scores_and_of_boxes():
    student, teacher = draw(4), draw(5, seed=1)
    found = differences(student, teacher)
    assert found.shape == (4, 5)
    for n in range(4):
        for m in range(5):
            scores = soft_targets(student.logits[n : n + 1], teacher.logits[m : m + 1], temperature=1.0)
            apart = (student.boxes[n] - teacher.boxes[m]).abs().sum()
            corners = [
                torch.cat((boxes[i, :2] - boxes[i, 2:] / 2, boxes[i, :2] + boxes[i, 2:] / 2))[None]
                for boxes, i in ((student.boxes, n), (teacher.boxes, m))
            ]
            expected = scores + L1 * apart + GIOU * (1 - generalized_box_iou(*corners)[0, 0])
            torch.testing.assert_close(found[n, m], expected)


def test_boxes_without_area_have_a_finite_overlap():
    assert giou(torch.zeros(4), torch.zeros(4)).isfinite()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 5))
def test_of_all_ways_to_match_the_cheapest_is_taken(seed, own, theirs):
    student, teacher = draw(2, 2, own, seed=seed), draw(2, theirs, seed=seed + 1)
    weights, order = teacher.logits.sigmoid().amax(-1).sort(descending=True)
    total, kept = 0.0, min(own, theirs)
    for image in range(2):
        confident = of(teacher, image, order[image, :kept])
        for layer in range(2):
            costs = differences(of(student, image, layer), confident) * weights[image, :kept]
            total += min(sum(costs[n, m] for m, n in enumerate(way)) for way in permutations(range(own), kept))
    expected = total / 2 / weights[:, :kept].sum().clamp(min=1)
    torch.testing.assert_close(query_divergence(student, teacher), expected)


def test_equal_queries_in_another_order_differ_by_nothing():
    teacher = draw(2, 6)
    student = Queries(*(values.flip(1)[:, None].clone().requires_grad_() for values in teacher))
    assert pairs(of(student, slice(None), 0), teacher, torch.ones(2, 6)).tolist() == [[5, 4, 3, 2, 1, 0]] * 2
    term = query_divergence(student, teacher)
    assert term.detach() == pytest.approx(0, abs=1e-5)
    term.backward()
    assert all(values.grad.isfinite().all() for values in student)


def test_every_layer_and_matched_query_learns_and_no_teacher_does():
    student = Queries(*(values.requires_grad_() for values in draw(2, 3, 4)))
    teacher = Queries(*(values.requires_grad_() for values in draw(2, 6, seed=1)))  # the two least sure are left out
    term = query_divergence(student, teacher)
    term.backward()
    assert all(values.grad.abs().sum(-1).gt(0).all() for values in student)
    assert all(values.grad is None for values in teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = query_divergence(student, teacher)
    assert again.dtype == torch.float32
    torch.testing.assert_close(again, term)


def test_a_teacher_that_is_sure_of_nothing_counts_as_one_query_at_most():
    student, teacher = draw(1, 1, 4), draw(1, 4, seed=1)
    unsure = Queries(teacher.logits - 20, teacher.boxes)
    assert 0 <= float(query_divergence(student, unsure)) < 1e-5


def test_what_is_not_finite_stays_so_and_is_matched_all_the_same():
    student, teacher = draw(1, 1, 3), draw(1, 3, seed=1)
    student.logits[0, 0, 1] = float("nan")
    assert query_divergence(student, teacher).isnan()
