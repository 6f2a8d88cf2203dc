"""Anchors fitted to boxes: what they reach, when they change, and that the same boxes give the same ones."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs the extra kd")

import numpy as np

from kd.ultra.classic.anchors import better, fitted, reach, sides_px

COCO = np.array([[10, 13], [16, 30], [33, 23], [30, 61], [62, 45], [59, 119], [116, 90], [156, 198], [373, 326]])


def test_sides_are_in_pixels_of_the_training_image_without_what_is_too_small():
    labels = [
        {"bboxes": np.array([[0.5, 0.5, 0.1, 0.4], [0.5, 0.5, 0.001, 0.5]]), "shape": (400, 800)},  # height, width
        {"bboxes": np.zeros((0, 4)), "shape": (10, 10)},
    ]
    assert sides_px(labels, 640).tolist() == [[64, 128]]
    assert sides_px([], 640).shape == (0, 2)


def test_a_box_is_reached_below_four_times_an_anchors_sides():
    anchor = np.array([[10.0, 10.0]])
    assert reach(np.array([[39.9, 2.6], [40.0, 10.0], [10.0, 2.5], [10.0, 10.0]]), anchor) == 0.5
    assert reach(np.zeros((0, 2)), anchor) == 1


def test_fitted_anchors_are_the_centres_of_clusters_in_the_order_of_their_areas():
    rng = np.random.default_rng(0)
    centres = np.array([[4.0, 9.0], [60.0, 30.0], [20.0, 200.0]])
    sides = np.concatenate([centre * np.exp(rng.normal(0, 0.05, (50, 2))) for centre in centres[::-1]])
    found = fitted(sides, 3)
    assert np.abs(found / centres - 1).max() < 0.05
    assert np.array_equal(found, fitted(sides, 3))


def test_anchors_that_reach_enough_stay():
    sides = np.array([[12.0, 20.0]] * 99 + [[700.0, 3.0]])  # one of a hundred is out of reach
    assert better(sides, COCO) is None
    assert better(np.zeros((0, 2)), COCO) is None


def test_anchors_that_reach_too_few_are_replaced_where_others_reach_more():
    rng = np.random.default_rng(0)
    sides = np.exp(rng.normal(0, 0.2, (100, 2))) * np.array([2.5, 90.0])  # poles
    found = better(sides, COCO)
    assert reach(sides, COCO) < 0.02
    assert reach(sides, found) == 1
    assert found.shape == COCO.shape
    assert better(sides[:5], COCO) is None  # fewer boxes than anchors
