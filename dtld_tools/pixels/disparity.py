"""A disparity image of DTLD and boxes of its frame in, distances in metres out.

A disparity image shows the left camera's image after rectification, at half its size: 1024x440 for 2048x1024, whose
lowest 144 rows it lacks. So a box is rectified before it is looked up, and a disparity counts pixels of half the size
(the official parser's `map_labels_to_disparity_image`, and its issue 14). The numbers are those of calibration/*.yml in
https://github.com/julimueller/dtld_parsing (commit 065f540); a frame of another width is the same camera, scaled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from dtld_tools.errors import UsageError
from dtld_tools.types import Box

WIDTH_PX = 2048  # of the frames that the calibration is for
DISPARITY_PX = WIDTH_PX // 2  # the width of a disparity image
CAMERA = np.array([[2290.51, 0, 1066.94], [0, 2290.51, 477.152], [0, 0, 1]])  # intrinsic_left.yml
DISTORTION = np.array([-0.036004, 0, 0, 0, 0])  # distortion_left.yml
RECTIFICATION = np.array(  # rectification_left.yml
    [[0.999999, -0.001186, 0.000677], [0.001181, 0.999972, 0.007356], [-0.000686, -0.007355, 0.999973]]
)
CENTRE_PX = 1051.294655, 458.462746  # projection_left.yml
INVALID = 65535
DISPARITY_BITS = 0x0FFF  # the four above them say how sure the matching was
STEPS_PER_PX = 16


@dataclass(frozen=True, slots=True)
class Stereo:
    """The rectified pair of cameras: metres between them, and the focal length in pixels of a whole frame.

    By default DTLD's: projection_left.yml has the focal length, projection_right.yml its product with the baseline,
    473.977505882 px m.
    """

    baseline_m: float = 0.208828
    focal_px: float = 2269.699585

    def __post_init__(self) -> None:
        if not 0 < self.baseline_m <= 100:
            raise UsageError(f"--baseline: got {self.baseline_m}, expected metres between the cameras, such as 0.2")
        if not 0 < self.focal_px <= 1e6:
            raise UsageError(f"--focal-length: got {self.focal_px}, expected pixels, such as 2270")

    @property
    def projection(self) -> np.ndarray:
        """3x3, from a direction to pixels of the rectified frame."""
        return np.array([[self.focal_px, 0, CENTRE_PX[0]], [0, self.focal_px, CENTRE_PX[1]], [0, 0, 1]])

    def distances(self, disparity: np.ndarray, boxes: Sequence[Box], width_px: int) -> list[float | None]:
        """Metres along the optical axis to what boxes of a frame of this width show; None where nothing is measured.

        ``disparity``: HxW uint16 as stored. A box has the median of the disparities that it touches.

        >>> flat = np.full((440, 1024), 160, np.uint16)  # ten pixels of the image at half the size everywhere
        >>> Stereo().distances(flat, [Box(900, 300, 910, 330)], 2048)
        [23.7]
        """
        if not boxes:
            return []
        scale, binning = width_px / WIDTH_PX, width_px / disparity.shape[1]
        corners = np.array(boxes, float).reshape(-1, 1, 2) / scale
        rectified = cv2.undistortPoints(corners, CAMERA, DISTORTION, R=RECTIFICATION, P=self.projection)
        depth_px = self.focal_px * scale * self.baseline_m / binning * STEPS_PER_PX
        found: list[float | None] = []
        for x1, y1, x2, y2 in rectified.reshape(-1, 4) * scale / binning:
            left, top, right, bottom = (max(0, number) for number in map(int, (x1, y1, math.ceil(x2), math.ceil(y2))))
            stored = disparity[top:bottom, left:right]
            steps = stored[stored != INVALID] & DISPARITY_BITS
            steps = steps[steps > 0]
            found.append(round(depth_px / float(np.median(steps)), 2) if steps.size else None)
        return found
