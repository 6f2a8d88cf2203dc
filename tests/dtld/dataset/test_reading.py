"""Files of a dataset that are wrong are named, with the line; data.yaml there and back."""

import json

import pytest
import yaml

from dtld_tools.dataset.consistency import read_sound_report
from dtld_tools.dataset.data_yaml import read_class_names, write_data_yaml
from dtld_tools.dataset.reading import read_frames, read_images
from dtld_tools.dataset.records import frame_to_json
from dtld_tools.errors import DatasetError
from dtld_tools.files import UNFINISHED
from dtld_tools.types import FrameRecord, SequenceId

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
