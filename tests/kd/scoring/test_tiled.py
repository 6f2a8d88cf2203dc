"""Whole frames from tiles cut in memory: what evaluation scores, on files that are whole or not there."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra kd")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dtld_tools.pixels.images import crop
from dtld_tools.planning.tile import windows
from dtld_tools.types import TileSpec
from kd.errors import DataError, UsageError
from kd.scoring import full_frame
from kd.scoring.detection_metrics import Detections
from kd.scoring.evaluate import validate
from kd.scoring.frames import Frame
from kd.scoring.shots import Shot, find_files, read_shots
from kd.scoring.sparse import EVERY, Attention, covering
from kd.scoring.tiled import detect_frames, predict_frames
from kd.scoring.tiles import Grid, TileDetector
from kd.ultra.data import resolve_data
from kd.ultra.models import load_model
from tests.kd.scoring.test_full_frame import SIDE, make_dataset, one_light
from tests.kd_models import save_small_detector

NAMES = {0: "relevant", 1: "not_relevant"}
CPU = torch.device("cpu")
QUIET = {"device": "cpu", "quiet": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_small_detector(tmp_path_factory.mktemp("model") / "tiny.pt", NAMES, imgsz=64)


class Blobs:
    """Finds what is white in a tile, as one box of class 0, and remembers how many tiles it saw."""

    batch = 4

    def __init__(self):
        self.seen = 0

    def __call__(self, tiles):
        self.seen += len(tiles)
        return [self.look(tile) for tile in tiles]

    def look(self, tile):
        y, x = np.nonzero(tile[..., 0] == 255)
        boxes = [[x.min(), y.min(), x.max() + 1, y.max() + 1]] if len(x) else []
        n = len(boxes)
        return Detections(np.array(boxes, float).reshape(-1, 4), np.full(n, 0.5), np.zeros(n, int))


def shots(*boxes, size_wh=(200, 100), sequence="drive"):
    """A frame per box, in which it alone is white."""
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        picture = np.zeros((size_wh[1], size_wh[0], 3), np.uint8)
        picture[y1:y2, x1:x2] = 255
        yield Shot(f"f{number}", f"f{number}.png", Path(sequence), picture)


def frame_files(folder, *boxes, suffix="png"):
    folder.mkdir(parents=True, exist_ok=True)
    return [
        (cv2.imwrite(str(folder / f"{shot.name}.{suffix}"), shot.picture), folder / f"{shot.name}.{suffix}")[1]
        for shot in shots(*boxes)
    ]


# --- tiles ------------------------------------------------------------------------------------------------


@given(width=st.integers(1, 900), height=st.integers(1, 900), side=st.integers(64, 300), overlap=st.floats(0, 0.9))
def test_the_windows_are_those_of_dtld(width, height, side, overlap):
    cut = [(w.x, w.y, min(w.x + side, width), min(w.y + side, height))
           for w in windows(width, height, TileSpec(size_px=side, overlap=overlap))]  # fmt: skip
    assert [view.window_xyxy for view in Grid(side, overlap).views((width, height), Path("a"))] == cut


@pytest.mark.parametrize("size_wh", [(100, 80), (40, 80), (100, 40), (20, 20)])
def test_the_pixels_are_those_of_dtld_also_where_a_frame_is_smaller_than_a_tile(size_wh):
    picture = np.random.default_rng(0).integers(0, 255, (size_wh[1], size_wh[0], 3), dtype=np.uint8)
    grid = Grid(48, 0.2)
    for view in grid.views(size_wh, Path("a")):
        expected = crop(picture, *view.window_xyxy[:2], 48, 48, (48, 48))
        assert (grid.cut(picture, view) == expected).all()


@pytest.mark.parametrize("imgsz", [128, 96])
def test_the_boxes_are_those_that_evaluation_scores_for_the_same_windows(tmp_path, model, monkeypatch, imgsz):
    tiles = make_dataset(tmp_path / "t", one_light, tiles=TileSpec(size_px=128, overlap=0.2), frames=2)
    whole = make_dataset(tmp_path / "f", one_light, tiles=TileSpec(layout="frame", size_px=SIDE), frames=2)
    content = resolve_data(tiles / "data.yaml", "test")
    images = sorted((tiles / "images" / "test").iterdir())
    # Without half a stride of grey around each tile, which the validator adds to a checkpoint's input.
    monkeypatch.setattr(full_frame, "validate", partial(validate, rect=False))
    frames = full_frame.read_frames(tiles, "test", images, 2)
    views = [view for frame in frames for view in frame.views]
    found = full_frame.detect(load_model(model), views, content, imgsz=imgsz, device="cpu", quiet=True)
    expected = [full_frame.merge(frame, [found[view.image] for view in frame.views]) for frame in frames]

    detector = TileDetector(load_model(model), imgsz=imgsz, conf=0.001, batch=5, device=CPU)
    files = find_files([whole / "images" / "test"])
    got = list(detect_frames(read_shots(files, print), detector, Grid(128, 0.2), 0.001))
    assert [seen.shot.size_wh for seen in got] == [frame.size_wh for frame in frames] == [(2 * SIDE, SIDE)] * 2
    for seen, one in zip(got, expected, strict=True):
        assert len(seen.found) == len(one) > 100
        assert seen.found.boxes_xyxy == pytest.approx(one.boxes_xyxy, abs=0.01)
        assert seen.found.confidences == pytest.approx(one.confidences, abs=1e-5)
        assert (seen.found.class_ids == one.class_ids).all()


def test_a_batch_holds_tiles_of_several_frames():
    detector = Blobs()
    boxes = [(10, 20, 30, 40), (105, 20, 120, 40), (150, 60, 199, 100)]
    found = list(detect_frames(shots(*boxes), detector, Grid(100, 0), 0.1))
    assert [seen.found.boxes_xyxy.tolist() for seen in found] == [[list(box)] for box in boxes]
    assert detector.seen == sum(seen.tiles for seen in found) == 6


# --- sparse -----------------------------------------------------------------------------------------------


def test_sparse_follows_a_light_and_looks_at_little_else():
    boxes = [(20 + 4 * i, 40, 30 + 4 * i, 60) for i in range(20)]
    grid, detector = Grid(40, 0.2), Blobs()
    found = list(detect_frames(shots(*boxes), detector, grid, 0.1, Attention(40)))
    assert [seen.found.boxes_xyxy.tolist() for seen in found] == [[list(box)] for box in boxes]
    assert found[0].looked_at == found[0].tiles == len(grid.views((200, 100), Path("a")))
    assert detector.seen == sum(seen.looked_at for seen in found) < 0.5 * sum(seen.tiles for seen in found)


def test_each_tile_has_its_turn_within_eight_frames_and_all_in_the_first_of_a_sequence():
    grid, attention = Grid(40, 0.2), Attention(40)
    views = grid.views((200, 100), Path("a"))
    chosen = []
    for shot in shots(*[(0, 0, 0, 0)] * (EVERY + 1)):
        chosen.append(attention.choose(shot, views))
        attention.saw([Detections(np.empty((0, 4)), np.empty(0), np.empty(0, int))] * len(chosen[-1]), chosen[-1])
    assert chosen[0] == list(views)
    assert sorted(view.window_xyxy for some in chosen[1:] for view in some) == sorted(v.window_xyxy for v in views)
    for other in (shots((0, 0, 0, 0), sequence="another"), shots((0, 0, 0, 0), sequence="another", size_wh=(200, 90))):
        assert attention.choose(next(other), views) == list(views)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(-20, 199), st.integers(-20, 99), st.integers(21, 60), st.integers(21, 60))))
def test_of_each_box_some_chosen_window_has_all_or_all_are_chosen_that_it_touches(rows):
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h in rows], float).reshape(-1, 4)
    views, frame = Grid(64, 0.2).views((200, 100), Path("a")), Frame.unlabelled("", (200, 100), ())
    chosen = set(np.flatnonzero(covering(boxes, views, (200, 100))).tolist())
    assert bool(chosen) == bool(rows)
    for box in boxes.clip(0, [200, 100] * 2):
        touched = {
            i for i, view in enumerate(views)
            if (box[:2] < view.window_xyxy[2:]).all() and (box[2:] > view.window_xyxy[:2]).all()
        }  # fmt: skip
        whole = {i for i in touched if not full_frame._ends_at_edge(box[None], views[i], frame)[0]}
        assert whole & chosen if whole else touched <= chosen


# --- what is read -----------------------------------------------------------------------------------------


def write_video(path, frames, fourcc="mp4v"):
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*fourcc), 10, (64, 48))
    for number in range(frames):
        video.write(np.random.default_rng(number).integers(0, 99, (48, 64, 3), dtype=np.uint8) + np.uint8(20 * number))
    video.release()
    return path


def test_a_video_is_a_sequence_of_numbered_frames(tmp_path):
    video = write_video(tmp_path / "drive.mp4", 3)
    found = list(read_shots(find_files([video]), pytest.fail))
    assert [shot.name for shot in found] == ["drive_000001", "drive_000002", "drive_000003"]
    assert {(shot.sequence, shot.size_wh) for shot in found} == {(video, (64, 48))}
    assert abs(found[2].picture.mean() - 90) < 9


def test_a_video_that_ends_early_is_told_and_one_that_is_none_is_refused(tmp_path, capfd):
    whole = write_video(tmp_path / "whole.avi", 8, "MJPG").read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) * 2 // 3])
    told = []
    got = len(list(read_shots([tmp_path / "cut.avi"], told.append)))
    assert 0 < got < 8
    assert told == [
        f"{tmp_path / 'cut.avi'}: got {got} frames that OpenCV can decode, expected 8, as the video says it has"
    ]
    for content in (b"", b"no video", whole[:200]):
        (tmp_path / "no.mp4").write_bytes(content)
        with pytest.raises(DataError, match=r"no.mp4: got no video that OpenCV can read, expected one such as .mp4"):
            list(read_shots([tmp_path / "no.mp4"], pytest.fail))
    assert capfd.readouterr() == ("", "")


def test_frames_of_one_name_and_raw_frames_are_refused(tmp_path):
    png = frame_files(tmp_path / "a", (0, 0, 9, 9))
    jpg = frame_files(tmp_path / "b", (0, 0, 9, 9), suffix="jpg")
    with pytest.raises(UsageError, match="got two frames for one name, f0, expected one"):
        find_files([*png, tmp_path / "b"])
    assert find_files([tmp_path / "b"]) == jpg
    cv2.imwrite(str(tmp_path / "raw.tiff"), np.zeros((8, 8), np.uint16))
    with pytest.raises(DataError, match="dtld convert"):
        find_files([tmp_path / "raw.tiff"])


# --- what is written --------------------------------------------------------------------------------------


def test_labels_results_and_pictures_tell_the_same(tmp_path, model):
    coco = pytest.importorskip("pycocotools.coco")
    frames = frame_files(tmp_path / "frames", (10, 20, 30, 40), (95, 20, 120, 40))
    for number, frame in enumerate(frames):
        noise = np.random.default_rng(number).integers(0, 255, (100, 200, 3), dtype=np.uint8)
        cv2.imwrite(str(frame), noise)
    out, txt, file = tmp_path / "o" / "pictures", tmp_path / "o" / "labels", tmp_path / "o" / "found.json"
    told = []
    found = predict_frames(
        [tmp_path / "frames"], model, grid=Grid(64, 0.2), conf=0.5, out=out, save_txt=txt, coco=file,
        tell=told.append, **QUIET,
    )  # fmt: skip
    results, images = json.loads(file.read_text()), json.loads((tmp_path / "o" / "found.images.json").read_text())
    assert (found["frames"], found["detections"], told) == (2, len(results), [])
    assert found["looked_at"] == found["tiles"] == 2 * 8
    assert len(results) > 10
    assert [(image["id"], image["file_name"]) for image in images["images"]] == [(1, "f0.png"), (2, "f1.png")]
    rows = [(i, line.split()) for i, frame in enumerate(frames, 1)
            for line in (txt / f"{frame.stem}.txt").read_text().splitlines()]  # fmt: skip
    for result, (image_id, row) in zip(results, rows, strict=True):
        xc, yc, w, h, confidence = map(float, row[1:])
        assert (result["image_id"], result["category_id"]) == (image_id, int(row[0]) + 1)
        assert result["bbox"] == pytest.approx([200 * (xc - w / 2), 100 * (yc - h / 2), 200 * w, 100 * h], abs=1e-3)
        assert result["score"] == pytest.approx(confidence, abs=1e-6)
        assert len(row[1].partition(".")[2]) == 6
    truth = coco.COCO(str(tmp_path / "o" / "found.images.json"))
    assert len(truth.loadRes(str(file)).anns) == len(results)
    with Image.open(out / "f1.jpg") as page:
        assert page.size == (200, 100)
    assert sorted(path.name for path in (tmp_path / "o").rglob("*")) == [
        "f0.jpg", "f0.txt", "f1.jpg", "f1.txt", "found.images.json", "found.json", "labels", "pictures",
    ]  # fmt: skip


def test_a_frame_without_a_box_is_an_empty_label_file_and_one_frame_may_be_a_png(tmp_path, model):
    (frame,) = frame_files(tmp_path, (10, 20, 30, 40))
    out = tmp_path / "o"
    found = predict_frames(
        [frame], model, grid=Grid(64, 0.2), conf=1, out=out / "a.png", save_txt=out / "t", coco=out / "c.json", **QUIET
    )
    assert found["detections"] == 0
    assert (out / "t" / "f0.txt").read_text() == ""
    assert json.loads((out / "c.json").read_text()) == []
    with Image.open(out / "a.png") as page:
        assert page.format == "PNG"


@pytest.mark.parametrize("error", [KeyboardInterrupt, DataError])
def test_what_is_cut_off_leaves_nothing_behind(tmp_path, model, monkeypatch, error):
    frame_files(tmp_path / "frames", (10, 20, 30, 40), (95, 20, 120, 40))
    out, kept = tmp_path / "o", tmp_path / "o" / "found.json"
    out.mkdir()
    kept.write_text("before")

    def cut_off(files, tell):
        yield next(read_shots(files, tell))
        raise error

    monkeypatch.setattr("kd.scoring.tiled.read_shots", cut_off)
    places = {"out": out / "p", "save_txt": out / "t", "coco": kept}
    with pytest.raises(error):
        predict_frames([tmp_path / "frames"], model, grid=Grid(64), conf=1, batch=1, **places, **QUIET)
    assert list(out.iterdir()) == [kept]
    assert kept.read_text() == "before"


def test_places_are_checked_before_any_work(tmp_path):
    frames = frame_files(tmp_path / "frames", (10, 20, 30, 40), (95, 20, 120, 40))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()

    def refused(given=frames, **places):
        with pytest.raises(UsageError) as caught:
            predict_frames(given, "no.pt", **places, **QUIET)
        return str(caught.value).replace(str(tmp_path), "")

    assert refused() == "--tiled: got no place for the boxes, expected --save-txt, --coco or --out"
    assert "--save-txt: got /full, which is there already" in refused(save_txt=tmp_path / "full")
    assert "--out: got /frames, which is there already" in refused(out=tmp_path / "frames")
    assert "--out: got /a.png for more than one frame" in refused(out=tmp_path / "a.png")
    assert "--coco: got /a.txt, expected a file name that ends in .json" in refused(coco=tmp_path / "a.txt")
    assert "for two results" in refused(out=tmp_path / "x", save_txt=tmp_path / "x")
    assert "which is read here" in refused([frames[0]], out=frames[0])
    assert (tmp_path / "full" / "mine.txt").exists()


def test_a_grid_is_checked_when_it_is_made():
    for values, message in (((31,), "--tile-size: got 31"), ((64, 1), "--overlap: got 1, expected a share from 0")):
        with pytest.raises(UsageError, match=message):
            Grid(*values)
