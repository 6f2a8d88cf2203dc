"""Clipping: worked by hand on every side, then against plain min/max arithmetic on random boxes."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dtld_tools.geometry import clip_boxes, to_image
from dtld_tools.types import Box, Window
from tests.dtld_data import settings

FRAME = Window(0, 0, 2048, 1024)
TILE = Window(469, 384, 640, 640)


@pytest.mark.parametrize(
    ("box", "window", "expected"),
    [
        ((100, 200, 120, 240), FRAME, (100, 200, 120, 240)),  # inside
        ((-5, 200, 10, 240), FRAME, (0, 200, 10, 240)),  # left
        ((100, -8, 110, 12), FRAME, (100, 0, 110, 12)),  # top
        ((2040, 200, 2060, 240), FRAME, (2040, 200, 2048, 240)),  # right
        ((100, 1000, 110, 1044), FRAME, (100, 1000, 110, 1024)),  # bottom
        ((-5, -8, 10, 12), FRAME, (0, 0, 10, 12)),  # the four corners: both sides must be cut
        ((2040, -8, 2060, 12), FRAME, (2040, 0, 2048, 12)),
        ((-5, 1000, 10, 1044), FRAME, (0, 1000, 10, 1024)),
        ((2040, 1000, 2060, 1044), FRAME, (2040, 1000, 2048, 1024)),
        ((-50, 500, 3000, 520), FRAME, (0, 500, 2048, 520)),  # left and right at once
        ((-9, -9, 9999, 9999), FRAME, (0, 0, 2048, 1024)),  # larger than the frame
        ((460, 380, 480, 400), TILE, (469, 384, 480, 400)),  # a tile's own corner
        ((1100, 1020, 1120, 1030), TILE, (1100, 1020, 1109, 1024)),
        ((-20, 10, 0, 30), FRAME, None),  # touches the edge, no area inside
        ((2048, 10, 2060, 30), FRAME, None),
        ((10, -30, 20, 0), FRAME, None),
        ((10, 1024, 20, 1030), FRAME, None),
        ((3000, 10, 3010, 30), FRAME, None),  # far away
        ((10, 10, 10, 30), FRAME, None),  # no width
        ((10, 30, 20, 30), FRAME, None),  # no height
        ((20, 10, 10, 30), FRAME, None),  # negative width
        ((20, 30, 10, 10), FRAME, None),  # both negative: not a box turned round
    ],
)
def test_by_hand(box, window, expected):
    assert clip_boxes([Box(*box)], window) == [expected and Box(*expected)]


def test_no_boxes():
    assert clip_boxes([], FRAME) == []


def test_answers_stay_in_their_places():
    boxes = [Box(-9, -9, -1, -1), Box(1, 1, 2, 2), Box(5, 5, 5, 5), Box(3, 3, 4, 4)]
    assert clip_boxes(boxes, FRAME) == [None, Box(1, 1, 2, 2), None, Box(3, 3, 4, 4)]


def test_a_box_may_be_the_window():
    assert clip_boxes([Box(0, 0, 9, 9)], Box(2.5, -1, 4, 5)) == [Box(2.5, 0, 4, 5)]


coordinate = st.one_of(
    st.integers(-50, 2100),
    st.floats(-1e4, 1e4, allow_nan=False),
    st.sampled_from([0, 469, 640, 1109, 384, 1024, 2048, -1e6, 1e6, 1e12]),
)
boxes = st.builds(Box, coordinate, coordinate, coordinate, coordinate)
windows = st.builds(Window, st.integers(0, 1500), st.integers(0, 800), st.integers(1, 2048), st.integers(1, 1024))


@given(st.lists(boxes, max_size=6), st.one_of(windows, st.just(FRAME)))
@example([Box(0.1, 0.1, 0.1 + 1e-12, 0.2)], FRAME)
@settings(max_examples=250)
def test_equals_plain_arithmetic(given_boxes, window):
    def oracle(box):
        x1, y1 = max(box.x1, window.x), max(box.y1, window.y)
        x2, y2 = min(box.x2, window.x + window.w), min(box.y2, window.y + window.h)
        return (x1, y1, x2, y2) if box.x1 < box.x2 and box.y1 < box.y2 and x1 < x2 and y1 < y2 else None

    assert clip_boxes(given_boxes, window) == [oracle(box) for box in given_boxes]


def test_to_image_moves_then_scales():
    # A half of a 2048x1024 frame shown at 640: scale 0.625.
    assert to_image(Box(1040, 160, 1056, 192), Window(1024, 0, 1024, 1024), 0.625) == Box(10, 100, 20, 120)
    assert to_image(Box(470, 384, 480, 404), TILE, 1.0) == Box(1, 0, 11, 20)


@given(windows, st.floats(0.1, 10), st.tuples(*[st.floats(-1000, 3000)] * 4))
def test_to_image_and_back(window, scale, corners):
    there = to_image(Box(*corners), window, scale)
    back = [value / scale + start for value, start in zip(there, window[:2] * 2, strict=True)]
    assert back == pytest.approx(corners, abs=1e-6)


def test_box_of_a_label_and_its_area():
    assert Box.from_xywh(-3, 4, 10, 20) == Box(-3, 4, 7, 24)
    assert Box(-3, 4, 7, 24).area == 200
    assert Box(7, 24, -3, 4).area == 0  # two negative sides are not an area
