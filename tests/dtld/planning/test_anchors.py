"""Anchor priors: of the targets that prepare makes, laid out by area, better than YOLOv5's on the boxes they fit."""

import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from dtld_tools.errors import LabelError, UsageError
from dtld_tools.labels.collapse import load_rules
from dtld_tools.labels.parse import read_labels
from dtld_tools.pipeline import stages as pipeline
from dtld_tools.pipeline.stages import Selection
from dtld_tools.pixels.augment import AugmentSpec
from dtld_tools.planning.anchors import STRIDES, YOLOV5, fit_anchors, inspect_anchors, mean_best_iou, target_sizes
from dtld_tools.planning.split import SplitSpec
from dtld_tools.types import TileSpec
from tests.dtld_data import image, light, make_tree, read_lines, write_raw, write_v2

RULES = load_rules(None)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A tree of small frames with its labels, some lights dropped for each reason."""
    root = tmp_path_factory.mktemp("raw")
    images = make_tree(root, lights=6)
    twice = light(50, 50, 12, 31, 1000)
    images[0]["labels"] += [twice, twice, light(999, 5, 9, 9, 1001), light(9, 9, 0, 9, 1002)]
    write_v2(root / "all.json", images)
    return root


def clusters(seed=0, count=60):
    """Sizes around nine centres, 4 % of noise, and the centres by area."""
    rng = np.random.default_rng(seed)
    centres = np.array([(5, 12), (8, 20), (18, 10), (14, 35), (22, 60), (60, 25), (40, 100), (70, 160), (150, 300)])
    sizes = np.concatenate([centre * rng.normal(1, 0.04, (count, 2)) for centre in centres])
    return rng.permutation(sizes), centres[centres.prod(1).argsort()]


# --- the boxes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [TileSpec(size_px=96), TileSpec("halves", size_px=96, min_visible=0.7, min_side_px=5)])
def test_the_sizes_are_those_of_the_targets_that_prepare_writes(raw, tmp_path, spec):
    sizes_wh = target_sizes(read_labels([raw / "all.json"]), RULES, raw, spec)
    out, select = tmp_path / "out", Selection((raw / "all.json",), raw)
    pipeline.prepare(select, out, SplitSpec(0, 0), spec, AugmentSpec(copies=0), empty_ratio=None)
    written = Counter()
    for path in (out / "labels").rglob("*.txt"):
        rows = [line.split()[3:] for line in path.read_text().splitlines()]
        written.update((round(float(w) * 96, 2), round(float(h) * 96, 2)) for w, h in rows)
    got = sorted(map(tuple, sizes_wh.round(2).tolist()))
    assert len(got) == sum(len(line["targets"]) for line in read_lines(out / "manifest.jsonl")) > 20
    assert np.allclose(got, sorted(written.elements()), atol=0.011)  # label files have 6 decimals of 96 px


def test_the_frames_size_is_read_below_the_root(tmp_path):
    write_raw(tmp_path / "A/A1/s/a.tiff", np.random.default_rng(0), 256, 128)
    labels = read_labels([write_v2(tmp_path / "all.json", [image("A/A1/s/a.tiff", light(250, 100, 40, 20))])])
    spec = TileSpec("halves", size_px=64)
    assert target_sizes(labels, RULES, tmp_path, spec).tolist() == [[3, 10]]  # 6 of 40 px are inside; 64 / 128
    assert target_sizes(labels, RULES, None, spec).tolist() == []  # 2048x1024: 40 x 20 px become 2.5 x 1.25


# --- the clusters ----------------------------------------------------------------------------------------


def test_planted_clusters_are_found_and_lie_by_area():
    sizes_wh, centres = clusters()
    anchors = fit_anchors(sizes_wh, 3)
    assert tuple(anchors) == STRIDES
    flat = np.array([wh for level in anchors.values() for wh in level])
    assert np.allclose(flat, centres, rtol=0.02)
    assert all(a[0] * a[1] <= b[0] * b[1] for a, b in pairwise(flat.tolist()))


def test_small_boxes_count_as_much_as_large_ones():
    """In pixels, the spread of the few large boxes would take the clusters of the many small ones."""
    rng = np.random.default_rng(0)
    small = np.exp(rng.uniform(np.log(3), np.log(12), (900, 2)))
    large = np.exp(rng.uniform(np.log(100), np.log(400), (100, 2)))
    anchors = fit_anchors(np.concatenate((small, large)), 3)
    assert max(w * h for w, h in anchors[8]) < 150
    assert mean_best_iou(small, [wh for level in anchors.values() for wh in level]) > 0.6


@pytest.mark.parametrize("per_stride", [1, 2, 5])
def test_k_per_stride(per_stride):
    anchors = fit_anchors(clusters()[0], per_stride)
    assert [len(level) for level in anchors.values()] == [per_stride] * 3


def test_the_same_boxes_give_the_same_priors():
    assert fit_anchors(clusters()[0], 3) == fit_anchors(clusters()[0], 3)


def test_they_fit_better_than_yolov5s():
    sizes_wh, _ = clusters()
    ours = [wh for level in fit_anchors(sizes_wh, 3).values() for wh in level]
    assert mean_best_iou(sizes_wh, ours) > 0.9 > mean_best_iou(sizes_wh, YOLOV5)


def test_the_measure_by_hand():
    # 10 x 20 is a prior; 8 x 10 has 80 of 200 with it and 40 of 80 with 4 x 10: (1 + 0.5) / 2.
    assert mean_best_iou(np.array([[10.0, 20.0], [8.0, 10.0]]), [(10, 20), (4, 10)]) == 0.75


def test_as_many_sizes_as_clusters_are_all_taken():
    sizes_wh = np.array([[4.0, 9.0], [8.0, 18.0], [16.0, 36.0]])
    assert fit_anchors(np.repeat(sizes_wh, 4, 0), 1) == {8: [[4, 9]], 16: [[8, 18]], 32: [[16, 36]]}


@pytest.mark.parametrize("sizes_wh", [np.zeros((0, 2)), np.repeat([[4.0, 9.0], [8.0, 18.0]], 9, 0)])
def test_fewer_sizes_than_clusters(sizes_wh):
    with pytest.raises(LabelError, match=r"--anchors 1: got targets of [02] different sizes, expected 3 or more"):
        fit_anchors(sizes_wh, 1)


def test_no_priors_are_refused():
    with pytest.raises(UsageError, match="--anchors: got 0"):
        fit_anchors(clusters()[0], 0)


def test_yolov5s_anchors_are_those_of_kd():
    masks = pytest.importorskip("kd.methods.masks", reason="needs the extra kd")
    assert tuple(wh for level in masks.YOLOV5_PRIORS.values() for wh in level) == YOLOV5
    assert tuple(masks.YOLOV5_PRIORS) == STRIDES


# --- the command -----------------------------------------------------------------------------------------


def test_inspect_adds_the_priors_to_its_answer(dtld, raw):
    options = ("--root", raw, "--anchors", 2, "--tile-size", 96, "--layout", "halves")
    code, out, err = dtld("inspect", raw / "all.json", *options, "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    expected = inspect_anchors(read_labels([raw / "all.json"]), RULES, raw, TileSpec("halves", 96), 2)
    assert {key: answer[key] for key in ("anchors", "anchor_fit")} == expected
    assert answer["anchors"].keys() == {"8", "16", "32"}
    assert answer["anchor_fit"].keys() == {"targets", "mean_best_iou", "mean_best_iou_yolov5"}
    assert answer["frames"] == 12
    code, out, _ = dtld("inspect", raw / "all.json", *options)
    assert f"anchors: {answer['anchor_fit']['targets']} targets in tiles, mean best IoU 0." in out
    assert [line.split()[:2] for line in out.splitlines()[-3:]] == [["stride", "8"], ["stride", "16"], ["stride", "32"]]
    assert "anchors" not in json.loads(dtld("inspect", raw / "all.json", "--json")[1])


@pytest.mark.parametrize(
    ("more", "code", "expected"),
    [
        (["--overlap", "0.2"], 2, "--overlap: got it without --anchors"),
        (["--min-side", "2"], 2, "--min-side: got it without --anchors"),
        (["--anchors", "0"], 2, "--anchors"),
        (["--anchors", "2", "--overlap", "1"], 2, "--overlap: got 1"),
        (["--anchors", "100"], 1, "--anchors 100: got targets of"),
        (["--anchors", "9999"], 2, "--anchors"),
    ],
)
def test_wrong_usage(dtld, raw, more, code, expected):
    got, out, err = dtld("inspect", raw / "all.json", *more)
    assert (got, out) == (code, "")
    assert expected in err
