"""Scores: Ultralytics' own numbers, None for what is not there, and nothing left behind."""

from __future__ import annotations

import shutil

import pytest

pytest.importorskip("torch", reason="needs the extra kd")

import torch
from torch import nn
from ultralytics import YOLO

from kd.errors import DataError, ModelError, UsageError
from kd.scoring.evaluate import evaluate, image_size, score, trained_imgsz
from kd.scoring.frames import View
from kd.scoring.full_frame import detect, evaluate_frames
from kd.ultra import models, session
from kd.ultra.data import image_files, label_file, resolve_data
from tests.kd_fixtures import write_dataset
from tests.kd_models import save_detector

NAMES = {0: "red", 1: "green"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_detector(tmp_path_factory.mktemp("model") / "tiny.pt", NAMES)


@pytest.fixture(scope="module")
def data(tmp_path_factory, model):
    """A dataset whose labels are some of the model's own detections, so that its scores are neither 0 nor 1."""
    data = write_dataset(tmp_path_factory.mktemp("data"), val=2, test=4)
    yolo = models.load_model(model)
    for image in sorted((data.parent / "images" / "test").iterdir()):
        boxes = yolo.predict(image, imgsz=96, conf=0.1, save=False, verbose=False)[0].boxes
        rows = zip(boxes.cls.tolist()[::3], boxes.xywhn.tolist()[::3], strict=True)
        lines = dict.fromkeys(f"{int(label)} " + " ".join(f"{value:.6f}" for value in box) for label, box in rows)
        label_file(image).write_text("\n".join(lines) + "\n")
    return data


def test_numbers_are_those_of_plain_ultralytics(data, model, tmp_path):
    ours = evaluate(data, model, device="cpu", batch=2)
    with session.silence():
        theirs = YOLO(model).val(
            data=str(data), split="test", imgsz=96, batch=2, device="cpu", plots=False, project=str(tmp_path)
        )
    assert 0.05 < theirs.box.map50 < 0.95  # or the comparison would say nothing
    assert (ours["map50"], ours["map50_95"]) == pytest.approx((theirs.box.map50, theirs.box.map))
    assert (ours["precision"], ours["recall"]) == pytest.approx((theirs.box.mp, theirs.box.mr))
    for row, class_id in enumerate(theirs.box.ap_class_index):
        found = ours["per_class"][NAMES[class_id]]
        assert found == pytest.approx({"map50": theirs.box.ap50[row], "map50_95": theirs.box.ap[row]})


def test_counts_and_defaults_are_reported(data, model):
    found = evaluate(data, model, device="cpu")
    labels = [path.read_text().splitlines() for path in (data.parent / "labels" / "test").iterdir()]
    assert found["images"] == 4
    assert found["instances"] == sum(map(len, labels)) > 4
    assert (found["split"], found["imgsz"], found["model"], found["data"]) == ("test", 96, model, str(data))


def test_a_class_without_an_instance_has_none_and_does_not_pull_the_mean_down(tmp_path, model, data):
    other = tmp_path / "one_class"
    shutil.copytree(data.parent, other)
    for path in (other / "labels" / "test").iterdir():
        lines = [line for line in path.read_text().splitlines() if line.startswith("0")]
        path.write_text("\n".join(lines))
    found = evaluate(other / "data.yaml", model, device="cpu")
    assert found["per_class"]["green"] == {"map50": None, "map50_95": None}
    assert found["map50"] == found["per_class"]["red"]["map50"] > 0


def test_no_instance_at_all_is_none_for_a_library_and_an_error_for_a_person(tmp_path, model):
    data = write_dataset(tmp_path, test=2)
    shutil.rmtree(tmp_path / "labels" / "test")
    found = score(models.load_model(model), data, split="test", imgsz=96, device="cpu")
    assert (found["instances"], found["map50"], found["recall"]) == (0, None, None)
    with pytest.raises(DataError, match="got 2 images without one labelled object"):
        evaluate(data, model, device="cpu")


def test_a_missing_split_names_those_that_exist(tmp_path, model):
    data = write_dataset(tmp_path)
    with pytest.raises(DataError, match=r"split 'test': got none, expected one of: train, val; choose with --split"):
        evaluate(data, model)


@pytest.mark.parametrize(
    ("names", "got"),
    [({0: "car"}, r"1 \(car\)"), ({0: "green", 1: "red"}, r"2 \(green, red\)")],
    ids=["other classes", "other order"],
)
def test_other_classes_are_refused(tmp_path, names, got):
    with pytest.raises(ModelError, match=rf"classes: got {got}, expected those of .*data.yaml: 2 \(red, green\)"):
        evaluate(write_dataset(tmp_path, test=1), save_detector(tmp_path / "other.pt", names))


def test_nothing_is_printed_or_left_and_the_model_stays_as_it_was(tmp_path, monkeypatch, capfd, data, model):
    scratch, work = tmp_path / "scratch", tmp_path / "work"
    scratch.mkdir()
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    threads = torch.get_num_threads()
    yolo = models.load_model(model)
    before = {name: value.clone() for name, value in yolo.model.state_dict().items()}
    score(yolo, data, split="test", imgsz=96, device="cpu")
    assert (list(scratch.iterdir()), list(work.iterdir())) == ([], [])
    assert capfd.readouterr() == ("", "")
    after = yolo.model.state_dict()
    assert before.keys() == after.keys()  # not fused
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.get_num_threads() == threads


def test_the_image_size_is_the_trained_one(tmp_path):
    assert trained_imgsz(models.load_model(save_detector(tmp_path / "a.pt", NAMES, imgsz=160))) == 160
    assert trained_imgsz(models.load_model("yolov5n")) == 640  # an architecture does not say


def test_a_model_runs_at_the_size_that_is_reported(tmp_path):
    plain = models.load_model(save_detector(tmp_path / "a.pt", NAMES, imgsz=160))
    sixth = models.load_model(save_detector(tmp_path / "b.pt", NAMES, imgsz=96, architecture="yolov5n-p6"))
    assert (image_size(plain), image_size(plain, 96), image_size(sixth), image_size(sixth, 192)) == (160, 96, 128, 192)
    for yolo, size, near in ((plain, 33, "32 or 64"), (plain, 100, "96 or 128"), (sixth, 96, "64 or 128")):
        with pytest.raises(UsageError, match=f"--imgsz: got {size}, expected a multiple of .*: choose {near}$"):
            image_size(yolo, size)
    for size in (0, -32, 2**200):
        with pytest.raises(UsageError, match=r"--imgsz: got .*, expected a whole number from 32 to 8192"):
            image_size(plain, size)


@pytest.mark.parametrize("imgsz", ["large", None, [], [640, "x"], 0, -1, 2**200, 640.5, True])
def test_a_checkpoint_without_a_size_asks_for_one(tmp_path, imgsz):
    yolo = models.load_model(save_detector(tmp_path / "a.pt", NAMES, imgsz=imgsz))
    with pytest.raises(ModelError, match=r"a\.pt: got .* as the image size that it was trained at, .*give --imgsz"):
        image_size(yolo)
    assert image_size(yolo, 96) == 96


@pytest.mark.parametrize("module", ["evaluate", "full_frame"])
def test_numbers_beyond_sense_are_refused_before_anything_runs(tmp_path, module):
    run = evaluate if module == "evaluate" else evaluate_frames
    model = save_detector(tmp_path / "a.pt", NAMES)
    for option in ({"batch": 0}, {"batch": 2**200}, {"imgsz": 33}, {"imgsz": 2**200}):
        with pytest.raises(UsageError, match=f"--{next(iter(option))}: got"):
            run(tmp_path / "data.yaml", model, device="cpu", quiet=True, **option)


@pytest.mark.parametrize("architecture", ["yolov10n", "yolo26n"])
def test_of_two_heads_the_one_to_many_is_scored(data, tmp_path, architecture):
    def found(*silenced):
        """How many boxes the validator keeps, per image, when these branches give no class a score."""
        path = save_detector(tmp_path / "m.pt", NAMES, architecture=architecture)
        yolo = models.load_model(path)
        for branch in silenced:
            for layers in getattr(yolo.model.model[-1], branch):
                nn.init.zeros_(layers[-1].weight)
                nn.init.constant_(layers[-1].bias, -50.0)
        views = [View(image, (0, 0, 96, 96), 1.0) for image in image_files(resolve_data(data)["val"])]
        return [
            len(boxes) for boxes in detect(yolo, views, {"names": NAMES}, imgsz=96, device="cpu", quiet=True).values()
        ]

    assert all(found())
    assert found("one2one_cv3") == found()
    assert not any(found("cv3"))
