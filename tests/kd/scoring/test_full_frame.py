"""Whole frames: plain scores where tiles do not overlap, one box per light where they do, pycocotools' matching."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra kd")


from dtld_tools.pipeline import stages as pipeline
from dtld_tools.pipeline.stages import Selection
from dtld_tools.pixels.augment import AugmentSpec
from dtld_tools.planning.split import SplitSpec
from dtld_tools.types import TileSpec
from kd.errors import DataError, ModelError
from kd.scoring.detection_metrics import Detections, box_iou
from kd.scoring.evaluate import evaluate
from kd.scoring.frames import Frame, View
from kd.scoring.full_frame import detect, evaluate_frames, merge
from kd.ultra import models
from kd.ultra.data import label_file
from tests.dtld_data import frame_path, image, light, write_raw, write_v2
from tests.kd_models import save_detector, save_small_detector

NAMES = {0: "relevant", 1: "not_relevant"}
SIDE = 192


def one_light(number):
    return [light(20, 20, 12, 30)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_small_detector(tmp_path_factory.mktemp("model") / "tiny.pt", NAMES, imgsz=SIDE)


def make_dataset(folder, lights_of, *, tiles, frames=3, augment=None):
    """Frames of 384 x 192 in one sequence per split; ``lights_of(number)`` gives each frame's lights."""
    rng, images = np.random.default_rng(0), []
    for sequence in (1, 2, 3):
        for number in range(frames):
            path = frame_path("Berlin" if sequence == 2 else "Aachen", sequence, number)
            write_raw(folder / "raw" / path, rng, 2 * SIDE, SIDE)
            images.append(image(f"./{path}", *lights_of(number)))
    labels = write_v2(folder / "raw" / "all.json", images)
    split, augment = SplitSpec(0.33, 0.33), augment or AugmentSpec(copies=0)
    pipeline.prepare(Selection((labels,), folder / "raw"), folder / "out", split, tiles, augment, image_format="png")
    return folder / "out"


def relabel(root, model):
    """Make the test split's truth of some of the model's own detections, so that scores are neither 0 nor 1.

    Each is further from its tile's edges than it is wide and high, so nothing that fits it reaches over an edge: plain
    evaluation takes such boxes as they are, a frame's end at the edge of the tile.
    """
    yolo = models.load_model(model)
    manifest = [json.loads(line) for line in (root / "manifest.jsonl").read_text().splitlines()]
    lights = {}
    for line in manifest:
        if line["split"] != "test":
            continue
        path, window = root / "images" / "test" / line["name"], line["window"]
        found = yolo.predict(path, imgsz=SIDE, conf=0.1, save=False, verbose=False)[0].boxes
        boxes, classes = found.xyxy.numpy(), found.cls.int().tolist()
        width, height = found.orig_shape[::-1]
        sides = boxes[:, 2:] - boxes[:, :2]
        inside = ((boxes[:, :2] > sides) & (boxes[:, 2:] < (width, height) - sides)).all(1)
        rows = np.flatnonzero(inside)[:24:2].tolist()  # the surest come first
        text = ""
        for i in rows:
            x1, y1, x2, y2 = map(float, boxes[i])
            text += f"{classes[i]} {(x1 + x2) / 2 / width} {(y1 + y2) / 2 / height} "
            text += f"{(x2 - x1) / width} {(y2 - y1) / height}\n"
            box = (boxes[i] / line["scale"] + [window["x"], window["y"]] * 2).tolist()
            known = lights.setdefault(line["frame"], [])
            known.append({"id": len(known), "class": classes[i], "box": box})
        label_file(path).write_text(text)
    frames = [json.loads(line) for line in (root / "frames.jsonl").read_text().splitlines()]
    for frame in frames:
        if frame["split"] == "test":
            frame["lights"] = lights.get(frame["frame"], [])
    (root / "frames.jsonl").write_text("".join(json.dumps(frame) + "\n" for frame in frames))
    assert sum(map(len, lights.values())) > 20


@pytest.fixture(scope="module")
def tiled(tmp_path_factory, model):
    """Two tiles a frame that only touch each other."""
    root = make_dataset(tmp_path_factory.mktemp("tiled"), one_light, tiles=TileSpec(size_px=SIDE, overlap=0))
    relabel(root, model)
    return root


# --- the same as plain evaluation -------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["grid", "halves", "frame"])
def test_where_tiles_do_not_overlap_the_figures_are_those_of_plain_evaluation(tmp_path, model, layout):
    spec = TileSpec(layout=layout, size_px=128 if layout == "halves" else SIDE, overlap=0)  # halves: scale 2/3
    root = make_dataset(tmp_path, one_light, tiles=spec)
    relabel(root, model)
    plain = evaluate(root / "data.yaml", model, device="cpu")
    whole = evaluate_frames(root / "data.yaml", model, device="cpu")
    assert 0.02 < plain["map50_95"] < 0.95  # or the comparison would say nothing
    assert (whole["instances"], whole["images"]) == (plain["instances"], plain["images"])
    assert (whole["frames"], whole["merged"], whole["ignored"]) == (3, 0, 0)
    for key in ("map50", "map50_95", "precision", "recall"):
        assert whole[key] == pytest.approx(plain[key], abs=1e-6), key
    for name in NAMES.values():
        assert whole["per_class"][name] == pytest.approx(plain["per_class"][name], abs=1e-6)


def test_augmented_copies_are_neither_looked_at_nor_counted(tmp_path, model):
    augment = AugmentSpec(clahe=1, blur=1, copies=1, splits=("test",))
    tiles = TileSpec(size_px=SIDE, overlap=0)
    root = make_dataset(tmp_path, one_light, tiles=tiles, augment=augment)
    assert len(list((root / "images" / "test").iterdir())) == 12
    found = evaluate_frames(root / "data.yaml", model, device="cpu")
    assert (found["images"], found["frames"], found["instances"]) == (6, 3, 3)


# --- merging ----------------------------------------------------------------------------------------------


def views_of(spec, width, height):
    from dtld_tools.planning.tile import windows

    cut = [(w.x, w.y, min(w.x + w.w, width), min(w.y + w.h, height)) for w in windows(width, height, spec)]
    return tuple(View(None, window, 1.0) for window in cut)


def make_frame(boxes, views, size_wh, classes=None):
    boxes = np.array(boxes, float).reshape(-1, 4)
    classes = np.zeros(len(boxes), int) if classes is None else np.array(classes)
    return Frame("f", "Berlin", size_wh, boxes, classes, np.ones(len(boxes), bool), views)


def seen_by_tiles(frame, rng, jitter_px=0.0):
    """What a perfect detector finds in each tile: every light's visible part, up to a jitter, in random confidence."""
    found = []
    for view in frame.views:
        x1, y1, x2, y2 = view.window_xyxy
        low, high = np.array([x1, y1, x1, y1]), np.array([x2, y2, x2, y2])
        boxes = np.clip(frame.boxes_xyxy + rng.uniform(-jitter_px, jitter_px, frame.boxes_xyxy.shape), low, high)
        there = (boxes[:, :2] < boxes[:, 2:]).all(1)
        boxes = (boxes - [x1, y1, x1, y1])[there] * view.scale
        found.append(Detections(boxes, rng.uniform(0.3, 1, len(boxes)), frame.class_ids[there]))
    return found


def apart(rng, count, size_wh, sides):
    """Boxes that keep a distance of each other, on a grid of cells."""
    cell = sides[1] + 12
    columns = size_wh[0] // cell
    cells = rng.choice(columns * (size_wh[1] // cell), count, replace=False)
    wh = rng.uniform(*sides, (count, 2))
    xy = np.column_stack([cells % columns, cells // columns]) * cell + rng.uniform(4, 8, (count, 2))
    return np.hstack([xy, xy + wh])


@pytest.mark.parametrize("overlap", [0.2, 0.5])
@pytest.mark.parametrize("sides", [(6, 30), (20, 90)], ids=["small", "larger than the overlap"])
def test_one_box_remains_of_each_light_and_it_is_the_whole_light(overlap, sides):
    rng, size = np.random.default_rng(1), (1024, 640)
    views = views_of(TileSpec(size_px=192, overlap=overlap), *size)
    for _ in range(5):
        frame = make_frame(apart(rng, 30, size, sides), views, size, rng.integers(0, 2, 30))
        merged = merge(frame, seen_by_tiles(frame, rng))
        assert len(merged) == 30
        iou = box_iou(merged.boxes_xyxy, frame.boxes_xyxy)
        assert sorted(iou.argmax(1)) == list(range(30))
        assert iou.max(1) == pytest.approx(1)
        assert (frame.class_ids[iou.argmax(1)] == merged.class_ids).all()


def test_boxes_that_tiles_see_a_little_differently_are_one_light_too():
    rng, size = np.random.default_rng(2), (1024, 640)
    views = views_of(TileSpec(size_px=192, overlap=0.3), *size)
    for _ in range(5):
        frame = make_frame(apart(rng, 30, size, (10, 40)), views, size)
        merged = merge(frame, seen_by_tiles(frame, rng, jitter_px=0.7))
        assert len(merged) == 30
        assert (box_iou(merged.boxes_xyxy, frame.boxes_xyxy).max(0) > 0.7).all()


TWO = (View(None, (0, 0, 100, 100), 1.0), View(None, (60, 0, 160, 100), 1.0))


def on_two_tiles(*tiles):
    """Merge lists of (box, confidence, class) in the pixels of two tiles that overlap by 40."""
    found = []
    for rows in tiles:
        boxes, confidences, class_ids = zip(*rows, strict=True) if rows else ((), (), ())
        boxes = np.array(boxes, float).reshape(-1, 4)
        found.append(Detections(boxes, np.array(confidences, float), np.array(class_ids, int)))
    return merge(make_frame([], TWO, (160, 100)), found)


def test_half_a_light_gives_way_to_the_tile_that_has_it_whole_though_it_is_less_sure():
    merged = on_two_tiles([((90, 20, 100, 60), 0.9, 0)], [((30, 20, 60, 60), 0.2, 0)])
    assert merged.boxes_xyxy.tolist() == [[90, 20, 120, 60]]
    assert merged.confidences.tolist() == [0.2]


def test_a_light_wider_than_the_overlap_is_joined_with_the_greater_confidence():
    merged = on_two_tiles([((30, 20, 100, 60), 0.4, 0)], [((0, 21, 80, 60), 0.8, 0)])
    assert merged.boxes_xyxy.tolist() == [[30, 20, 140, 60]]
    assert merged.confidences.tolist() == [0.8]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (((70, 20, 80, 40), 0.9, 0), ((10, 20, 20, 40), 0.8, 1)),
        (((70, 20, 80, 40), 0.9, 0), ((18, 20, 28, 40), 0.8, 0)),
        (((64, 20, 90, 80), 0.9, 0), ((8, 30, 16, 45), 0.8, 0)),
    ],
    ids=["of another class", "beside it", "a small one within a large one"],
)
def test_two_lights_stay_two(first, second):
    assert len(on_two_tiles([first], [second])) == 2


def test_what_one_tile_says_twice_is_left_to_its_own_suppression():
    rows = [((70, 20, 90, 60), 0.9, 0), ((70, 20, 90, 58), 0.8, 0)]
    assert len(on_two_tiles(rows, [])) == 2
    assert on_two_tiles(rows, [((10, 20, 30, 60), 0.95, 0)]).confidences.tolist() == [0.95]


def test_no_detection_is_no_detection():
    assert len(on_two_tiles([], [])) == 0


def test_small_frames_are_padded_and_boxes_in_the_padding_end_at_the_frame():
    views = (View(None, (0, 0, 80, 50), 0.5),)
    found = [Detections(np.array([[30, 10, 60, 40.0]]), np.array([0.9]), np.array([0]))]
    assert merge(make_frame([], views, (80, 50)), found).boxes_xyxy.tolist() == [[60, 20, 80, 50]]


def test_hundreds_of_detections_on_each_of_eight_tiles_take_little_time():
    from time import process_time

    rng, size = np.random.default_rng(0), (2048, 1024)
    views = views_of(TileSpec(), *size)
    found = []
    for _ in views:
        xy = rng.uniform(0, 600, (300, 2))
        boxes = np.hstack([xy, xy + rng.uniform(5, 40, (300, 2))])
        found.append(Detections(boxes, rng.uniform(0, 1, 300), rng.integers(0, 2, 300)))
    start = process_time()
    merged = merge(make_frame([], views, size), found)
    assert process_time() - start < 1  # 0.03 s here
    assert 0 < len(merged) < 2400


# --- end to end -------------------------------------------------------------------------------------------


def test_groups_add_up_and_small_lights_are_ignored(tmp_path, model):
    def lights_of(number):
        return [light(10, 10, 5, 20, 1), light(40, 20, 12, 30, 2), light(240, 30, 40, 50, 3), light(90, 80, 1, 9, 4)]

    root = make_dataset(tmp_path, lights_of, tiles=TileSpec(size_px=SIDE, overlap=0.2))
    found = evaluate_frames(root / "data.yaml", model, device="cpu")
    assert (found["frames"], found["images"], found["instances"], found["ignored"]) == (3, 9, 9, 3)
    assert {name: row["instances"] for name, row in found["per_size"].items()} == {
        "<8": 3, "8-16": 3, "16-32": 0, ">=32": 3,
    }  # fmt: skip
    assert found["per_size"]["16-32"] == {"instances": 0, "map50": None, "map50_95": None, "recall": None}
    (city,) = found["per_city"].values()
    assert city == {key: found[key] for key in ("frames", "instances", "map50", "map50_95")}
    assert found["merged"] > 0


def test_the_originals_detections_are_in_their_own_pixels(tiled, model):
    yolo = models.load_model(model)
    paths = sorted((tiled / "images" / "test").iterdir())[:2]
    found = detect(
        yolo, [View(path, (0, 0, SIDE, SIDE), 1.0) for path in paths], {"names": NAMES}, imgsz=2 * SIDE, device="cpu"
    )
    assert found.keys() == set(paths)
    for tile in found.values():
        assert 0 <= tile.boxes_xyxy.min() < SIDE / 2 < tile.boxes_xyxy.max() <= SIDE  # not of the enlarged image


# --- errors -----------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tiled, tmp_path):
    return shutil.copytree(tiled, tmp_path / "copy")


def test_data_without_a_manifest_is_refused(damaged, model):
    (damaged / "manifest.jsonl").unlink()
    with pytest.raises(DataError, match=r"manifest.jsonl: No such file.*, expected a dataset of dtld prepare, tile"):
        evaluate_frames(damaged / "data.yaml", model, device="cpu")


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("manifest.jsonl", "{", r"manifest.jsonl: line 1: .*; make the dataset again"),
        ("manifest.jsonl", '{"name": "a.jpg"}', r"manifest.jsonl: line 1: line must contain"),
        ("manifest.jsonl", "\xff", r"manifest.jsonl: line 1: .*UTF-8"),
        ("frames.jsonl", "[" * 100_000, r"frames.jsonl: line 1: "),
        ("frames.jsonl", None, r"manifest.jsonl: got images of .*, expected a frame of split 'test' in frames.jsonl"),
    ],
    ids=["no JSON", "another line", "no text", "deep", "nothing"],
)
def test_a_damaged_file_is_named_with_its_line(damaged, model, file, line, message):
    (damaged / file).write_bytes(b"" if line is None else line.encode("latin-1") + b"\n")
    with pytest.raises(DataError, match=message) as error:
        evaluate_frames(damaged / "data.yaml", model, device="cpu")
    assert "\n" not in str(error.value)


def test_an_image_that_the_manifest_has_twice_is_refused(damaged, model):
    manifest = damaged / "manifest.jsonl"
    lines = manifest.read_text().splitlines(keepends=True)
    again = next(line for line in lines if json.loads(line)["split"] == "test")
    manifest.write_text("".join([*lines, again]))
    with pytest.raises(DataError, match=f"{json.loads(again)['name']}: stands twice, expected once"):
        evaluate_frames(damaged / "data.yaml", model, device="cpu")


def test_images_that_are_missing_or_damaged_are_named(damaged, model):
    first, second, *_ = sorted((damaged / "images" / "test").iterdir())
    second.write_bytes(b"no image")
    with pytest.raises(
        DataError, match=rf"got 1 of . images that cannot be used .*{second.name}: no image that can be read"
    ):
        evaluate_frames(damaged / "data.yaml", model, device="cpu")
    first.unlink()
    with pytest.raises(DataError, match=rf"manifest.jsonl: {first.name}: got no such image in split 'test'"):
        evaluate_frames(damaged / "data.yaml", model, device="cpu")


def test_raw_frames_are_refused(damaged, model):
    first = sorted((damaged / "images" / "test").iterdir())[0]
    cv2.imwrite(str(first), np.zeros((SIDE, SIDE), np.uint16))
    with pytest.raises(DataError, match=r"got 1 of 6 images that are not 8-bit .*dtld convert"):
        evaluate_frames(damaged / "data.yaml", model, device="cpu")


def test_lights_of_one_class_and_box_count_once_in_frames_and_in_tiles(damaged, model):
    before = evaluate_frames(damaged / "data.yaml", model, device="cpu")
    lines = [json.loads(line) for line in (damaged / "frames.jsonl").read_text().splitlines()]
    for line in lines:
        line["lights"] += [{**light, "id": light["id"] + 1000} for light in line["lights"][:2]]
    (damaged / "frames.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for label in (damaged / "labels" / "test").iterdir():
        label.write_text(label.read_text() * 2)
    after = evaluate_frames(damaged / "data.yaml", model, device="cpu")
    assert before["repeated"] == 0 < after["repeated"]
    assert {**after, "repeated": 0} == before
    assert evaluate(damaged / "data.yaml", model, device="cpu")["instances"] == after["instances"]


def test_other_classes_are_refused(damaged, model, tmp_path):
    with pytest.raises(ModelError, match=r"classes: got 1 \(car\), expected those of"):
        evaluate_frames(damaged / "data.yaml", save_detector(tmp_path / "a.pt", {0: "car"}), device="cpu")
    (damaged / "data.yaml").write_text("train: images/train\nval: images/val\ntest: images/test\nnames: [relevant]\n")
    lines = (damaged / "frames.jsonl").read_text()
    (damaged / "frames.jsonl").write_text(lines.replace('"class": 0', '"class": 1'))
    with pytest.raises(DataError, match=r"got class 1, expected those of data.yaml, 0 to 0"):
        evaluate_frames(damaged / "data.yaml", save_detector(tmp_path / "b.pt", {0: "relevant"}), device="cpu")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("class", 2, "got class 2, expected those of data.yaml, 0 to 1"),
        ("class", 2**63, f"got class {2**63}, expected those of data.yaml, 0 to 1"),
        ("box", [-1, 0, 9, 9], "expected one inside 384 x 192 pixels"),
        ("box", [0, 0, 385, 9], "expected one inside 384 x 192 pixels"),
        ("box", [9, 0, 1, 9], "expected one inside 384 x 192 pixels"),
        ("box", [1, 0, 9, 1e308], "expected one inside 384 x 192 pixels"),
        ("box", [1, 0, 1, 9], "expected one inside 384 x 192 pixels"),
    ],
)
def test_a_light_that_cannot_be_is_refused(damaged, model, key, value, message):
    lines = [json.loads(line) for line in (damaged / "frames.jsonl").read_text().splitlines()]
    next(line for line in lines if line["split"] == "test" and line["lights"])["lights"][0][key] = value
    (damaged / "frames.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=rf"frames\.jsonl: .*{message}"):
        evaluate_frames(damaged / "data.yaml", model, device="cpu")


def test_names_that_are_exchanged_against_the_report_are_refused(damaged, tmp_path):
    data = damaged / "data.yaml"
    data.write_text(data.read_text().partition("names:")[0] + "names: [not_relevant, relevant]\n")
    model = save_detector(tmp_path / "b.pt", {0: "not_relevant", 1: "relevant"})
    with pytest.raises(DataError, match=r"names: got not_relevant, relevant, expected relevant, not_relevant in this"):
        evaluate_frames(data, model, device="cpu")


def test_no_light_at_all_is_an_error(damaged, model):
    lines = [json.loads(line) for line in (damaged / "frames.jsonl").read_text().splitlines()]
    text = "".join(json.dumps({**line, "lights": []}) + "\n" for line in lines)
    (damaged / "frames.jsonl").write_text(text)
    with pytest.raises(DataError, match="split 'test': got 3 frames without one light"):
        evaluate_frames(damaged / "data.yaml", model, device="cpu")
