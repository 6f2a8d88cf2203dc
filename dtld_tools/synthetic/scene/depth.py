"""What a pair of cameras would measure in a view: a disparity image as DTLD stores them.

In: a `View`. Out: uint16 [440, 1024], of the rectified frame at half its size (see `dtld_tools.pixels.disparity`).
Invariant: nearer things hide farther ones, as in the painting. Houses are left out: like sky, they have no disparity.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from dtld_tools.pixels.disparity import (
    CAMERA,
    DISPARITY_BITS,
    DISTORTION,
    INVALID,
    RECTIFICATION,
    STEPS_PER_PX,
    Stereo,
)
from dtld_tools.synthetic.scene.world import HEIGHT_PX, WIDTH_PX, Sighting, View

BINNING = 2
SIZE_WH = 1024, 440
SURE = 0x8000  # of the bits that say how sure the matching was


def disparity_image(view: View) -> np.ndarray:
    """The stored image; `INVALID` where nothing stands."""
    stereo = Stereo()
    depth_m = cv2.remap(_depth(view), *_places(), cv2.INTER_NEAREST, borderValue=float("inf"))
    steps = np.rint(stereo.focal_px * stereo.baseline_m / BINNING * STEPS_PER_PX / depth_m).astype(np.uint16)
    return np.where((steps > 0) & (steps <= DISPARITY_BITS), steps | SURE, INVALID).astype(np.uint16)


def _depth(view: View) -> np.ndarray:
    """Metres along the optical axis [1024, 2048] float32, infinite where nothing stands."""
    camera = view.camera
    depth = np.full((HEIGHT_PX, WIDTH_PX), np.inf, np.float32)
    below_horizon = np.arange(HEIGHT_PX) + 0.5 - camera.horizon_px
    is_ground = below_horizon > 0
    depth[is_ground] = (camera.focal_px * camera.y_m / below_horizon[is_ground])[:, None]
    for thing in view.things:
        masses = (thing.signal if isinstance(thing, Sighting) else thing).masses()
        centres = camera.project(masses[:, :3])
        halves = masses[:, 3:5] * camera.focal_px / (masses[:, 2:3] - camera.z_m)
        corners = np.rint(np.hstack([centres - halves, centres + halves])).clip(0, [WIDTH_PX, HEIGHT_PX] * 2)
        farthest_first = np.argsort(-masses[:, 2], kind="stable")
        for (x1, y1, x2, y2), z in zip(corners[farthest_first].astype(int), masses[farthest_first, 2], strict=True):
            depth[y1:y2, x1:x2] = camera.depth(z)
    return depth


@lru_cache
def _places() -> tuple[np.ndarray, np.ndarray]:
    """Where the disparity image's pixels lie in the frame: x and y [440, 1024] float32."""
    rectified_wh = SIZE_WH[0] * BINNING, SIZE_WH[1] * BINNING
    maps = cv2.initUndistortRectifyMap(
        CAMERA, DISTORTION, RECTIFICATION, Stereo().projection, rectified_wh, cv2.CV_32FC1
    )
    x, y = (np.ascontiguousarray(places[::BINNING, ::BINNING]) for places in maps)
    return x, y
