"""The page: whole HTML that stands alone, with everything of the user's as text, and crops that show what they say."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="needs the extra kd")

from kd.analysis.measure import measure
from kd.analysis.page import to_page
from kd.analysis.pictures import TRUTH, Layer, crop, region_of
from kd.scoring.frames import Frame, View
from tests.kd.analysis.planted import detector, make_frames

HOSTILE = {0: '<script>alert("red")</script>', 1: 'a "b" & <i>'}
VOID = {"br", "img", "meta", "rect", "path"}


class Strict(HTMLParser):
    """Checks that tags nest, and keeps what a browser would look at."""

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def page_of(frames, found, names):
    analysis = measure(frames, found, names, 0.25)
    titles = ["plain<0>", "kd"][: len(found)]
    models = [{"title": title, **row} for title, row in zip(titles, analysis.figures["models"], strict=True)]
    told = {"data": "<data>.yaml", "split": "test", "full_frame": False, "label_errors": None}
    return to_page({**told, **analysis.figures, "models": models}, analysis), analysis


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A page of two models with mistakes of every kind, and names that are markup."""
    frames = [replace(f, name=f"<b>{f.name}</b>") for f in make_frames(tmp_path_factory.mktemp("frames"))]
    first = detector(frames, {"drop": 2, "shift": 2, "swap": 2, "both": 2, "duplicate": 2, "background": 2})
    return page_of(frames, [first, detector(frames, {"background": 3})], HOSTILE)


def test_it_is_whole_and_loads_and_runs_nothing(both):
    page = Strict(both[0])
    assert not {"script", "link", "iframe", "object", "embed", "base", "form", "b><script"} & set(page.tags)
    assert "default-src 'none'" in both[0]
    sources = [value for key, value in page.attributes if key in ("src", "srcset", "href", "data", "action")]
    assert len(sources) > 12
    assert all(value.startswith(("data:image/jpeg;base64,", "#")) for value in sources)
    assert not [key for key, _ in page.attributes if key.startswith("on")]
    assert "url(" not in both[0]


def test_what_the_user_calls_things_is_text(both):
    page = Strict(both[0])
    for words in (*HOSTILE.values(), "plain<0>", "<data>.yaml", "<b>frame00</b>"):
        assert words in page.words
    assert page.tags.count("script") == page.tags.count("i") == 0


def test_it_can_be_used_by_keyboard_and_read_aloud(both):
    page = Strict(both[0])
    ids = {value for key, value in page.attributes if key == "id"}
    links = [value[1:] for key, value in page.attributes if key == "href"]
    assert links[0] == "main"
    assert len(links) == 7
    assert set(links) <= ids
    assert page.tags.count("img") == sum(key == "alt" and len(value) > 10 for key, value in page.attributes) > 8
    assert page.tags.count("summary") == page.tags.count("details") > 8
    assert [pair for pair in page.attributes if pair[0] == "lang"] == [("lang", "en")]
    assert ":focus-visible" in both[0]
    assert "prefers-color-scheme: dark" in both[0]


def test_it_says_what_the_figures_say(both):
    words, figures = Strict(both[0]).words, both[1].figures
    for row in figures["models"]:
        for kind, its in row["errors"].items():
            assert not its["count"] or re.search(rf"{kind}, (plain<0>|kd): {its['count']}", words)
    assert f"both find {figures['pair']['both']}" in words
    assert "1.20" not in words  # of another test
    assert f"{figures['models'][0]['false_alarms_per_frame']:.2f}" in words


def test_a_split_without_red_lights_has_no_threshold_for_them(tmp_path):
    frames = [replace(frame, class_ids=np.ones(8, int)) for frame in make_frames(tmp_path, 2)]
    words = Strict(page_of(frames, [detector(frames, {})], {0: "red", 1: "green"})[0]).words
    assert "0 of 0" in words
    assert "there are none" in words
    assert "not reached" not in words


def test_a_threshold_as_it_is_printed_reaches_its_recall(tmp_path):
    frames = make_frames(tmp_path, 2)
    words = Strict(page_of(frames, [detector(frames, {}, confidence=0.1236)], {0: "red", 1: "green"})[0]).words
    assert "0.123" in words
    assert "0.124" not in words


def test_frames_are_named_below_the_folder_that_they_share(tmp_path):
    frames = [replace(f, name=f"../far/{'ab'[i]}/0.png") for i, f in enumerate(make_frames(tmp_path, 2))]
    page = Strict(page_of(frames, [[d[:0] for d in detector(frames, {})]], {0: "red", 1: "green"})[0])
    assert "a/0.png" in page.words
    assert "b/0.png" in page.words
    assert "far" not in page.words


def test_both_models_shares_stand_in_one_cell(both):
    groups = sum(map(len, both[1].figures["models"][0]["recall_by"].values()))
    assert both[0].count('class="share"') == 2 * groups
    assert both[0].count('</div><div class="share">') == groups


def test_one_model_that_finds_nothing(tmp_path):
    frames = make_frames(tmp_path, 2)
    source, _ = page_of(frames, [[d[:0] for d in detector(frames, {})]], {0: "red", 1: "green"})
    page = Strict(source)
    assert "not reached, 0.0 % at most" in page.words
    assert "Side by side" not in page.words
    assert "sure (confidence 0.6 and more) where a label is missing, or of another class: 0 times." in page.words


# --- crops -------------------------------------------------------------------------------------------------


def test_a_crop_is_put_together_of_its_frames_images(tmp_path):
    """Two tiles of one colour each, which overlap; the light lies across."""
    views = []
    for name, colour, window in (("a", (200, 0, 0), (0, 0, 60, 80)), ("b", (0, 0, 200), (50, 0, 100, 80))):
        path = tmp_path / f"{name}.png"
        Image.new("RGB", (2 * (window[2] - window[0]), 160), colour).save(path)
        views.append(View(path, window, 2.0))
    frame = Frame.unlabelled("f", (100, 80), tuple(views))
    picture = np.asarray(Image.open(io.BytesIO(crop(frame, (45, 30, 55, 40), []))))
    height, width = picture.shape[:2]
    assert (width, height) == (288, 288)
    assert np.abs(picture[:, :100].astype(int) - (200, 0, 0)).max() < 12
    assert np.abs(picture[:, 200:].astype(int) - (0, 0, 200)).max() < 12


def test_boxes_are_outlined_where_they_are(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (96, 96), "#404040").save(path)
    frame = Frame.unlabelled("f", (96, 96), (View(path, (0, 0, 96, 96), 1.0),))
    box = np.array([[40, 40, 56, 56.0]])
    picture = np.asarray(Image.open(io.BytesIO(crop(frame, box[0], [Layer(box, TRUTH)]))).convert("L")).astype(int)
    zoom = 288 / 48  # three times its side
    edge = round(16 * zoom)
    assert picture[144, edge - 2] > 200
    assert abs(picture[144, 144] - 0x40) < 8
    assert abs(picture[144, edge - 10] - 0x40) < 24


def test_the_box_that_a_crop_is_of_is_thicker_than_others(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (96, 96), "#404040").save(path)
    frame = Frame.unlabelled("f", (96, 96), (View(path, (0, 0, 96, 96), 1.0),))
    boxes = np.array([[40, 40, 56, 56], [42, 26, 54, 34.0]])
    picture = np.asarray(Image.open(io.BytesIO(crop(frame, boxes[0], [Layer(boxes, TRUTH)]))).convert("L")).astype(int)
    bright = picture[:, 144] > 150  # down the middle, through the upper and lower lines of both
    starts = np.flatnonzero(np.diff(bright.astype(int), prepend=0) == 1)
    ends = np.flatnonzero(np.diff(bright.astype(int), append=0) == -1)
    other, chosen = (ends - starts + 1)[:2], (ends - starts + 1)[2:]
    assert len(other) == len(chosen) == 2
    assert chosen.min() >= other.max() + 2  # thick lines are 3 px thicker


@pytest.mark.parametrize("box", [(0, 0, 2, 2), (90, 70, 100, 80), (0, 0, 100, 80), (40, 0, 41, 80)])
def test_a_region_is_inside_the_frame_and_holds_the_box(box):
    x1, y1, x2, y2 = region_of(box, (100, 80))
    assert 0 <= x1 <= box[0]
    assert 0 <= y1 <= box[1]
    assert box[2] <= x2 <= 100
    assert box[3] <= y2 <= 80
