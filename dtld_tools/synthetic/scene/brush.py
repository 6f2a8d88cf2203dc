"""The brush: world shapes in a weather's light -> pixels.

In: polygons and circles in metres, colours as they are in white light. Out: a `Painting`: sRGB pixels and the
lamps that glow. Invariant: a shape behind the near plane leaves no pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np

from dtld_tools.synthetic.scene.world import HEIGHT_PX, RGB, WIDTH_PX, View

NEAR_M = 1.5  # nothing nearer than this is painted


class Glow(NamedTuple):
    """A lamp that outshines the film: centre and radius in pixels, colour, share of it that is seen."""

    x: float
    y: float
    radius: float
    colour: RGB
    strength: float


class Light(NamedTuple):
    """A weather: sky colours as seen, daylight on surfaces (linear RGB), haze, and how the day is."""

    sky_top: RGB
    sky_low: RGB
    daylight: tuple[float, float, float]
    haze_m: float
    cloud: float
    shadow: float  # how much of the daylight the sun's shadow takes
    lit_windows: float


LIGHTS: dict[str, Light] = {
    "clear": Light((104, 150, 206), (204, 220, 234), (1.28, 1.22, 1.1), 430, 46, 0.5, 0.01),
    "overcast": Light((176, 183, 190), (216, 218, 220), (0.84, 0.86, 0.9), 270, 22, 0.12, 0.04),
    "dusk": Light((44, 56, 98), (224, 150, 108), (0.27, 0.25, 0.30), 340, 26, 0.1, 0.34),
}


@dataclass
class Painting:
    """Pixels [1024, 2048, 3] uint8 sRGB, and what will glow."""

    image: np.ndarray
    glows: list[Glow] = field(default_factory=list)


class Brush:
    """Paints world shapes in the weather's light, hazier with distance."""

    def __init__(self, view: View) -> None:
        self.camera = view.camera
        self.light = LIGHTS[view.weather]
        self.painting = Painting(np.zeros((HEIGHT_PX, WIDTH_PX, 3), np.uint8))
        self._haze = [(channel / 255) ** 2.2 for channel in self.light.sky_low]

    def shade(self, colour: RGB, depth_m: float, gain: float = 1.0) -> RGB:
        """The colour of a surface as it looks from here."""
        clear = math.exp(-((depth_m / self.light.haze_m) ** 1.5))  # slow at first: near shadows stay dark
        red, green, blue = (
            round(255 * min(1.0, (c / 255) ** 2.2 * day * gain * clear + haze * (1 - clear)) ** (1 / 2.2))
            for c, day, haze in zip(colour, self.light.daylight, self._haze, strict=True)
        )
        return red, green, blue

    def polygons(self, shapes_xyz: np.ndarray | list, colour: RGB) -> None:
        """Fills world polygons [S, N, 3] with a colour that has been shaded already."""
        shapes = np.asarray(shapes_xyz, float)
        if not len(shapes):
            return
        behind = (shapes[..., 2] < self.camera.z_m + NEAR_M).any(axis=1)
        pixels = self.camera.project(shapes[~behind].reshape(-1, 3)).reshape(-1, shapes.shape[1], 2)
        low, high = pixels.min(axis=1), pixels.max(axis=1)
        seen = ((high >= 0) & (low < [WIDTH_PX, HEIGHT_PX])).all(axis=1)
        cut = [self.camera.project(part) for shape in shapes[behind] if len(part := self.visible(shape))]
        # one by one: cv2 fills several at once by the even-odd rule
        for polygon in [
            *np.round(pixels[seen] * 16).astype(np.int32),
            *(np.round(c * 16).astype(np.int32) for c in cut),
        ]:
            cv2.fillPoly(self.painting.image, [polygon], colour, cv2.LINE_AA, 4)

    def upright(self, points_xy: np.ndarray | list, z: float, colour: RGB, gain: float = 1.0) -> None:
        """Fills a polygon [N, 2] that stands across the road at ``z``."""
        points = np.asarray(points_xy, float)
        shape = np.column_stack([points, np.full(len(points), z)])
        self.polygons(shape[None], self.shade(colour, self.camera.depth(z), gain))

    def disc(self, x: float, y: float, z: float, radius: float, colour: RGB, gain: float = 1.0) -> None:
        """Fills a circle that stands across the road."""
        self.balls(np.array([[x, y, radius]]), z, [self.shade(colour, self.camera.depth(z), gain)])

    def balls(self, circles: np.ndarray, z: float, colours: list[RGB]) -> None:
        """Fills circles [N, 3] as x, y, radius that stand across the road, in colours shaded already."""
        fixed = np.round(self._pixels(circles, z) * 16).astype(int).tolist()
        for (u, v, radius), colour in zip(fixed, colours, strict=True):
            cv2.circle(self.painting.image, (u, v), radius, colour, -1, cv2.LINE_AA, 4)

    def lamp(self, x: float, y: float, z: float, radius: float, colour: RGB, strength: float = 1.0) -> None:
        """A burning lamp, not shaded by the day: a circle and its glow."""
        circle = np.array([[x, y, radius]])
        self.balls(circle, z, [colour])
        u, v, radius_px = self._pixels(circle, z)[0].tolist()
        self.painting.glows.append(Glow(u, v, radius_px, colour, strength))

    def cover_glows(self, corners_xyz: np.ndarray) -> None:
        """Puts out the lamps painted so far that lie behind the hull of some corners [N, 3]."""
        hull = cv2.convexHull(self.camera.project(corners_xyz).astype(np.float32))
        glows = self.painting.glows
        glows[:] = [glow for glow in glows if cv2.pointPolygonTest(hull, (glow.x, glow.y), False) < 0]

    def _pixels(self, circles: np.ndarray, z: float) -> np.ndarray:
        """Circles [N, 3] x, y, radius in metres at one depth -> the same in pixels."""
        scale = self.camera.focal_px / self.camera.depth(z)
        u = self.camera.centre_px + (circles[:, 0] - self.camera.x_m) * scale
        v = self.camera.horizon_px - (circles[:, 1] - self.camera.y_m) * scale
        return np.stack([u, v, circles[:, 2] * scale], axis=1)

    def visible(self, shape: np.ndarray) -> np.ndarray:
        """The part of a polygon [N, 3] that lies before the near plane."""
        near = self.camera.z_m + NEAR_M
        inside = shape[:, 2] >= near
        if inside.all():
            return shape
        kept = []
        for i, point in enumerate(shape):
            previous = shape[i - 1]
            if inside[i] != inside[i - 1]:
                share = (near - previous[2]) / (point[2] - previous[2])
                kept.append(previous + share * (point - previous))
            if inside[i]:
                kept.append(point)
        return np.array(kept).reshape(-1, 3)
