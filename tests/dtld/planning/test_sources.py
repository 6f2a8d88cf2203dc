"""Labels and files to frame lines: every light has its place, every frame is found or named."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtld_tools.dataset.names import image_name
from dtld_tools.errors import DatasetError, ImageError, LabelError, UsageError
from dtld_tools.labels.collapse import load_rules
from dtld_tools.labels.parse import read_labels
from dtld_tools.planning.sources import find_sources, frame_record, select
from dtld_tools.types import Box, Frame, Light, SequenceId, Window
from tests.dtld_data import image, light, make_tree, write_raw, write_v2

SEQUENCE = SequenceId("Berlin", "Berlin1", "2015")
RULES = load_rules(None)


def all_train(sequences):
    return dict.fromkeys(sequences, "train")


GREEN = {
    "direction": "front",
    "relevance": "relevant",
    "occlusion": "not_occluded",
    "state": "green",
    "pictogram": "circle",
}


def record_of(*lights, rules=RULES, size_wh=(2048, 1024)):
    frame = Frame("Berlin/Berlin1/2015/a.tiff", SEQUENCE, None, tuple(lights))
    return frame_record(frame, size_wh, "train", rules, frame.image_path)


def lamp(box, light_id=1, **changes):
    return Light(Box(*box), GREEN | changes, light_id, "t")


# --- lights ----------------------------------------------------------------------------------------------


def test_a_light_is_clipped_to_the_frame_and_gets_its_class():
    record = record_of(lamp((-5, 1000, 15, 1044)), lamp((10, 10, 20, 40), 2, direction="back"))
    assert [(t.light_id, t.class_id, t.box) for t in record.lights] == [
        (1, 0, Box(0, 1000, 15, 1024)),
        (2, 1, Box(10, 10, 20, 40)),
    ]
    assert record.dropped == ()
    assert (record.width, record.height, record.split) == (2048, 1024, "train")


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((10, 10, 10, 40), "degenerate"),
        ((10, 40, 20, 10), "degenerate"),
        ((20, 40, 10, 10), "degenerate"),
        ((-20, 10, 0, 40), "outside_frame"),
        ((2048, 10, 2060, 40), "outside_frame"),
        ((10, -40, 20, -1), "outside_frame"),
        ((10, 1024, 20, 1030), "outside_frame"),
    ],
)
def test_a_light_without_area_is_dropped_for_one_reason(box, reason):
    record = record_of(lamp(box))
    assert record.lights == ()
    (dropped,) = record.dropped
    assert (dropped.light_id, dropped.reason, dropped.class_id, dropped.box) == (1, reason, 0, None)


def test_a_rule_drops_and_the_box_is_remembered(tmp_path):
    path = tmp_path / "rules.json"
    path.write_text('{"classes": ["a"], "rules": [{"class": "drop", "when": {"state": ["off"]}}, {"class": "a"}]}')
    record = record_of(lamp((1, 2, 3, 4), 1), lamp((5, 6, 7, 8), 2, state="off"), rules=load_rules(path))
    assert [t.light_id for t in record.lights] == [1]
    assert [(d.light_id, d.reason, d.class_id, d.box) for d in record.dropped] == [(2, "rule", None, Box(5, 6, 7, 8))]


def test_an_exact_repetition_is_a_duplicate_another_box_is_another_light():
    same, other = lamp((1, 2, 3, 4), "7#2"), lamp((9, 9, 19, 19), "7#3")
    record = record_of(lamp((1, 2, 3, 4), 7), same, other)
    assert [t.light_id for t in record.lights] == [7, "7#3"]
    assert [(d.light_id, d.reason) for d in record.dropped] == [("7#2", "duplicate")]


def test_a_repeated_number_with_other_attributes_is_another_light():
    record = record_of(lamp((1, 2, 3, 4), 7), lamp((1, 2, 3, 4), "7#2", state="red"))
    assert [t.light_id for t in record.lights] == [7, "7#2"]


def test_equal_boxes_of_other_numbers_are_two_lights():
    assert len(record_of(lamp((1, 2, 3, 4), 17), lamp((1, 2, 3, 4), 1)).lights) == 2


corner = st.one_of(st.integers(-100, 2200), st.floats(-1e5, 1e5))


@given(st.lists(st.builds(Box, corner, corner, corner, corner), max_size=10), st.integers(1, 3))
def test_every_light_is_kept_or_dropped_once(boxes, distinct):
    seen, lights = {}, []
    for index, box in enumerate(boxes):
        number = index % distinct
        seen[number] = seen.get(number, 0) + 1
        lights.append(lamp(box, number if seen[number] == 1 else f"{number}#{seen[number]}"))
    record = record_of(*lights)
    placed = [t.light_id for t in record.lights] + [d.light_id for d in record.dropped]
    assert sorted(map(str, placed)) == sorted(str(light.unique_id) for light in lights)
    for target in record.lights:
        assert 0 <= target.box.x1 < target.box.x2 <= 2048
        assert 0 <= target.box.y1 < target.box.y2 <= 1024


# --- frames ----------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    """Four frames of one city; returns the root and their images."""
    return tmp_path, make_tree(tmp_path, cities=("Aachen",), sequences=2, frames=2)


def find(root, images, **options):
    labels = read_labels([write_v2(root / "all.json", images)])
    options = {"strict": False, "follow_symlinks": False, **options}
    found = find_sources(labels.frames, root, RULES, all_train, **options)
    sources, skipped = found.sources, found.skipped
    assert list(sources()) == list(sources())  # as often as it is asked
    return list(sources()), skipped


def test_all_frames_are_found_in_order(tree):
    root, images = tree
    sources, skipped = find(root, images[::-1])
    assert [s.frame.frame for s in sources] == sorted(i["image_path"][2:] for i in images)
    assert [s.path for s in sources] == [root / s.frame.frame for s in sources]
    assert skipped == []
    assert all((s.frame.width, s.frame.height) == (256, 128) for s in sources)


def test_a_missing_and_an_unreadable_frame_are_skipped_by_name_with_their_lights(tree):
    root, images = tree
    images[0]["labels"] = [light(1, 2, 3, 4, 1), light(5, 6, 7, 8, 2)]
    images[2]["labels"] = [light(1, 2, 3, 4, 3)]
    (root / images[0]["image_path"]).unlink()
    (root / images[2]["image_path"]).write_bytes(b"broken")
    sources, skipped = find(root, images)
    assert len(sources) == 2
    assert [(s.frame, s.reason.split(":")[0], s.lights) for s in skipped] == [
        (images[0]["image_path"][2:], "missing", 2),
        (images[2]["image_path"][2:], "unreadable", 1),
    ]


@pytest.mark.parametrize("damage", ["unlink", "break"])
def test_strict_stops_at_the_first_with_its_name(tree, damage):
    root, images = tree
    path = root / images[1]["image_path"]
    path.unlink() if damage == "unlink" else path.write_bytes(b"broken")
    with pytest.raises(ImageError, match=path.name.replace(".", r"\.")):
        find(root, images, strict=True)


def test_all_missing_names_the_places_tried(tmp_path):
    with pytest.raises(DatasetError, match="none of 1 frames can be read") as caught:
        find(tmp_path, [image("./Berlin/Berlin1/s/a.tiff")])
    assert str(tmp_path / "Berlin/Berlin1/s/a.tiff") in str(caught.value)
    assert str(tmp_path / "Berlin/Berlin/Berlin1/s/a.tiff") in str(caught.value)


def test_a_root_that_is_no_folder(tmp_path):
    with pytest.raises(DatasetError, match="nowhere: is no folder"):
        find_sources((), tmp_path / "nowhere", RULES, all_train, strict=False, follow_symlinks=False)


def test_a_doubly_nested_city_keeps_its_path_and_its_sequence(tmp_path):
    write_raw(tmp_path / "Berlin/Berlin/Berlin1/s/a.tiff", np.random.default_rng(0), 64, 32)
    ((source,), _) = find(tmp_path, [image("/stale/DTLD/Berlin/Berlin1/s/a.tiff")])
    assert source.frame.frame == "Berlin/Berlin/Berlin1/s/a.tiff"
    assert source.frame.sequence == SequenceId("Berlin", "Berlin1", "s")


def test_a_link_out_of_the_root(tmp_path):
    outside = write_raw(tmp_path / "outside.tiff", np.random.default_rng(0), 64, 32)
    root = tmp_path / "root"
    link = root / "Berlin/Berlin1/s/a.tiff"
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    with pytest.raises(LabelError, match="--follow-symlinks"):
        find(root, [image("Berlin/Berlin1/s/a.tiff")])
    assert len(find(root, [image("Berlin/Berlin1/s/a.tiff")], follow_symlinks=True)[0]) == 1


def test_png_and_jpeg_frames_are_frames(tmp_path):
    paths = [f"Berlin/Berlin1/s/{n}" for n in ("a.png", "b.jpg")]
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / path), np.zeros((40, 80, 3), np.uint8))
    sources, _ = find(tmp_path, [image(path) for path in paths])
    assert [(s.frame.width, s.frame.height) for s in sources] == [(80, 40)] * 2


# --- selection and names ---------------------------------------------------------------------------------


def labels_of(tmp_path, *paths):
    return read_labels([write_v2(tmp_path / "all.json", [image(path) for path in paths])])


def test_cities_and_limit(tmp_path):
    labels = labels_of(tmp_path, "B/1/s/b.tiff", "A/1/s/z.tiff", "C/1/s/a.tiff", "A/1/s/a.tiff")
    assert [f.image_path for f in select(labels, ("C", "A"), None)] == ["A/1/s/a.tiff", "A/1/s/z.tiff", "C/1/s/a.tiff"]
    assert [f.image_path for f in select(labels, (), 2)] == ["A/1/s/a.tiff", "A/1/s/z.tiff"]
    assert [f.image_path for f in select(labels, ("B",), 9)] == ["B/1/s/b.tiff"]
    with pytest.raises(DatasetError, match="--cities: no frames of D, E, expected some of A, B, C"):
        select(labels, ("E", "A", "D"), None)
    with pytest.raises(UsageError, match="--limit: got 0"):
        select(labels, (), 0)


@pytest.mark.parametrize(
    ("file", "window", "expected"),
    [
        ("DE_1_k0.tiff", None, "Berlin_Berlin1_2015_DE_1_k0.png"),
        ("DE_1_k0.tiff", Window(469, 384, 640, 640), "Berlin_Berlin1_2015_DE_1_k0_x469_y384.png"),
        ("a.b.c.tiff", None, "Berlin_Berlin1_2015_a.b.c.png"),
        ("plain", None, "Berlin_Berlin1_2015_plain.png"),
    ],
)
def test_names_say_where_an_image_comes_from(file, window, expected):
    assert image_name(str(Path("Berlin/Berlin1/2015", file)), SEQUENCE, window, ".png") == expected
