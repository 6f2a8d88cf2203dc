"""`kd inherit` as a function: the checkpoint that it writes, its scale, its images, and what it refuses."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

from typer.testing import CliRunner
from ultralytics.nn.tasks import DetectionModel

from kd.commands import app
from kd.errors import DataError, ModelError, UsageError
from kd.inheritance.images import training_images
from kd.inheritance.weights import Scale, inherit_weights
from kd.training.run import train
from kd.ultra.data import image_files, resolve_data
from kd.ultra.models import load_model
from tests.kd_fixtures import SHARED, shared_weights, tiny_config, write_dataset
from tests.kd_models import save_detector


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), train=8)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_detector(tmp_path_factory.mktemp("teacher") / "t.pt", {0: "green", 1: "red"}, architecture="yolov8n")


@pytest.fixture(scope="module")
def born(data, teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("born") / "w.pt"
    return out, inherit_weights(teacher, Scale(width=0.5), data, out, quiet=True)


def test_the_checkpoint_is_a_plain_one_of_the_datas_classes(born, data, teacher):
    out, found = born
    assert [path.name for path in out.parent.iterdir()] == ["w.pt"]
    yolo = load_model(str(out))
    assert type(yolo.model) is DetectionModel
    assert yolo.names == resolve_data(data)["names"]
    assert yolo.overrides["imgsz"] == found["imgsz"] == 96
    assert (found["images"], found["fresh"], found["copied"]) == (8, [], [])
    assert found["student"] == f"width 0.5, depth 1 of {teacher}"
    assert found["reproduced"].keys() == {str(i) for i in range(23) if i not in (10, 11, 13, 14, 17, 20)}
    assert all(0 <= share <= 1 for share in found["reproduced"].values())
    assert 0 <= found["map50_95"] <= found["map50"] <= 1


def test_half_the_width_is_half_the_channels(born, teacher):
    own, theirs = (load_model(str(path)).model for path in (born[0], teacher))
    for one, other in zip(own.model[:22], theirs.model[:22], strict=True):
        if hasattr(one, "conv"):
            assert 2 * one.conv.out_channels == other.conv.out_channels
    assert own.yaml["scale"] == "n"


@pytest.mark.train
def test_a_training_starts_from_it(born, data, tmp_path):
    out = tmp_path / "run"
    config = tiny_config(data, out, student=str(born[0]), epochs=1, settings=(("lr0", 1e-9), ("optimizer", "SGD"),
                         ("warmup_epochs", 0.0), ("warmup_bias_lr", 0.0), ("workers", 0)))  # fmt: skip
    train(config)
    before, after = (load_model(str(path)).model.state_dict() for path in (born[0], out / "weights" / "last.pt"))
    weights = [key for key in before if key.endswith("conv.weight")]
    assert weights
    assert all(torch.allclose(before[key].float(), after[key].float(), atol=1e-3) for key in weights)


def test_the_same_again_gives_the_same(born, data, teacher, tmp_path):
    again = tmp_path / "again.pt"
    inherit_weights(teacher, Scale(width=0.5), data, again, seed=7, quiet=True)  # nothing is left to the seed here
    one, other = (load_model(str(path)).model.state_dict() for path in (born[0], again))
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_images_are_spread_over_the_split_and_every_second_is_mirrored(data):
    files = image_files(resolve_data(data)["train"])
    every, some = training_images(data, files, 96, 100), training_images(data, files, 96, 4)
    assert every.shape == (8, 3, 96, 96)
    assert torch.equal(some[0], every[0])
    assert torch.equal(some[2], every[4])
    assert torch.equal(some[1].flip(2), every[2])  # mirrored here, as it is not there
    assert len(training_images(data, files, 2048, 100)) == 8  # some are looked at, however large
    assert 0 <= every.min() < every.max() <= 1


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"architecture": "yolo11n"}, ModelError, "yolo11n: inherit: got a teacher of another family"),
        ({"architecture": "TEACHER"}, ModelError, "student: got a checkpoint, expected a .yaml or a name"),
        ({"out": "w.onnx"}, UsageError, "--out: got w.onnx, expected a file that ends in .pt"),
        ({"out": "TEACHER"}, UsageError, "which is read here"),
        ({"out": "/dev/null/w.pt"}, UsageError, "--out: got /dev/null/w.pt, but /dev/null takes no files"),
        ({"images": 0}, UsageError, "--images: got 0, expected a whole number"),
        ({"imgsz": 100}, UsageError, "--imgsz: got 100, expected a multiple of 32"),
        ({"data": "missing.yaml"}, DataError, "missing.yaml: no such file"),
        ({"teacher": "missing.pt"}, ModelError, "missing.pt"),
        ({"teacher": "yolov8n"}, ModelError, "yolov8n: teacher: got no checkpoint, expected a trained detector (.pt)"),
    ],
)
def test_what_cannot_be_is_one_line_and_writes_nothing(options, error, words, data, teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = {"teacher": teacher, "architecture": Scale(0.5), "data": data, "out": "w.pt", **options}
    asked = {key: teacher if value == "TEACHER" else value for key, value in asked.items()}
    with pytest.raises(error) as refusal:
        inherit_weights(**asked, quiet=True)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_a_network_that_its_blocks_do_not_allow_is_one_line(data, tmp_path):
    teacher = save_detector(tmp_path / "t.pt", {0: "red", 1: "green"}, architecture="yolo12n")
    with pytest.raises(ModelError, match=r"got no network \(.*multiple of 32.*\), expected widths that its blocks can"):
        inherit_weights(teacher, Scale(0.5), data, tmp_path / "w.pt", imgsz=64, quiet=True)


def test_a_teacher_of_grey_images_is_one_line(data, tmp_path):
    grey = save_detector(tmp_path / "t.pt", {0: "red", 1: "green"}, architecture="yolov8n", channels=1)
    with pytest.raises(ModelError, match="channels: got a model of 1, expected 3"):
        inherit_weights(grey, Scale(0.5), data, tmp_path / "w.pt", imgsz=64, quiet=True)


def run(*words):
    return CliRunner().invoke(app, ["inherit", *map(str, words)])


def test_the_command_prints_layers_and_the_score_or_one_json_object(data, teacher, tmp_path):
    out = tmp_path / "w.pt"
    words = (teacher, "--data", data, "--out", out, "--student", "yolov8n", "--images", 4)
    done = run(*words)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("yolov8n, 4 images at 96 px, ")
    assert "val, before any training: mAP50 " in done.stdout
    assert done.stdout.endswith(f"go on with kd train --student {out}\n")
    found = json.loads(run(*words, "--json").stdout)
    assert {"reproduced", "map50", "map50_95", "images", "fresh"} <= found.keys()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "--student: got none, expected one, or --width"),
        (("--student", "yolov8n", "--depth", 1), "expected one of"),
    ],
)
def test_the_command_takes_an_architecture_or_a_scale(data, teacher, tmp_path, words, expected):
    done = run(teacher, "--data", data, "--out", tmp_path / "w.pt", *words)
    assert isinstance(done.exception, UsageError)
    assert expected in str(done.exception)


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan"), float("inf")])
def test_a_scale_is_a_share(share):
    with pytest.raises(UsageError, match=r"--width: got .+, expected a share of the teacher's above 0 and up to 1"):
        Scale(width=share)


@pytest.mark.train
def test_of_a_trained_teacher_a_solved_student_finds_what_a_sliced_one_does_not(tmp_path):
    """The teacher's own detections are the truth here: what students find of them before any training."""
    teacher = shared_weights("yolov8n_coco_from_int8.pt")
    photographs = sorted((SHARED / "data" / "cinta_v2" / "valid" / "images").glob("*.jpg"))[:12]
    if not photographs:
        pytest.skip("needs the photographs of cinTA_v2")
    yolo = load_model(teacher)
    for photograph in photographs:
        (found,) = yolo.predict(str(photograph), imgsz=320, conf=0.3, verbose=False)
        lines = [
            f"{int(label)} " + " ".join(f"{value:.6f}" for value in box)
            for label, box in zip(found.boxes.cls, found.boxes.xywhn.tolist(), strict=True)
        ]
        for split in ("train", "val"):
            for kind, name in (("images", photograph.name), ("labels", f"{photograph.stem}.txt")):
                (tmp_path / kind / split).mkdir(parents=True, exist_ok=True)
                path = tmp_path / kind / split / name
                path.write_text("\n".join(lines)) if kind == "labels" else path.symlink_to(photograph)
    data = tmp_path / "data.yaml"
    data.write_text("train: images/train\nval: images/val\nnames: " + json.dumps(list(yolo.names.values())))
    scores = {
        slicing: inherit_weights(
            teacher, Scale(width=0.5), data, tmp_path / "w.pt", imgsz=320, slicing=slicing, quiet=True
        )["map50_95"]
        for slicing in (True, False)
    }
    assert scores[False] > 0.1 > 10 * scores[True]
