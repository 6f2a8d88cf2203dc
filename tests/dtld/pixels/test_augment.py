"""Changes of an image: what each may touch, kernels by hand, and a recipe that decides everything."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtld_tools.errors import UsageError
from dtld_tools.pixels.augment import (
    CHANGES,
    AugmentSpec,
    apply_recipe,
    clahe,
    draw_recipe,
    gaussian,
    motion,
    motion_kernel,
)


@pytest.fixture
def photograph():
    """Smooth, dim and coloured, with a bright red disc: what CLAHE is for."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(30, 90, (9, 9, 3)).astype(np.float32)
    image = cv2.resize(coarse, (160, 160), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)
    return cv2.circle(image, (80, 80), 9, (20, 30, 220), -1)


def lab(image):
    return cv2.cvtColor(image, cv2.COLOR_BGR2LAB).astype(int)


def test_clahe_changes_lightness_and_keeps_hues(photograph):
    before, after = lab(photograph), lab(clahe(photograph, 2.0, 8))
    assert np.abs(after[..., 0] - before[..., 0]).mean() > 3
    assert after[..., 0].std() > before[..., 0].std()  # more contrast
    # 8-bit Lab rounds, and a colour outside BGR is cut: few levels, on average less than one.
    assert np.abs(after[..., 1:] - before[..., 1:]).mean() < 1


def test_gaussian_blurs_and_keeps_the_mean(photograph):
    blurred = gaussian(photograph, 1.2)
    assert blurred.shape == photograph.shape
    assert abs(blurred.mean() - photograph.mean()) < 0.5
    assert np.abs(np.diff(blurred.astype(int), axis=1)).max() < np.abs(np.diff(photograph.astype(int), axis=1)).max()


def test_motion_blurs_along_its_line_only():
    """A vertical edge: motion along it changes nothing, motion across it spreads it over the length."""
    image = np.zeros((41, 41, 3), np.uint8)
    image[:, 20:] = 200
    np.testing.assert_array_equal(motion(image, 5, 90), image)
    row = motion(image, 5, 0)[20, :, 0].tolist()
    assert row[17:24] == [0, 40, 80, 120, 160, 200, 200]


def test_a_kernel_points_anticlockwise():
    up_right = motion_kernel(5, 45)
    assert up_right[0, 4] > 0  # row 0 is above
    assert up_right[0, 0] == 0


@pytest.mark.parametrize(
    ("length", "angle", "expected"),
    [
        (1, 30, [[1]]),
        (3, 0, [[0, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0, 0, 0]]),
        (3, 90, [[0, 1 / 3, 0], [0, 1 / 3, 0], [0, 1 / 3, 0]]),
    ],
)
def test_kernels_by_hand(length, angle, expected):
    np.testing.assert_allclose(motion_kernel(length, angle), expected, atol=0.03)


@given(st.integers(1, 31), st.floats(0, 360))
def test_kernels_are_means(length, angle):
    kernel = motion_kernel(length, angle)
    assert kernel.shape[0] == kernel.shape[1] == 2 * (length // 2) + 1
    assert kernel.sum() == pytest.approx(1)
    assert (kernel >= 0).all()
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1])  # symmetric: the image does not move


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_the_image_given_stays_as_it_is(photograph, change):
    parameters = {
        "clahe": {"clip_limit": 2.0, "grid": 8},
        "gaussian": {"sigma_px": 1.0},
        "motion": {"length_px": 5, "angle_deg": 30},
    }[change]
    before = photograph.copy()
    changed = apply_recipe(photograph, {change: parameters})
    np.testing.assert_array_equal(photograph, before)
    assert (changed.shape, changed.dtype) == (photograph.shape, photograph.dtype)
    assert (changed != photograph).any()


def test_a_recipe_is_applied_in_its_order(photograph):
    recipe = {"clahe": {"clip_limit": 2.0, "grid": 8}, "gaussian": {"sigma_px": 1.0}}
    np.testing.assert_array_equal(apply_recipe(photograph, recipe), gaussian(clahe(photograph, 2.0, 8), 1.0))


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**64 - 1))
def test_a_drawn_recipe_follows_from_the_generator(p_clahe, p_blur, seed):
    spec = AugmentSpec(clahe=p_clahe, blur=p_blur)
    recipe = draw_recipe(spec, np.random.default_rng(seed))
    assert recipe == draw_recipe(spec, np.random.default_rng(seed))
    assert recipe is None or 1 <= len(recipe) <= 2
    assert not recipe or not {"gaussian", "motion"} <= set(recipe)


def test_probabilities_are_kept():
    drawn = [draw_recipe(AugmentSpec(clahe=0.5, blur=0.3), np.random.default_rng(n)) or {} for n in range(2000)]
    assert np.mean(["clahe" in recipe for recipe in drawn]) == pytest.approx(0.5, abs=0.04)
    assert np.mean([bool(recipe.keys() & {"gaussian", "motion"}) for recipe in drawn]) == pytest.approx(0.3, abs=0.04)
    assert np.mean([not recipe for recipe in drawn]) == pytest.approx(0.35, abs=0.04)
    assert sum("motion" in recipe for recipe in drawn) == pytest.approx(sum("gaussian" in r for r in drawn), rel=0.25)


def test_certain_and_impossible_changes():
    generators = [np.random.default_rng(n) for n in range(50)]
    assert all(draw_recipe(AugmentSpec(clahe=0, blur=0), rng) is None for rng in generators)
    assert all(len(draw_recipe(AugmentSpec(clahe=1, blur=1), rng)) == 2 for rng in generators)


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"clahe": 1.1}, "--clahe"),
        ({"blur": -0.1}, "--blur"),
        ({"copies": -1}, "--copies"),
        ({"splits": ("all",)}, "--splits"),
    ],
)
def test_a_spec_is_checked_when_made(changes, option):
    with pytest.raises(UsageError, match=f"{option}: got"):
        AugmentSpec(**changes)
