"""Which tiles of a frame are worth looking at, by what the frame before it showed.

In: a frame's windows and the boxes of the frame before. Out: some of the windows.
Invariant: every window is looked at in one frame of any `EVERY` that follow each other, and all in the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kd.scoring.detection_metrics import Detections
from kd.scoring.frames import View
from kd.scoring.full_frame import EDGE_PX
from kd.scoring.shots import Shot

EVERY = 8  # frames within which each window has its turn, an eighth of them in each: no frame takes longer for it
FAINT = 0.6  # of the least confidence: a box that was too faint to be told may be sure in the next frame
MARGIN = 1 / 8  # of a tile's side: how far a light may move or grow from one frame to the next


class Attention:
    """What was seen in the last frame of the sequence, and so where to look in the next one."""

    def __init__(self, tile_px: int) -> None:
        self.margin_px = MARGIN * tile_px
        self._last: tuple[Path, tuple[int, int]] | None = None  # sequence and size of the last frame
        self._number = 0
        self._boxes_xyxy = np.empty((0, 4))

    def choose(self, shot: Shot, views: Sequence[View]) -> list[View]:
        """The windows to look at, in their order: all in the first frame of a sequence."""
        this = shot.sequence, shot.size_wh
        self._number = self._number + 1 if this == self._last else 0
        self._last = this
        if not self._number:
            return list(views)
        in_turn = np.arange(len(views)) % EVERY == self._number % EVERY
        around = self._boxes_xyxy + self.margin_px * np.array([-1, -1, 1, 1])
        return [views[i] for i in np.flatnonzero(in_turn | covering(around, views, shot.size_wh))]

    def saw(self, found: Sequence[Detections], views: Sequence[View]) -> None:
        """Take in what was found in each of the windows that were chosen last, faint boxes too."""
        boxes = [tile.boxes_xyxy + np.tile(view.window_xyxy[:2], 2) for tile, view in zip(found, views, strict=True)]
        self._boxes_xyxy = np.concatenate(boxes) if boxes else np.empty((0, 4))


def covering(boxes_xyxy: np.ndarray, views: Sequence[View], size_wh: tuple[int, int]) -> np.ndarray:
    """Few windows, of which one has all of each box [N, 4] away from its inner edges, or all that it touches: [V].

    A greedy cover: the window with the most boxes first.
    """
    windows, size = np.array([view.window_xyxy for view in views], float), np.array(size_wh, float)
    boxes = boxes_xyxy.clip(0, np.tile(size, 2))
    low = np.where(windows[:, :2] > 0, windows[:, :2] + EDGE_PX, -np.inf)
    high = np.where(windows[:, 2:] < size, windows[:, 2:] - EDGE_PX, np.inf)
    whole = ((boxes[:, None, :2] > low) & (boxes[:, None, 2:] < high)).all(2)  # [N, V]
    touched = ((boxes[:, None, :2] < windows[:, 2:]) & (boxes[:, None, 2:] > windows[:, :2])).all(2)
    left = whole.any(1)
    chosen = touched[~left].any(0)
    left &= ~(whole & chosen).any(1)
    while left.any():
        best = whole[left].sum(0).argmax()
        chosen[best] = True
        left &= ~whole[:, best]
    return chosen
