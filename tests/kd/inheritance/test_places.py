"""Where a convolution is looked at: anywhere, and twice as often where the teacher sees something."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

from kd.inheritance.places import draw, seen


def test_a_detector_is_as_sure_of_a_cell_as_its_surest_level():
    scores = torch.full((1, 2, 16 + 4), -9.0)
    scores[0, 1, 5] = 3.0  # of the finer level: row 1, column 1
    scores[0, 0, 16 + 3] = 1.0  # of the coarser one: the last of its four cells, which are four finer ones each
    preds = {
        "feats": [torch.zeros(1, 8, 4, 4), torch.zeros(1, 8, 2, 2)],
        "scores": scores,
        "boxes": torch.zeros(1, 64, 20),
    }
    sure = seen((None, {"one2many": preds, "one2one": None}), torch.nn.Identity())[0, 0]
    expected = torch.full((4, 4), -9.0).sigmoid()
    expected[1, 1], expected[2:, 2:] = torch.tensor(3.0).sigmoid(), torch.tensor(1.0).sigmoid()
    torch.testing.assert_close(sure, expected)


@pytest.mark.parametrize("size", [(32, 32), (16, 16), (8, 8)])
def test_half_of_the_places_lie_where_the_teacher_is_sure(size):
    sure = torch.zeros(500, 1, 16, 16)
    sure[:, :, :8, :4] = 0.3  # an eighth of each image
    drawn = draw(sure, size, 3, torch.Generator().manual_seed(3))
    assert drawn.shape == (500, 3)
    assert all(len(set(places)) == 3 for places in drawn.tolist())
    rows, columns = drawn // size[1], drawn % size[1]
    inside = (rows < size[0] // 2) & (columns < size[1] // 4)
    assert 0.5 < inside.float().mean() < 0.6  # weights of 1 + 8 in an eighth of the image: 9/16 of the mass


def test_a_teacher_that_sees_nothing_leaves_all_places_alike_and_small_maps_are_taken_whole():
    drawn = draw(torch.zeros(2, 1, 4, 4), (3, 5), 99, torch.Generator())
    assert drawn.sort(1).values.tolist() == [list(range(15))] * 2
