"""`kd analyse` from end to end: the truth and the detections of kd evaluate, a page, and nothing where it fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="needs the extra kd")

import cli
from dtld_tools.types import TileSpec
from kd.analysis.analyse import analyse, titles_of
from kd.analysis.sources import plain_images, whole_frames
from kd.commands import app
from kd.errors import DataError, KdError, ModelError, UsageError
from kd.scoring.evaluate import evaluate
from kd.scoring.full_frame import evaluate_frames
from kd.show import print_analysis
from kd.ultra.data import image_files, label_file, resolve_data
from tests.kd.scoring.test_full_frame import make_dataset, one_light, relabel
from tests.kd_models import save_small_detector

NAMES = {0: "relevant", 1: "not_relevant"}
STATES = ("red", "green", "off")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_small_detector(tmp_path_factory.mktemp("model") / "tiny.pt", NAMES, imgsz=192)


@pytest.fixture(scope="module")
def tiled(tmp_path_factory, model):
    """Two tiles a frame that only touch; the truth is some of the model's own detections, with attributes."""
    root = make_dataset(tmp_path_factory.mktemp("tiled"), one_light, tiles=TileSpec(size_px=192, overlap=0), frames=1)
    relabel(root, model)
    lines = [json.loads(line) for line in (root / "frames.jsonl").read_text().splitlines()]
    for line in lines:
        for light in line["lights"]:
            light["attributes"] = {"state": STATES[light["id"] % 3], "number": str(light["id"])}
            light["distance_m"] = 10.0 + light["id"]
    (root / "frames.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


@pytest.mark.parametrize("full_frame", [False, True])
def test_the_figures_are_those_of_kd_evaluate(tiled, model, tmp_path, capfd, full_frame):
    data, page, suspects = tiled / "data.yaml", tmp_path / "page.html", tmp_path / "suspects.json"
    score = evaluate_frames if full_frame else evaluate
    theirs = score(data, model, device="cpu", quiet=True)
    line = ["analyse", "--data", data, "--model", model, "--out", page, "--label-errors", suspects, "--device", "cpu"]
    with pytest.raises(SystemExit) as end:
        cli.run("kd", app, KdError, UsageError, [*map(str, line), "--json", *["--full-frame"] * full_frame])
    assert not end.value.code
    found = json.loads(capfd.readouterr().out)
    assert 0.02 < theirs["map50"] < 0.95  # or the comparison would say nothing
    row = found["models"][0]
    assert row["ap50"] == pytest.approx(theirs["map50"], abs=1e-6)
    assert row["objects"] == found["objects"] == theirs["instances"] > 20
    assert (found["frames"], found["critical"]["what"]) == (1 if full_frame else 2, "red and relevant lights")
    assert sum(group["objects"] for group in row["recall_by"]["state"].values()) == found["objects"]
    assert "unknown" not in row["recall_by"]["state"]
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert len(json.loads(suspects.read_text())["annotations"]) == len(found["suspects"]["labels"])
    assert sorted(tmp_path.iterdir()) == [page, suspects]


def test_a_tiles_objects_have_the_attributes_of_their_lights(tiled):
    """By place alone: the label files do not name lights."""
    content = resolve_data(tiled / "data.yaml", "test")
    images = image_files(content["test"])
    (frame,) = whole_frames(content, "test", images)
    known = {attributes["number"]: i for i, attributes in enumerate(frame.attributes)}
    seen = []
    for tile in plain_images(content, "test", images, False, pytest.fail):
        window = next(view.window_xyxy for view in frame.views if view.image == tile.views[0].image)
        assert tile.city == frame.city == "Aachen" or frame.city == "Berlin"
        for box, class_id, attributes, metres in zip(
            tile.boxes_xyxy, tile.class_ids, tile.attributes, tile.distances_m, strict=True
        ):
            light = known[attributes["number"]]
            assert box + np.tile(window[:2], 2) == pytest.approx(frame.boxes_xyxy[light], abs=0.01)
            assert (class_id, metres) == (frame.class_ids[light], frame.distances_m[light])
            seen.append(light)
    assert sorted(seen) == list(range(len(frame.attributes)))


def test_where_frames_and_images_do_not_fit_a_line_says_so(tiled, model, tmp_path):
    root = Path(shutil.copytree(tiled, tmp_path / "tiles"))
    (root / "manifest.jsonl").write_text("{}\n")
    told = []
    content = resolve_data(root / "data.yaml", "test")
    tiles = plain_images(content, "test", image_files(content["test"]), False, told.append)
    assert [tile.attributes for tile in tiles] == [(), ()]
    assert len(told) == 1
    assert "manifest.jsonl: line 1" in told[0]
    with pytest.raises(DataError, match="manifest"):
        analyse(root / "data.yaml", [model], tmp_path / "a.html", full_frame=True, device="cpu", quiet=True)


def test_one_model_for_all_classes_is_judged_by_one(tiled, model, tmp_path):
    import torch

    checkpoint = torch.load(model, weights_only=False)
    checkpoint["train_args"]["single_cls"] = True
    torch.save(checkpoint, tmp_path / "single.pt")
    options = {"device": "cpu", "quiet": True}
    found = analyse(tiled / "data.yaml", [tmp_path / "single.pt"], tmp_path / "a.html", **options)
    assert list(found["models"][0]["recall_by"]["class"]) == ["item"]
    with pytest.raises(ModelError, match="expected two alike"):
        analyse(tiled / "data.yaml", [model, tmp_path / "single.pt"], tmp_path / "b.html", **options)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"models": []}, UsageError, "got 0 models, expected one or two"),
        ({"out": "page.pdf"}, UsageError, "--out: got page.pdf, expected a file name that ends in .html"),
        ({"label_errors": "a.txt"}, UsageError, "--label-errors: got a.txt, expected a file name that ends in .json"),
        ({"conf": 0}, UsageError, "--conf: got 0, expected a confidence between 0 and 1"),
        ({"full_frame": True, "skip_bad_labels": True}, UsageError, "got it with --full-frame"),
        ({"models": ["nothing.pt"]}, ModelError, "nothing.pt: no such file"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(tiled, model, tmp_path, monkeypatch, changes, error, words):
    monkeypatch.chdir(tmp_path)
    values = {"models": [model], "out": "page.html", "device": "cpu", "quiet": True, **changes}
    with pytest.raises(error, match=words) as raised:
        analyse(tiled / "data.yaml", values.pop("models"), values.pop("out"), **values)
    assert isinstance(raised.value, KdError)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_the_dataset_is_not_written_over(tiled, model, tmp_path):
    root = Path(shutil.copytree(tiled, tmp_path / "tiles"))
    labels = root / "annotations.json"
    labels.write_text("mine")
    with pytest.raises(UsageError, match=r"--label-errors: got .*annotations\.json, which is there already"):
        analyse(root / "data.yaml", [model], tmp_path / "a.html", label_errors=labels, device="cpu", quiet=True)
    assert labels.read_text() == "mine"
    assert not (tmp_path / "a.html").exists()


def test_images_of_one_name_in_two_folders_elsewhere_are_told_apart(tmp_path):
    for folder in ("set", "left", "right"):
        (tmp_path / folder).mkdir()
    for folder in ("left", "right"):
        Image.new("RGB", (32, 32)).save(tmp_path / folder / "0.png")
    (tmp_path / "set" / "data.yaml").write_text(
        "train: ../left\nval: ../left\ntest: [../left, ../right]\nnames: [red]\n"
    )
    content = resolve_data(tmp_path / "set" / "data.yaml", "test")
    frames = plain_images(content, "test", image_files(content["test"]), False, pytest.fail)
    assert [frame.name for frame in frames] == ["../left/0.png", "../right/0.png"]


def test_images_that_cannot_be_used_are_refused_or_left_out(tiled, model, tmp_path, capsys):
    root = Path(shutil.copytree(tiled, tmp_path / "tiles"))
    first = image_files(resolve_data(root / "data.yaml", "test")["test"])[0]
    label_file(first).write_text("7 0.5 0.5 0.1 0.1\n")
    options = {"device": "cpu", "quiet": True}
    with pytest.raises(DataError, match="class 7"):
        analyse(root / "data.yaml", [model], tmp_path / "a.html", **options)
    found = analyse(root / "data.yaml", [model, model], tmp_path / "a.html", skip_bad_labels=True, **options)
    assert found["frames"] == 1
    assert [row["objects"] for row in found["models"]] == [found["objects"]] * 2
    print_analysis(found)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"test: 1 image, {found['objects']} objects"
    rows = [line.split() for line in printed if line.startswith("  ")]
    errors = {words[0]: words[1:] for words in rows if words[0] in found["models"][0]["errors"]}
    assert {kind: int(words[0]) for kind, words in errors.items()} == {
        kind: its["count"] for kind, its in found["models"][0]["errors"].items()
    }
    assert printed[-1] == found["out"]


def test_titles_tell_models_apart(tmp_path):
    runs = [tmp_path / name / "weights" / "last.pt" for name in ("teachers/n", "runs/yolov8p/kd/seed0")]
    assert titles_of(runs) == ["teachers/n", "kd/seed0"]
    assert titles_of(runs[1:]) == ["seed0"]
    weights = tmp_path / "run" / "weights"
    assert titles_of([weights / "best.pt", weights / "last.pt"]) == ["best.pt", "last.pt"]
    assert titles_of([tmp_path / "a/x/k/seed0/weights/last.pt", tmp_path / "b/y/k/seed0/weights/last.pt"]) == [
        "a/x/k/seed0", "b/y/k/seed0",
    ]  # fmt: skip
