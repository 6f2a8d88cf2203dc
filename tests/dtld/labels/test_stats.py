"""What `dtld inspect` counts, by hand; and its chart is an image that depends on the labels."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtld_tools.errors import UsageError
from dtld_tools.geometry import clip_boxes
from dtld_tools.labels.attributes import VOCABULARY
from dtld_tools.labels.collapse import load_rules
from dtld_tools.labels.parse import read_labels
from dtld_tools.labels.stats import inspect_labels, plot_labels
from dtld_tools.types import Box
from tests.dtld_data import REAL, image, light, needs_real, write_raw, write_v2

RULES = load_rules(None)
PATHS = ["A/A1/s/1.tiff", "A/A1/s/2.tiff", "B/B1/s/1.tiff"]


def labels_of(folder, *images):
    return read_labels([write_v2(folder / "all.json", list(images))])


@pytest.fixture
def labels(tmp_path):
    return labels_of(
        tmp_path,
        image(PATHS[0], light(0, 0, 10, 30, 1), light(5, 5, 20, 60, 2, state="red"), light(9, 9, 30, 90, 3)),
        image(PATHS[1], light(9, 9, 40, 90, 4, direction="back"), light(9, 9, 50, 90, 4, state="purple")),
        image(PATHS[2]),
    )


def test_counts(labels):
    found = inspect_labels(labels, RULES)
    assert (found["frames"], found["lights"], found["sequences"], found["cities"]) == (3, 5, 2, {"A": 2, "B": 1})
    assert found["attribute_combinations"] == 4
    assert found["attributes"]["state"] == {"green": 3, "red": 1, "purple": 1}
    assert found["attributes"]["direction"] == {"front": 4, "back": 1}
    assert set(found["attributes"]) == set(VOCABULARY)
    assert found["classes"] == {"relevant": 3, "not_relevant": 2}
    assert found["problems"] == {"duplicate_ids": 1, "unlisted_values": 1}
    assert found["unlisted_values"] == {"state=purple": 1}
    assert found["box_width_px"] == {"min": 10, "p10": 10, "median": 30, "p90": 50, "max": 50}


def test_no_lights_at_all(tmp_path):
    found = inspect_labels(labels_of(tmp_path, image(PATHS[0])), RULES)
    assert (found["lights"], found["attribute_combinations"], found["box_width_px"]) == (0, 0, {})
    assert found["classes"] == {"relevant": 0, "not_relevant": 0}
    plot_labels(labels_of(tmp_path, image(PATHS[0])), RULES, tmp_path / "plot.png")
    assert cv2.imread(str(tmp_path / "plot.png")) is not None


def test_boxes_against_dtlds_frame_where_no_image_is_at_hand(tmp_path):
    lamps = [
        light(-5, 10, 10, 10, 1),
        light(2040, 10, 10, 10, 2),
        light(3000, 10, 10, 10, 3),
        light(10, 10, 0, 10, 4),
        light(10, 10, 10, -1, 5),
        light(0, 0, 2048, 1024, 6),  # exactly the frame: inside
    ]
    found = inspect_labels(labels_of(tmp_path, image(PATHS[0], *lamps)), RULES)
    assert found["problems"] == {"boxes_over_the_edge": 2, "boxes_outside_frame": 1, "degenerate_boxes": 2}


edges = st.integers(-30, 30) | st.floats(-30, 30) | st.sampled_from([2020, 2048, 2050.5, 1000, 1024])


@given(st.lists(st.lists(st.tuples(edges, edges, edges, edges), max_size=4), min_size=1, max_size=3))
def test_boxes_are_counted_as_clipping_finds_them(tmp_path_factory, frames):
    """The counts in one go agree with what `prepare` will do to each box."""
    boxes = [Box(x, y, x + w, y + h) for frame in frames for x, y, w, h in frame]
    solid = [box for box in boxes if box.width > 0 and box.height > 0]
    clipped = clip_boxes(solid, Box(0, 0, 2048, 1024))
    expected = {
        "boxes_outside_frame": clipped.count(None),
        "boxes_over_the_edge": sum(c not in (None, box) for box, c in zip(solid, clipped, strict=True)),
        "degenerate_boxes": len(boxes) - len(solid),
        "equal_boxes": sum(len(frame) - len(set(frame)) for frame in frames),
    }
    entries = [image(f"A/A1/s/{n}", *(light(*xywh, i) for i, xywh in enumerate(f))) for n, f in enumerate(frames)]
    found = inspect_labels(labels_of(tmp_path_factory.mktemp("any"), *entries), RULES)
    assert found["problems"] == {kind: count for kind, count in expected.items() if count}


def test_equal_attributes_are_one_combination_whatever_their_order(tmp_path):
    lamp, other = light(1, 2, 3, 4, 1), light(5, 6, 7, 8, 2)
    other["attributes"] = dict(reversed(other["attributes"].items()))
    found = inspect_labels(labels_of(tmp_path, image(PATHS[0], lamp, other)), RULES)
    assert (found["attribute_combinations"], found["attributes"]["state"]) == (1, {"green": 2})


def test_files_below_the_root_are_counted_and_their_size_is_used(tmp_path):
    write_raw(tmp_path / PATHS[0], np.random.default_rng(0), 64, 32)
    (tmp_path / PATHS[1]).write_bytes(b"broken")
    entries = [image(PATHS[0], light(60, 10, 10, 10)), image(PATHS[1]), image(PATHS[2])]
    found = inspect_labels(labels_of(tmp_path, *entries), RULES, tmp_path)
    assert found["problems"] == {"boxes_over_the_edge": 1, "missing_images": 1, "unreadable_images": 1}


def test_lights_that_a_rule_drops_are_counted(tmp_path, labels):
    rules = tmp_path / "rules.json"
    rules.write_text('{"classes": ["a"], "rules": [{"class": "drop", "when": {"state": ["green"]}}, {"class": "a"}]}')
    assert inspect_labels(labels, load_rules(rules))["classes"] == {"a": 2, "drop": 3}


def test_the_real_labels():
    needs_real()
    labels = read_labels([REAL / "DTLD_Labels_v2.0" / "v2.0" / "DTLD_all.json"])
    found = inspect_labels(labels, RULES, REAL)
    assert (found["frames"], found["lights"], found["cities"].keys()) == (24, 65, {"Malang", "Surabaya"})
    assert sum(found["classes"].values()) == 65
    assert all(sum(counts.values()) == 65 for counts in found["attributes"].values())
    assert "missing_images" not in found["problems"]


def test_the_chart_shows_the_labels(tmp_path, labels):
    plot_labels(labels, RULES, tmp_path / "a.png")
    plot_labels(labels_of(tmp_path, image(PATHS[0], light(900, 500, 80, 90))), RULES, tmp_path / "b.png")
    charts = [cv2.imread(str(tmp_path / name)) for name in ("a.png", "b.png")]
    assert min(charts[0].shape[:2]) >= 600
    assert (charts[0] != charts[1]).mean() > 0.01


def test_another_ending_is_refused_before_drawing(tmp_path, labels):
    with pytest.raises(UsageError, match=r"--plot: got the ending '\.xyz', expected \.png"):
        plot_labels(labels, RULES, tmp_path / "a.xyz")
