"""The camera: a painted view -> linear light -> the raw Bayer mosaic that DTLD's files hold.

In: a `Painting` (sRGB) or linear RGB, and a numpy Generator. Out: float32 linear RGB, or a uint16 mosaic.
Invariant: `cv2.cvtColor(raw, cv2.COLOR_BAYER_GB2BGR) >> 4` gives the scene's colours back.
"""

from __future__ import annotations

import cv2
import numpy as np

from dtld_tools.synthetic.scene.brush import Glow, Painting
from dtld_tools.synthetic.scene.paint import paint
from dtld_tools.synthetic.scene.world import View

GAMMA = 2.2
_TO_LINEAR = (np.arange(256, dtype=np.float32) / 255) ** GAMMA
#: The sensor compresses 16 bits of linear light into 12: what makes the raw data viewable as it is.
_TO_12_BIT = np.round(4095 * (np.arange(65536) / 65535) ** (1 / GAMMA)).astype(np.uint16)


def render(view: View, rng: np.random.Generator) -> np.ndarray:
    """One frame as the lens sees it: linear RGB [1024, 2048, 3] float32, 1 = white; lamps may be brighter."""
    painting = paint(view)
    linear = cv2.LUT(painting.image, _TO_LINEAR)
    linear += _bloom(painting, night=view.weather == "dusk")
    return _blur(linear, rng)


def expose(linear: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Linear RGB [H, W, 3], H and W even -> raw mosaic [H, W] uint16 with 12 bits of data, noise included."""
    light = mosaic(linear) * np.float32(rng.lognormal(0, 0.13))
    electrons = rng.uniform(2500, 9000)  # that fill a pixel: the fewer, the noisier
    deviation = np.sqrt(np.maximum(light, 0) / np.float32(electrons) + np.float32(1.2e-6))
    light += deviation * rng.standard_normal(light.shape, dtype=np.float32)
    return _TO_12_BIT[np.clip(light * 65535, 0, 65535).astype(np.uint16)]


def mosaic(image: np.ndarray) -> np.ndarray:
    """RGB [H, W, 3] -> the one colour that each pixel's filter lets through [H, W].

    OpenCV names a pattern after the second row's second and third pixel: its GB is G R on even rows and B G on
    odd ones.
    """
    raw = np.empty(image.shape[:2], image.dtype)
    raw[0::2, 0::2] = image[0::2, 0::2, 1]
    raw[0::2, 1::2] = image[0::2, 1::2, 0]
    raw[1::2, 0::2] = image[1::2, 0::2, 2]
    raw[1::2, 1::2] = image[1::2, 1::2, 1]
    return raw


def _bloom(painting: Painting, night: bool) -> np.ndarray:
    """Light that lamps scatter in lens and air [H, W, 3]; smooth, so worked out at a quarter of the size."""
    height, width = painting.image.shape[:2]
    small = np.zeros((height // 4, width // 4, 3), np.float32)
    for glow in painting.glows:
        _add_lamp(small, glow)
    near, wide = cv2.GaussianBlur(small, (0, 0), 1.2), cv2.GaussianBlur(small, (0, 0), 6)
    scattered = (0.9 * near + 1.6 * wide) * (1.6 if night else 0.55)
    return cv2.resize(scattered, (width, height), interpolation=cv2.INTER_LINEAR)


def _add_lamp(small: np.ndarray, glow: Glow) -> None:
    colour = [float(_TO_LINEAR[channel]) * glow.strength for channel in glow.colour]
    # a lamp smaller than a pixel keeps its energy: a larger spot, dimmer by the ratio of areas
    radius = glow.radius / 4
    drawn = max(radius, 1.0)
    colour = [channel * min(1.0, (radius / drawn) ** 2) for channel in colour]
    centre = round(glow.x / 4 * 16), round(glow.y / 4 * 16)
    cv2.circle(small, centre, round(drawn * 16), colour, -1, cv2.LINE_8, 4)


def _blur(linear: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The lens is never quite sharp; now and then the car shakes while the shutter is open."""
    soft = cv2.GaussianBlur(linear, (5, 5), rng.uniform(0.55, 0.95))
    if rng.random() < 0.85:
        return soft
    length = int(rng.integers(3, 6))
    kernel_wh = (length, 1) if rng.random() < 0.5 else (1, length)
    return cv2.blur(soft, kernel_wh)
