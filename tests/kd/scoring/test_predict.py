"""The picture shows exactly the detections, a column per model; and what is no image gets one line."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="needs the extra kd")

from hypothesis import given
from hypothesis import strategies as st

from kd.errors import DataError, ModelError, UsageError
from kd.scoring.predict import (
    COLOUR_OF_NAME,
    Column,
    Detection,
    detect,
    draw,
    expand,
    model_title,
    predict,
    read_image,
)
from kd.scoring.predict import _overlap as overlap
from kd.scoring.predict import _place as place
from kd.ultra.models import load_model
from tests.kd_fixtures import write_dataset
from tests.kd_models import save_detector

NAMES = {0: "red", 1: "green"}
BLUE = (90, 140, 200)
SKY = np.full((480, 640, 3), BLUE[::-1], np.uint8)


def column(*detections, name="student", images=1):
    return Column(
        name=name, params=2_654_816, class_names=("red", "green"), imgsz=640, device="a CPU", times_ms=(20.0,) * images,
        detections=(detections,) * images,
    )  # fmt: skip


def pixels_of(page, name):
    """How many pixels have the colour of a class."""
    colour = tuple(int(COLOUR_OF_NAME[name][i : i + 2], 16) for i in (1, 3, 5))
    return int((np.asarray(page) == colour).all(axis=2).sum())


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("images"), test=3).parent / "images" / "test"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [
        save_detector(folder / "plain" / "weights" / "best.pt", NAMES),
        save_detector(folder / "distilled.pt", NAMES, seed=1),
    ]


def test_a_box_is_outlined_around_its_object_in_the_colour_of_its_class():
    empty = np.asarray(draw([column()], [SKY], ["a.jpg"], 0.25))
    page = np.asarray(draw([column(Detection((100, 200, 140, 300), "red", 0.9))], [SKY], ["a.jpg"], 0.25))
    top, left = np.argwhere((empty == BLUE).all(axis=2))[0]
    cell = page[top : top + 480, left : left + 640]
    red = tuple(int(COLOUR_OF_NAME["red"][i : i + 2], 16) for i in (1, 3, 5))
    assert (cell[210:290, [98, 99, 140, 141]] == red).all()  # two pixels on either side
    assert (cell[[198, 199, 300, 301], 105:135] == red).all()
    assert (cell[200:300, 100:140] == BLUE).all()  # what was found stays visible
    assert (cell[185, 101] == red).all()  # the label above
    assert (cell[303:, :] == BLUE).all()  # and nothing anywhere else
    assert (cell[:, 300:] == BLUE).all()


def test_only_what_was_found_is_drawn():
    legend = pixels_of(draw([column()], [SKY], ["a.jpg"], 0.25), "green")
    one = pixels_of(draw([column(Detection((50, 50, 90, 90), "green", 0.9))], [SKY], ["a.jpg"], 0.25), "green")
    red = draw([column(Detection((50, 50, 90, 90), "red", 0.9))], [SKY], ["a.jpg"], 0.25)
    assert 0 < legend < one
    assert pixels_of(red, "green") == legend


def test_a_second_model_is_a_second_column_and_a_second_image_a_second_row():
    found = Detection((50, 50, 90, 90), "red", 0.5)
    one = draw([column(found)], [SKY], ["a.jpg"], 0.25)
    wide = draw([column(found), column(name="teacher")], [SKY], ["a.jpg"], 0.25)
    high = draw([column(found, images=2)], [SKY, SKY], ["a.jpg", "b.jpg"], 0.25)
    assert (wide.width - one.width, wide.height) == (640 + 16, one.height)
    assert (high.width, high.height - one.height) == (one.width, 480 + 20 + 16)
    boxes = [
        pixels_of(page, "red") - pixels_of(draw([column()], [SKY], ["a"], 0.25), "red") for page in (one, wide, high)
    ]
    assert boxes == [boxes[0], boxes[0], 2 * boxes[0]]


def test_columns_are_as_wide_as_the_images_within_bounds():
    def width(wide):
        return draw([column()], [np.zeros((100, wide, 3), np.uint8)], ["a"], 0.25).width

    assert width(40) == width(640) == 640 + 2 * 24
    assert width(2048) == width(1280) == 1280 + 2 * 48


@given(
    boxes=st.lists(st.tuples(*[st.integers(0, 180)] * 2, *[st.integers(1, 60)] * 2), min_size=1, max_size=6),
    size=st.tuples(st.integers(5, 80), st.integers(5, 20)),
)
def test_labels_stay_in_the_picture_and_avoid_each_other_where_they_can(boxes, size):
    labels = []
    for x, y, w, h in boxes:
        label = place((x, y, x + w, y + h), size, (240, 240), [], labels)
        assert 0 <= label[0] < label[2] <= 240
        assert 0 <= label[1] < label[3] <= 240
        assert (label[2] - label[0], label[3] - label[1]) == size
        labels.append(label)
    free = place((100, 100, 120, 120), size, (240, 240), [], [(0, 0, 240, 99)])
    assert overlap(free, (0, 0, 240, 99)) == 0


def test_predict_draws_and_counts_what_the_model_finds(images, models, tmp_path):
    out = tmp_path / "pictures" / "a1.png"
    found = predict([images], models, out, conf=0.45, device="cpu")
    with Image.open(out) as page:
        assert (page.format, page.mode) == ("PNG", "RGB")
        assert page.width == 2 * 640 + 16 + 2 * 24
    assert [row["name"] for row in found["models"]] == ["plain", "distilled"]
    assert (found["images"], found["out"]) == (3, str(out))
    assert found["device"]
    for row, path in zip(found["models"], models, strict=True):
        yolo = load_model(path)
        expected = sum(
            len(yolo.predict(cv2.imread(str(image)), imgsz=96, conf=0.45, save=False, verbose=False)[0])
            for image in sorted(images.iterdir())
        )
        assert row["detections"] == expected > 0
        assert row["params"] == sum(p.numel() for p in load_model(path).model.parameters())
        assert 0 < row["mean_ms"] < 10_000
        assert 0 < row["median_ms"] < 10_000
    json.dumps(found)
    assert list(out.parent.iterdir()) == [out]  # nothing half-written


def test_a_higher_confidence_shows_fewer(images, models, tmp_path):
    many, few = (
        predict([images], models[:1], tmp_path / "a.png", conf=conf, limit=1, device="cpu")["models"][0]["detections"]
        for conf in (0.4, 0.7)
    )
    assert few < many


def test_a_folder_gives_its_first_images_in_order(tmp_path):
    for name in ("c.jpg", "a.PNG", "b.tiff", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in expand([tmp_path], 2)] == ["a.PNG", "b.tiff"]
    assert [path.name for path in expand([tmp_path / "c.jpg", tmp_path], 1)] == ["c.jpg", "a.PNG"]


def test_bad_images_get_one_line_each(tmp_path):
    def error(path):
        with pytest.raises(DataError) as caught:
            expand([path], 3) and read_image(path)
        assert "\n" not in str(caught.value)
        return str(caught.value).removeprefix(str(tmp_path))

    (tmp_path / "empty").mkdir()
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "zero.png").touch()
    cv2.imwrite(str(tmp_path / "raw.tiff"), np.zeros((8, 8), np.uint16))
    cv2.imwrite(str(tmp_path / "deep.png"), np.zeros((8, 8, 3), np.uint16))
    assert error(tmp_path / "no.jpg") == "/no.jpg: no such file or folder, expected an image or a folder of images"
    assert error(tmp_path / "empty").startswith("/empty: got a folder without images, expected .bmp, .jpeg")
    assert error(tmp_path / "text.jpg") == "/text.jpg: got 10 bytes that OpenCV cannot decode, expected an image"
    assert error(tmp_path / "zero.png") == "/zero.png: got 0 bytes that OpenCV cannot decode, expected an image"
    assert error(tmp_path / "raw.tiff") == (
        "/raw.tiff: got uint16 in one channel, expected an 8-bit image; a raw DTLD frame? run `dtld convert` first"
    )
    assert "got uint16 in 3 channels" in error(tmp_path / "deep.png")


def test_a_model_of_more_channels_than_pictures_have_is_refused(tmp_path):
    model = save_detector(tmp_path / "m.pt", {0: "a"}, channels=4)
    with pytest.raises(ModelError, match=r"m\.pt: got a model of 4 channels, expected 3, or 1 for grey"):
        detect(model, [np.zeros((64, 64, 3), np.uint8)], device="cpu", quiet=True)


def test_grey_images_are_read_as_colour(tmp_path):
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((4, 6), 7, np.uint8))
    assert (read_image(tmp_path / "grey.png") == np.full((4, 6, 3), 7)).all()


@pytest.mark.parametrize(
    ("models", "out", "message"),
    [
        ([], "a.png", "--model: got 0 models, expected one or two"),
        (["a.pt"] * 3, "a.png", "--model: got 3 models, expected one or two"),
        (["a.pt"], "a.jpg", r"--out: got 'a.jpg', expected a file name that ends in .png"),
    ],
)
def test_wrong_options_are_refused_before_any_work(models, out, message):
    with pytest.raises(UsageError, match=message):
        predict(["missing.jpg"], models, out)


@pytest.mark.parametrize(
    ("path", "title"),
    [
        ("runs/student-fgfi/weights/best.pt", "student-fgfi"),
        ("runs/a/weights/last.pt", "a"),
        ("shared/weights/yolo11n_coco.pt", "yolo11n_coco"),
        ("yolo11n.pt", "yolo11n"),
    ],
)
def test_a_model_is_called_by_its_run_or_its_file(path, title):
    assert model_title(path) == title
