"""Lines of frames and images and label files, there and back."""

import orjson
from hypothesis import given
from hypothesis import strategies as st

from dtld_tools.dataset.reading import read_frames, read_images
from dtld_tools.dataset.records import frame_to_json, image_to_json, label_text
from dtld_tools.export.preview import read_boxes
from dtld_tools.types import SPLITS, Box, Dropped, FrameRecord, ImageRecord, SequenceId, Target, Window

# --- lines -----------------------------------------------------------------------------------------------

names = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="/\0"), min_size=1, max_size=12)
ids = st.one_of(
    st.integers(-(2**53), 2**53), st.builds("{}#{}".format, st.integers(-(10**6), 10**6), st.integers(2, 99))
)
finite = st.floats(-1e15, 1e15, allow_nan=False)
attributes = st.none() | st.dictionaries(names, names, max_size=3)
boxes = st.builds(Box, finite, finite, finite, finite)
sequences = st.builds(SequenceId, names, names, names)
frames = st.builds(
    FrameRecord,
    frame=names,
    sequence=sequences,
    split=st.sampled_from(SPLITS),
    width=st.integers(1, 10**5),
    height=st.integers(1, 10**5),
    lights=st.lists(st.builds(Target, st.integers(0, 9), boxes, ids, attributes), max_size=4).map(tuple),
    dropped=st.lists(
        st.builds(
            Dropped,
            ids,
            st.sampled_from(["degenerate", "outside_frame", "duplicate", "rule", "min_visible", "min_side"]),
            st.none() | st.integers(0, 9),
            st.none() | boxes,
            attributes,
        ),
        max_size=4,
    ).map(tuple),
)
recipes = st.sampled_from(
    [
        None,
        {"clahe": {"clip_limit": 2.5, "grid": 8}},
        {"gaussian": {"sigma_px": 1.25}},
        {"clahe": {"clip_limit": 1.5, "grid": 8}, "motion": {"length_px": 5, "angle_deg": 70}},
    ]
)
images = st.builds(
    ImageRecord,
    name=names.filter(lambda name: "\n" not in name).map(lambda name: f"{name}.jpg"),
    split=st.sampled_from(SPLITS),
    frame=names,
    sequence=sequences,
    window=st.builds(Window, st.integers(0, 9999), st.integers(0, 9999), st.integers(1, 9999), st.integers(1, 9999)),
    scale=st.floats(1e-3, 1e3),
    augmentation=recipes,
    targets=st.lists(ids, max_size=3).map(tuple),
    slivers=st.lists(ids, max_size=3).map(tuple),
    masked=st.lists(ids, max_size=3).map(tuple),
)


@given(st.lists(frames, max_size=3))
def test_frame_lines_there_and_back(tmp_path_factory, records):
    root = tmp_path_factory.mktemp("d")
    (root / "frames.jsonl").write_bytes(b"".join(orjson.dumps(frame_to_json(r)) + b"\n" for r in records))
    assert list(read_frames(root)) == records  # floats to the last bit


@given(st.lists(images, max_size=3))
def test_image_lines_there_and_back(tmp_path_factory, records):
    root = tmp_path_factory.mktemp("d")
    (root / "manifest.jsonl").write_bytes(b"".join(orjson.dumps(image_to_json(r)) + b"\n" for r in records))
    assert list(read_images(root)) == records


# --- labels ----------------------------------------------------------------------------------------------


def test_a_label_line_by_hand():
    targets = [Target(0, Box(64, 128, 128, 256), 1), Target(1, Box(0, 0, 640, 640), 2)]
    assert label_text(targets, (640, 640)) == (
        "0 0.150000 0.300000 0.100000 0.200000\n1 0.500000 0.500000 1.000000 1.000000\n"
    )
    assert label_text([], (640, 640)) == ""


@st.composite
def inside(draw):
    width, height = draw(st.integers(32, 4096)), draw(st.integers(32, 4096))
    found = []
    for _ in range(draw(st.integers(0, 5))):
        x1, x2 = sorted((draw(st.floats(0, width)), draw(st.floats(0, width))))
        y1, y2 = sorted((draw(st.floats(0, height)), draw(st.floats(0, height))))
        found.append(Target(draw(st.integers(0, 3)), Box(x1, y1, x2, y2), len(found)))
    return (width, height), found


@given(inside())
def test_label_text_back_to_boxes(tmp_path_factory, drawn):
    (width, height), targets = drawn
    path = tmp_path_factory.mktemp("d") / "a.txt"
    path.write_text(label_text(targets, (width, height)))
    back = read_boxes(path, (width, height))
    assert [class_id for class_id, _ in back] == [target.class_id for target in targets]
    for (_, box), target in zip(back, targets, strict=True):
        for value, expected, size in zip(box, target.box, (width, height) * 2, strict=True):
            assert abs(value - expected) <= 1e-6 * size  # 6 decimals: half a unit each for centre and half the size


@given(inside())
def test_label_values_are_shares(drawn):
    size_wh, targets = drawn
    for line in label_text(targets, size_wh).splitlines():
        assert all(0 <= float(value) <= 1 for value in line.split()[1:])
