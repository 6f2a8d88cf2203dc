"""Disparities to metres: against the formula, and against a light's way through the camera the other way round."""

import cv2
import numpy as np
import pytest

from dtld_tools.errors import ImageError, UsageError
from dtld_tools.pixels.disparity import INVALID, Stereo
from dtld_tools.pixels.images import read_disparity
from dtld_tools.types import Box

BASELINE_TIMES_FOCAL = 473.977505882  # px m, of projection_right.yml
MIDDLE = Box(1000, 400, 1020, 440)


def flat(stored, height=440, width=1024):
    return np.full((height, width), stored, np.uint16)


def distance(disparity, box=MIDDLE, width_px=2048, **cameras):
    (found,) = Stereo(**cameras).distances(disparity, [box], width_px)
    return found


def in_frame(u, v):
    """Where a pixel of the rectified frame comes from, by the formulas of a camera, not by OpenCV."""
    rotation = np.array(
        [[0.999999, -0.001186, 0.000677], [0.001181, 0.999972, 0.007356], [-0.000686, -0.007355, 0.999973]]
    )
    x, y, z = np.linalg.inv(rotation) @ [(u - 1051.294655) / 2269.699585, (v - 458.462746) / 2269.699585, 1]
    x, y = x / z, y / z
    bent = 1 - 0.036004 * (x * x + y * y)
    return 2290.51 * x * bent + 1066.94, 2290.51 * y * bent + 477.152


@pytest.mark.parametrize("pixels", [1, 4.75, 23.6875, 255.9375])
def test_a_distance_by_the_formula(pixels):
    """The focal length counts pixels of the whole frame, the disparity those of half its size."""
    assert distance(flat(pixels * 16)) == pytest.approx(BASELINE_TIMES_FOCAL / (2 * pixels), abs=0.005)


def test_the_upper_bits_are_not_part_of_it():
    assert distance(flat(160 | 0xA000)) == distance(flat(160))


@pytest.mark.parametrize(("u", "v"), [(40, 30), (1051, 458), (1500, 200), (2030, 860)])
def test_a_box_is_looked_up_where_the_rectified_frame_shows_it(u, v):
    disparity = flat(INVALID)
    disparity[v // 2 - 2 : v // 2 + 3, u // 2 - 2 : u // 2 + 3] = 320
    x, y = in_frame(u, v)
    assert distance(disparity, Box(x - 3, y - 3, x + 3, y + 3)) == pytest.approx(BASELINE_TIMES_FOCAL / 40, abs=0.005)
    assert distance(disparity, Box(x - 3, y + 9, x + 3, y + 15)) is None


def test_the_median_counts_and_what_is_invalid_does_not():
    """Columns of 20 px about the box's middle: a third of it near, a third far, a third unknown."""
    x, y = in_frame(1000, 400)
    box = Box(x - 30, y - 20, x + 30, y + 20)
    disparity = flat(INVALID)
    disparity[:, 480:495], disparity[:, 495:516] = 800, 80
    assert distance(disparity, box) == pytest.approx(BASELINE_TIMES_FOCAL / 10, abs=0.01)
    disparity[:, 495:516] = INVALID
    assert distance(disparity, box) == pytest.approx(BASELINE_TIMES_FOCAL / 100, abs=0.01)
    disparity[:, 480:495] = 0xF000  # no disparity is infinitely far
    assert distance(disparity, box) is None


def test_the_lowest_rows_and_what_rectification_cuts_off_have_none():
    assert distance(flat(160), Box(1000, 900, 1020, 960)) is None
    assert distance(flat(160), Box(0, 0, 5, 9)) is None
    assert distance(flat(160), Box(0, 0, 60, 9)) == distance(flat(160), Box(2030, 800, 2048, 960)) == 23.7


def test_no_boxes_no_distances():
    assert Stereo().distances(flat(160), [], 2048) == []


@pytest.mark.parametrize(("width_px", "half"), [(1024, 0.5), (256, 0.125)])
def test_a_smaller_frame_is_the_same_camera(width_px, half):
    small = cv2.resize(flat(160), None, fx=half, fy=half, interpolation=cv2.INTER_NEAREST) * half
    box = Box(*(half * side for side in MIDDLE))
    assert distance(small.astype(np.uint16), box, width_px) == 23.7


def test_other_cameras():
    assert distance(flat(160), baseline_m=0.417656) == 47.4
    assert distance(flat(160), focal_px=2 * 2269.699585) == 47.4


@pytest.mark.parametrize("values", [(0, 2270), (-1, 2270), (float("nan"), 2270), (0.2, 0), (0.2, 1e9)])
def test_values_that_no_camera_has(values):
    with pytest.raises(UsageError, match=r"^--(baseline|focal-length): got .*, expected "):
        Stereo(*values)


def test_only_a_disparity_image_is_one(tmp_path):
    path = tmp_path / "a_nativeV2.tiff"
    for pixels in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.uint16)):
        cv2.imwrite(str(path), pixels)
        with pytest.raises(ImageError, match="expected a 16-bit disparity image"):
            read_disparity(path)
    cv2.imwrite(str(path), flat(0xFFFF, 3, 5))
    assert (read_disparity(path) == flat(0xFFFF, 3, 5)).all()
