"""An image and a recipe in, a changed image out: CLAHE on lightness, Gaussian or motion blur.

The recipe is drawn before any pixel is read and stands in the manifest, so a copy can be made again from it.
Targets stay as they are: nothing here moves a pixel's place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from dtld_tools.errors import UsageError
from dtld_tools.types import SPLITS

#: {"clahe": {"clip_limit": 2.0, "grid": 8}, "gaussian": {"sigma_px": 1.2}} or {"motion": {"length_px": 5, ...}}
Recipe = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AugmentSpec:
    """How many copies of which splits, and the probability of each change."""

    clahe: float = 0.5
    blur: float = 0.3
    copies: int = 1
    splits: tuple[str, ...] = ("train",)

    def __post_init__(self) -> None:
        for option, probability in (("--clahe", self.clahe), ("--blur", self.blur)):
            if not 0 <= probability <= 1:
                raise UsageError(f"{option}: got {probability}, expected a probability from 0 to 1")
        if not 0 <= self.copies <= 99:
            raise UsageError(f"--copies: got {self.copies}, expected 0 to 99")
        if unknown := set(self.splits) - set(SPLITS):
            raise UsageError(f"--splits: got {', '.join(sorted(unknown))}, expected some of {', '.join(SPLITS)}")


def draw_recipe(spec: AugmentSpec, rng: np.random.Generator) -> Recipe | None:
    """Decide what happens to one copy; None if nothing would."""
    recipe: dict[str, Any] = {}
    if rng.random() < spec.clahe:
        recipe["clahe"] = {"clip_limit": round(rng.uniform(1.5, 3.0), 2), "grid": 8}
    if rng.random() < spec.blur:
        # Light blur only: a light of 5 px must stay a light.
        if rng.random() < 0.5:
            recipe["gaussian"] = {"sigma_px": round(rng.uniform(0.5, 1.5), 2)}
        else:
            recipe["motion"] = {"length_px": int(rng.integers(3, 8)), "angle_deg": int(rng.integers(0, 180))}
    return recipe or None


def apply_recipe(image: np.ndarray, recipe: Recipe) -> np.ndarray:
    """HxWx3 uint8 BGR in, a new array of the same shape out."""
    for change, parameters in recipe.items():
        image = CHANGES[change](image, **parameters)
    return image


def clahe(image: np.ndarray, clip_limit: float, grid: int) -> np.ndarray:
    """Contrast-limited adaptive histogram equalisation of the lightness alone: hues must stay, they are states."""
    lab = cv2.cvtColor(image, cv2.COLOR_BGR2LAB)
    lab[..., 0] = cv2.createCLAHE(clip_limit, (grid, grid)).apply(lab[..., 0])
    return cv2.cvtColor(lab, cv2.COLOR_LAB2BGR)


def gaussian(image: np.ndarray, sigma_px: float) -> np.ndarray:
    """Defocus: a Gaussian of standard deviation ``sigma_px``."""
    return cv2.GaussianBlur(image, (0, 0), sigma_px)


def motion(image: np.ndarray, length_px: int, angle_deg: float) -> np.ndarray:
    """Motion blur: the mean along a centred line of ``length_px`` pixels, anticlockwise from the x axis."""
    return cv2.filter2D(image, -1, motion_kernel(length_px, angle_deg))


def motion_kernel(length_px: int, angle_deg: float) -> np.ndarray:
    """KxK float64 weights of a motion blur, K odd; they sum to 1 and are symmetric about the centre.

    >>> motion_kernel(3, 0).round(2).tolist()
    [[0.0, 0.0, 0.0], [0.33, 0.33, 0.33], [0.0, 0.0, 0.0]]
    """
    radius = length_px // 2
    kernel = np.zeros((2 * radius + 1, 2 * radius + 1))
    direction = np.deg2rad(angle_deg)
    # Spread many points along the line onto their nearest cells.
    along = (np.arange(16 * length_px) + 0.5) / 16 - length_px / 2
    columns = np.rint(radius + along * np.cos(direction)).astype(int).clip(0, 2 * radius)
    rows = np.rint(radius - along * np.sin(direction)).astype(int).clip(0, 2 * radius)
    np.add.at(kernel, (rows, columns), 1.0)
    kernel = kernel + kernel[::-1, ::-1]
    return kernel / kernel.sum()


CHANGES: dict[str, Callable[..., np.ndarray]] = {"clahe": clahe, "gaussian": gaussian, "motion": motion}
