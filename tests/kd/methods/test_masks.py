"""The imitation mask against a loop over boxes, anchors and cells, and by hand."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

from hypothesis import given, settings
from hypothesis import strategies as st

from kd.methods.masks import YOLOV5_PRIORS, Grid, anchor_priors, imitation_masks

GRIDS = (Grid(8, 6, 9), Grid(16, 3, 5), Grid(32, 2, 3))


def naive_ious(box, grid, priors=YOLOV5_PRIORS):
    """IoU of a box with each anchor of each cell, by the book: {(row, column, k): iou}."""
    x1, y1, x2, y2 = box
    ious = {}
    for row in range(grid.height):
        for column in range(grid.width):
            cx, cy = (column + 0.5) * grid.stride, (row + 0.5) * grid.stride
            for k, (w, h) in enumerate(anchor_priors(grid.stride, priors)):
                ow = min(x2, cx + w / 2) - max(x1, cx - w / 2)
                oh = min(y2, cy + h / 2) - max(y1, cy - h / 2)
                inter = max(ow, 0) * max(oh, 0)
                union = (x2 - x1) * (y2 - y1) + w * h - inter
                ious[row, column, k] = inter / union
    return ious


def naive_masks(boxes, image_index, images, grids, threshold, assigned, priors=YOLOV5_PRIORS):
    """Masks and, per level, the cells whose IoU is so near the threshold that rounding decides."""
    masks = [torch.zeros(images, g.height, g.width, dtype=torch.bool) for g in grids]
    close = [torch.zeros_like(mask) for mask in masks]
    for box, image in zip(boxes, image_index, strict=True):
        levels = [naive_ious(box, grid, priors) for grid in grids]
        best = [max(ious.values()) for ious in levels]
        for i, ious in enumerate(levels):
            least = threshold * (max(best) if assigned else best[i])
            for (row, column, _), iou in ious.items():
                masks[i][image, row, column] |= iou > least
                close[i][image, row, column] |= iou > 0 and abs(iou - least) < 1e-9
    return masks, close


# Corners beyond a 72 x 48 image on every side; equal corners give degenerate boxes, 0.01 tiny ones.
coordinate = st.floats(-40, 120, allow_nan=False) | st.sampled_from([0.0, 8.0, 36.0])
side = st.sampled_from([0.0, 0.01, 3.0, 13.0, 40.0, 400.0]) | st.floats(0, 150)
corners = st.tuples(coordinate, coordinate, side, side).map(lambda v: (v[0], v[1], v[0] + v[2], v[1] + v[3]))

# Also one prior of a level, and levels of unequal count.
prior_sizes = st.lists(st.tuples(st.floats(2, 90), st.floats(2, 90)), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(
    boxes=st.lists(st.tuples(corners, st.integers(0, 2)), max_size=5),
    threshold=st.sampled_from([0.2, 0.5, 0.9]),
    assigned=st.booleans(),
    priors=st.just(YOLOV5_PRIORS) | st.dictionaries(st.sampled_from([8, 16, 32]), prior_sizes, min_size=1),
)
def test_equals_the_naive_loop(boxes, threshold, assigned, priors):
    xyxy = [box for box, _ in boxes]
    index = [image for _, image in boxes]
    masks = imitation_masks(
        torch.tensor(xyxy, dtype=torch.float64).reshape(-1, 4), torch.tensor(index, dtype=torch.long), 3, GRIDS,
        threshold=threshold, assigned=assigned, priors=priors,
    )  # fmt: skip
    expected, close = naive_masks(xyxy, index, 3, GRIDS, threshold, assigned, priors)
    for mask, want, skip in zip(masks, expected, close, strict=True):
        assert torch.equal(mask & ~skip, want & ~skip)


def test_worked_by_hand():
    # A 10 x 13 box centred on the cell (row 1, column 2) of stride 8 is an anchor: IoU 1 there. One cell aside the
    # overlap is 2 x 13 = 26 of 234: IoU 1/9, one cell up 10 x 5 = 50 of 210. The 16 x 30 anchor around the box:
    # 130 / 480 = 0.27; the 33 x 23 one less. So at threshold 0.5 only that cell is marked.
    box = torch.tensor([[20 - 5, 12 - 6.5, 20 + 5, 12 + 6.5]])
    (mask,) = imitation_masks(box, torch.tensor([0]), 1, [Grid(8, 4, 5)])
    assert mask.nonzero().tolist() == [[0, 1, 2]]
    # At 0.2 the limit is 0.2: also up and down (50 / 210 = 0.24), and where the 16 x 30 anchor still holds the box
    # wholly along y and 10 of 10 px along x: 130 / 480 = 0.27 in rows 0, 2 (13 of 13 px overlap).
    (mask,) = imitation_masks(box, torch.tensor([0]), 1, [Grid(8, 4, 5)], threshold=0.2)
    assert [0, 0, 2] in mask.nonzero().tolist()
    assert [0, 2, 2] in mask.nonzero().tolist()
    assert [0, 1, 4] not in mask.nonzero().tolist()


def test_rows_are_y_and_columns_are_x():
    # A wide flat box in a grid higher than wide: marked cells lie along x. A transposed mask has them along y.
    (mask,) = imitation_masks(torch.tensor([[0.0, 60.0, 40.0, 68.0]]), torch.tensor([0]), 1, [Grid(8, 12, 5)])
    rows, columns = mask[0].nonzero(as_tuple=True)
    assert mask.shape == (1, 12, 5)
    assert rows.float().mean() * 8 + 4 == pytest.approx(64, abs=4)
    assert columns.max() - columns.min() > rows.max() - rows.min()


def test_without_boxes_nothing_is_marked():
    masks = imitation_masks(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), 2, GRIDS)
    assert [tuple(mask.shape) for mask in masks] == [(2, 6, 9), (2, 3, 5), (2, 2, 3)]
    assert not any(mask.any() for mask in masks)


def test_boxes_mark_their_own_image_only():
    box = [20.0, 20.0, 40.0, 44.0]
    both = imitation_masks(torch.tensor([box, box]), torch.tensor([2, 0]), 4, GRIDS)
    alone = imitation_masks(torch.tensor([box]), torch.tensor([0]), 1, GRIDS)
    for mask, one in zip(both, alone, strict=True):
        assert torch.equal(mask[[0, 2]], one.expand(2, -1, -1))
        assert not mask[[1, 3]].any()


def test_many_boxes_mark_what_each_marks_alone():
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(133, 2, generator=generator) * 50
    boxes = torch.cat((low, low + 8), 1)
    index = torch.arange(len(boxes)) % 3
    together = imitation_masks(boxes, index, 3, GRIDS)
    for level in range(3):
        one_by_one = torch.zeros_like(together[level])
        for box, image in zip(boxes, index, strict=True):
            one_by_one |= imitation_masks(box[None], image[None], 3, GRIDS)[level]
        assert torch.equal(together[level], one_by_one)


def test_assigned_leaves_a_small_box_to_the_fine_level():
    small = torch.tensor([[30.0, 20.0, 40.0, 33.0]])
    per_level = imitation_masks(small, torch.tensor([0]), 1, GRIDS)
    assigned = imitation_masks(small, torch.tensor([0]), 1, GRIDS, assigned=True)
    assert all(mask.any() for mask in per_level)
    assert assigned[0].any()
    assert not assigned[2].any()


def test_priors_of_other_strides_keep_their_size_in_cells():
    assert anchor_priors(8) == YOLOV5_PRIORS[8]
    assert anchor_priors(4) == ((5.0, 6.5), (8.0, 15.0), (16.5, 11.5))  # 10x13 is not divided to nothing
    assert anchor_priors(64) == ((232.0, 180.0), (312.0, 396.0), (746.0, 652.0))


def test_priors_of_ones_own_take_the_place_of_yolov5s():
    assert anchor_priors(16, {8: ((4, 9),), 16: ((7, 20), (9, 30))}) == ((7, 20), (9, 30))
    assert anchor_priors(32, {8: ((4, 9),), 16: ((7, 20),)}) == ((14.0, 40.0),)  # the nearest stride's, scaled
    assert anchor_priors(4, {8: ((4, 9),)}) == ((2.0, 4.5),)
    # A 4 x 9 box is a 4 x 9 prior: IoU 1 in its cell, 0 at the cells 8 px aside, 1 / 17 at those above and below.
    box = torch.tensor([[18.0, 7.5, 22.0, 16.5]])
    (mask,) = imitation_masks(box, torch.tensor([0]), 1, [Grid(8, 4, 5)], threshold=0.1, priors={8: ((4, 9),)})
    assert mask.nonzero().tolist() == [[0, 1, 2]]
    (mask,) = imitation_masks(box, torch.tensor([0]), 1, [Grid(8, 4, 5)], threshold=0.1)
    assert mask.sum() > 1  # YOLOv5's are larger than the box, and reach it from the cells around


def test_a_box_whose_area_underflows_marks_nothing():
    box = torch.tensor([[0.0, 0.0, 0.01, 5e-324]], dtype=torch.float64)
    assert not any(mask.any() for mask in imitation_masks(box, torch.tensor([0]), 1, GRIDS))
