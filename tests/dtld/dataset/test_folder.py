"""The dataset on disk: lines and labels there and back, and an output folder that is only taken if it is ours."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dtld_tools.dataset import folder
from dtld_tools.dataset.consistency import read_sound_report
from dtld_tools.dataset.data_yaml import read_class_names, write_data_yaml
from dtld_tools.dataset.folder import line_files, output
from dtld_tools.dataset.reading import read_frames, read_images
from dtld_tools.dataset.records import frame_to_json, image_to_json, label_text
from dtld_tools.errors import DatasetError, ImageError
from dtld_tools.export.preview import read_boxes
from dtld_tools.files import UNFINISHED
from dtld_tools.types import SPLITS, Box, Dropped, FrameRecord, ImageRecord, SequenceId, Target, Window
from tests.dtld_data import tree_bytes

# --- lines -----------------------------------------------------------------------------------------------

names = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="/\0"), min_size=1, max_size=12)
ids = st.one_of(
    st.integers(-(2**53), 2**53), st.builds("{}#{}".format, st.integers(-(10**6), 10**6), st.integers(2, 99))
)
finite = st.floats(-1e15, 1e15, allow_nan=False)
boxes = st.builds(Box, finite, finite, finite, finite)
sequences = st.builds(SequenceId, names, names, names)
frames = st.builds(
    FrameRecord,
    frame=names,
    sequence=sequences,
    split=st.sampled_from(SPLITS),
    width=st.integers(1, 10**5),
    height=st.integers(1, 10**5),
    lights=st.lists(st.builds(Target, st.integers(0, 9), boxes, ids), max_size=4).map(tuple),
    dropped=st.lists(
        st.builds(
            Dropped,
            ids,
            st.sampled_from(["degenerate", "outside_frame", "duplicate", "rule", "min_visible", "min_side"]),
            st.none() | st.integers(0, 9),
            st.none() | boxes,
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


# --- reading what is wrong -------------------------------------------------------------------------------

GOOD = FrameRecord("A/1/s/a.tiff", SequenceId("A", "1", "s"), "train", 64, 32, (), ())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2"),
        ("[]", "line 2"),
        (json.dumps(frame_to_json(GOOD) | {"split": "dev"}), "line 2.*split"),
        (json.dumps(frame_to_json(GOOD) | {"width": 0}), "line 2.*width"),
        (json.dumps(frame_to_json(GOOD) | {"extra": 0}), "line 2.*extra"),
        (json.dumps(frame_to_json(GOOD) | {"lights": [{"id": 1, "class": 0}]}), "line 2.*box"),
        (json.dumps(frame_to_json(GOOD) | {"dropped": [{"id": 1, "reason": "mood"}]}), "line 2.*reason"),
        (
            json.dumps(frame_to_json(GOOD) | {"lights": [{"id": "x", "class": 0, "box": [0, 0, 1, 1]}]}),
            "line 2.*id",
        ),
    ],
)
def test_a_wrong_line_is_named_by_its_number(tmp_path, line, message):
    (tmp_path / "frames.jsonl").write_text(json.dumps(frame_to_json(GOOD)) + "\n" + line + "\n")
    with pytest.raises(DatasetError, match=message) as caught:
        list(read_frames(tmp_path))
    assert str(tmp_path / "frames.jsonl") in str(caught.value)


def test_a_folder_that_is_no_dataset(tmp_path):
    for read in (lambda: list(read_frames(tmp_path)), lambda: list(read_images(tmp_path))):
        with pytest.raises(DatasetError, match=r"No such file.*expected a dataset made by dtld"):
            read()
    with pytest.raises(DatasetError, match=r"data.yaml: No such file"):
        read_class_names(tmp_path)
    with pytest.raises(DatasetError, match=r"report.json"):
        read_sound_report(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "names: 3",
        "names: {1: a}",
        "names: {a: b}",
        "train: x",
        "names: [",
        b"\xff\xfe\xff",
        "names: {0: a, 2: b}",
        "names: abc",
        "names: 2015-99-99",
    ],
)
def test_a_data_yaml_without_numbered_names(tmp_path, text):
    (tmp_path / "data.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DatasetError, match=r"yaml: (got no class names numbered from 0|line 2: got no YAML|byte 0)"):
        read_class_names(tmp_path)


def test_data_yaml_there_and_back(tmp_path):
    (tmp_path / UNFINISHED).mkdir()
    write_data_yaml(tmp_path, ("relevant", "not_relevant"))
    assert yaml.safe_load((tmp_path / "data.yaml").read_text()) == {
        "train": "images/train",
        "val": "images/val",
        "test": "images/test",
        "names": {0: "relevant", 1: "not_relevant"},
    }  # no `path`: Ultralytics resolves beside the file
    assert read_class_names(tmp_path) == ("relevant", "not_relevant")


# --- the output folder -----------------------------------------------------------------------------------


def start(out, identity="one", *, overwrite=False):
    """Begin a dataset and stop in the middle."""
    with output(out, identity, overwrite=overwrite):
        (out / "images/train/a.jpg").write_bytes(b"a")


def finish(out, identity="one"):
    with output(out, identity, overwrite=False):
        (out / "images/train/a.jpg").write_bytes(b"a")
        folder.finish(out, {"identity": identity})


def test_a_new_folder_is_opened_and_finished(tmp_path):
    out = tmp_path / "deep" / "out"
    with output(out, "one", overwrite=False):
        assert {p.relative_to(out).as_posix() for p in out.glob("*/*")} == {
            ".unfinished/identity",
            ".unfinished/lock",
            *(f"{kind}/{split}" for kind in ("images", "labels") for split in SPLITS),
        }
        folder.finish(out, {"identity": "one"})
    assert sorted(p.name for p in out.iterdir()) == ["images", "labels", "report.json"]


def test_an_interrupted_one_stays_marked(tmp_path):
    with pytest.raises(KeyboardInterrupt), output(tmp_path, "one", overwrite=False):
        raise KeyboardInterrupt
    assert (tmp_path / ".unfinished" / "identity").read_text() == "one"


@pytest.mark.parametrize("make", [start, finish])
def test_the_same_plan_continues_and_another_is_refused(tmp_path, make):
    out = tmp_path / "out"
    make(out)
    before = tree_bytes(out, without=())
    with (
        pytest.raises(DatasetError, match=r"holds a dataset of another configuration.*--overwrite"),
        output(out, "two", overwrite=False),
    ):
        pass
    assert tree_bytes(out, without=()) == before  # a refusal touches nothing
    with output(out, "one", overwrite=False):
        assert (out / "images/train/a.jpg").exists()


def test_overwrite_replaces_the_other_dataset_and_nothing_foreign(tmp_path):
    out = tmp_path / "out"
    finish(out)
    (out / "notes.txt").write_text("mine")
    (out / "runs").mkdir()
    (out / "runs" / "best.pt").write_bytes(b"weights")
    with output(out, "two", overwrite=True):
        # The old one stands aside until the new one is finished: the input may turn out to be wrong.
        aside = {name: data for name, data in tree_bytes(out, without=()).items() if "/replaced/" in name}
        assert set(aside) == {".unfinished/replaced/images/train/a.jpg", ".unfinished/replaced/report.json"}
        assert tree_bytes(out, without=(".unfinished/lock", *aside)) == {
            ".unfinished/identity": b"two",
            "notes.txt": b"mine",
            "runs/best.pt": b"weights",
        }
        folder.finish(out, {"identity": "two"})
    assert set(tree_bytes(out, without=())) == {"notes.txt", "runs/best.pt", "report.json"}


def replace_and_fail(out, error):
    with output(out, "two", overwrite=True):
        assert not (out / "images/train/a.jpg").exists()  # an image of the old one is none of the new one
        (out / "images/train/b.jpg").write_bytes(b"of the new one")
        (out / "frames.jsonl").write_bytes(b"of the new one")
        raise error("a frame cannot be read")


@pytest.mark.parametrize("error", [DatasetError, ImageError])
def test_a_replaced_dataset_comes_back_when_the_input_is_wrong(tmp_path, error):
    out = tmp_path / "out"
    finish(out)
    (out / "notes.txt").write_text("mine")
    before = tree_bytes(out, without=())
    with pytest.raises(error):
        replace_and_fail(out, error)
    assert tree_bytes(out, without=()) == before
    with output(out, "one", overwrite=False):  # it is as it was
        pass


@pytest.mark.parametrize("moves", range(5))
def test_a_replaced_dataset_is_there_however_the_run_was_killed(tmp_path, monkeypatch, moves):
    """Killed before, between and after the moves aside; then the same command goes on, or its input is wrong."""
    out, left = tmp_path / "out", [moves]
    finish(out)
    before = tree_bytes(out, without=())
    replace = Path.replace

    def replace_or_die(self, target):
        if ".unfinished/replaced" in str(target):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replace_or_die)
    with pytest.raises(KeyboardInterrupt), output(out, "two", overwrite=True):
        raise KeyboardInterrupt
    monkeypatch.undo()
    with pytest.raises(DatasetError):
        replace_and_fail(out, DatasetError)
    assert tree_bytes(out, without=()) == before


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_second_process_is_refused_and_the_first_goes_on(tmp_path, overwrite):
    out = tmp_path / "out"
    code = (
        f"from pathlib import Path; from dtld_tools.dataset.folder import output; out = Path({str(out)!r})\n"
        f"with output(out, 'one', overwrite={overwrite}): print('in')"
    )
    with output(out, "one", overwrite=False):
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "DatasetError" in second.stderr
        assert "another process is writing this dataset" in second.stderr
        assert (out / "images/train").is_dir()
        folder.finish(out, {"identity": "one"})
    third = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert third.stdout == "in\n"


@pytest.mark.parametrize("overwrite", [True, False])
def test_foreign_files_are_never_taken_over(tmp_path, overwrite):
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    (tmp_path / "report.json").write_text('["another tool"]')
    with pytest.raises(DatasetError, match="holds files that are no dataset of dtld"):
        start(tmp_path, overwrite=overwrite)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photo.jpg", "report.json"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(DatasetError, match="out: is a file"):
        start(tmp_path / "out", overwrite=True)


def test_a_run_killed_before_its_first_file_can_be_continued(tmp_path):
    """The mark's folder is made first; a kill right after it must not lock the output for good."""
    (tmp_path / UNFINISHED).mkdir()
    (tmp_path / UNFINISHED / "123.tmp").write_bytes(b"half")
    (tmp_path / UNFINISHED / "lock").write_bytes(b"")  # the lock of a process that is no more
    start(tmp_path)
    assert (tmp_path / UNFINISHED / "identity").read_text() == "one"
    assert not (tmp_path / UNFINISHED / "123.tmp").exists()


def test_lines_get_their_names_when_both_files_are_whole(tmp_path):
    (tmp_path / UNFINISHED).mkdir()
    with contextlib.suppress(KeyboardInterrupt), line_files(tmp_path) as (frames, _):
        frames.write(b"{}\n")
        raise KeyboardInterrupt
    assert not list(tmp_path.glob("*.jsonl"))
    with line_files(tmp_path) as (frames, images):
        frames.write(b"f\n")
        images.write(b"i\n")
    assert (tmp_path / "frames.jsonl").read_bytes() + (tmp_path / "manifest.jsonl").read_bytes() == b"f\ni\n"
