"""RT-DETR students: plain and distilled runs, what they write, how they are scored, and what is refused for them."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import cv2
import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

from ultralytics import RTDETR, YOLO
from ultralytics.models.rtdetr import RTDETRValidator
from ultralytics.nn.tasks import RTDETRDetectionModel

from kd.config import TrainConfig
from kd.distillation.criterion import term
from kd.distillation.teacher import Teacher
from kd.errors import DistillationError, KdError, UsageError
from kd.methods.fgfi_config import FgfiConfig
from kd.scoring.evaluate import evaluate
from kd.scoring.frames import View
from kd.scoring.full_frame import detect
from kd.training.bench import PLAIN, Pair, training_step
from kd.training.build import build_trainer
from kd.training.defaults import choose
from kd.training.rtdetr import require_for_rtdetr
from kd.training.run import train
from kd.ultra import models, session
from kd.ultra.classic.files import globals_in
from kd.ultra.data import resolve_data
from tests.kd_fixtures import interrupted, tiny_config, write_dataset
from tests.kd_models import save_detector, save_rtdetr

STUDENT = "rtdetr-p"
QUERIES = (("queries", 0.2), ("cwd", 1.0))
SETTINGS = (("mosaic", 0.0), ("warmup_epochs", 0.0), ("nbs", 3))


@pytest.fixture(scope="module")
def data(detector, tmp_path_factory):
    """Images twice as wide as they are high; to validate, labelled with some of what the detector finds."""
    data = write_dataset(tmp_path_factory.mktemp("data"), train=3)
    for file in data.parent.rglob("*.png"):
        cv2.imwrite(str(file), cv2.resize(cv2.imread(str(file)), (192, 96)))
    with session.silence():
        for found in RTDETR(detector).predict(str(data.parent / "images" / "val"), imgsz=96, device="cpu", save=False):
            boxes = torch.cat((found.boxes.cls[:, None], found.boxes.xywhn), 1).tolist()
            rows = [" ".join(map(str, (int(number), *box))) for number, *box in boxes]
            (data.parent / "labels" / "val" / f"{Path(found.path).stem}.txt").write_text("\n".join(rows[::9]))
    return data


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Its classes are the data's in another order."""
    return save_rtdetr(tmp_path_factory.mktemp("teacher") / "t.pt", {0: "green", 1: "red"})


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return save_rtdetr(tmp_path_factory.mktemp("detector") / "d.pt", {0: "red", 1: "green"})


def config_of(data, out, teacher=None, methods=QUERIES, **changes):
    if teacher:
        changes |= {"teachers": (teacher,), "methods": methods}
    return tiny_config(data, out, **{"student": STUDENT, "epochs": 2, "settings": SETTINGS, **changes})


def run(config, **options):
    return train(config, quiet=True, allow_weak_teacher=True, **options)


def losses(out):
    with (Path(out) / "results.csv").open() as file:
        return [{key: float(row[f"train/{key}_loss"]) for key in ("giou", "cls", "l1")} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def distilled(data, teacher, tmp_path_factory):
    config = config_of(data, tmp_path_factory.mktemp("runs") / "distilled", teacher)
    return run(config), Path(config.out)


@pytest.mark.train
def test_a_run_writes_plain_checkpoints(data, distilled):
    record, out = distilled
    assert (record["params"], record["epochs"]) == (1215632, 2)
    assert "train/kd_loss,train/kd_queries_loss,train/kd_cwd_loss," in (out / "results.csv").read_text()
    for name in ("best.pt", "last.pt"):
        wanted = globals_in(out / "weights" / name)
        assert not {
            word for word in wanted if word.split(".")[0] not in {"torch", "ultralytics", "collections", "__builtin__"}
        }
    last = str(out / "weights" / "last.pt")
    model = RTDETR(last).model
    assert not any(module._forward_hooks for module in model.modules())
    assert type(YOLO(last)) is RTDETR
    models.require_student(models.load_model(last), last)  # it may go on from here
    assert (
        evaluate(data, last, split="val", device="cpu", quiet=True)["map50"]
        == record["metrics"]["last"]["val"]["map50"]
    )


@pytest.mark.train
def test_a_run_that_was_stopped_ends_like_one_that_was_not(data, teacher, distilled, tmp_path):
    cut = config_of(data, tmp_path / "cut", teacher)
    with interrupted(), pytest.raises(KeyboardInterrupt):
        run(cut)
    assert not {word for word in globals_in(Path(cut.out) / "weights" / "last.pt") if word.startswith("kd")}
    assert run(cut, resume=True)["resumed"]
    states = [RTDETR(out / "weights" / "last.pt").model.state_dict() for out in (distilled[1], Path(cut.out))]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert losses(cut.out) == losses(distilled[1])


def set_up(config):
    with session.silence():
        trainer = build_trainer(config, models._packaged(STUDENT), Path(config.out))
        trainer._setup_train()
    trainer.model.train()
    return trainer, trainer.preprocess_batch(next(iter(trainer.train_loader)))


@pytest.mark.train
def test_a_term_is_added_as_it_is_logged_and_reaches_the_queries(data, teacher, tmp_path):
    plain, same = set_up(config_of(data, tmp_path / "plain"))
    state = torch.get_rng_state()
    trainer, batch = set_up(config_of(data, tmp_path / "run", teacher, (("queries", 0.2),)))
    assert torch.equal(batch["img"], same["img"])
    assert torch.equal(torch.get_rng_state(), state)  # which both draw the same queries for denoising by
    alone, _ = plain.model(same)
    torch.set_rng_state(state)
    loss, items = trainer.model(batch)
    assert loss[0] == alone
    assert list(items) == ["giou_loss", "cls_loss", "l1_loss", "kd_loss"]
    assert loss[-1].detach() == items["kd_loss"] > 0  # a mean, as its own loss is
    torch.set_rng_state(state)
    trainer.distillation.factor = 0.0
    without, none = trainer.model(batch)
    assert torch.equal(without[0], loss[0])
    assert without[-1] == none["kd_loss"] == 0
    (inputs,) = trainer.distillation.inputs(trainer.distillation.forward(batch["img"]), batch)
    assert inputs.student_queries.logits.shape == (3, 3, 84, 2)  # 64 + 16 + 4 places are less than 100 queries
    assert inputs.classes == [1, 0]
    torch.testing.assert_close(0.2 * term("queries", [(1.0, inputs)], trainer.config).detach(), items["kd_loss"])
    loss[-1].backward()
    assert all(head.weight.grad.abs().sum() > 0 for head in trainer.model.model[-1].dec_score_head)


@pytest.mark.train
def test_weights_are_balanced_and_images_without_labels_seen(data, teacher, tmp_path):
    still = {"settings": (*SETTINGS, ("translate", 0.0), ("scale", 0.0))}
    changes = {"balance": 0.1, "unlabeled": str(data.parent / "images" / "train"), **still}
    trainer, batch = set_up(config_of(data, tmp_path / "run", teacher, **changes))
    trainer.epoch = 0
    trainer._begin_distillation()
    (image,) = trainer.distillation.unlabeled.draw(batch["img"][:1])
    assert image[0, :8].std() > 0.005  # stretched to a square as the others are, not padded above and below
    before = trainer.model.model[0].bn.running_mean.clone()
    _, items = trainer.model(batch)
    once = trainer.model.model[0].bn.running_mean.clone()
    assert items["kd_queries_loss"] > 0
    assert items["kd_cwd_loss"] > 0
    trainer.distillation.factor = 0.0
    trainer.model.model[0].bn.running_mean.copy_(before)
    trainer.model(batch)
    assert torch.equal(trainer.model.model[0].bn.running_mean, once)  # of the labelled images alone
    assert all(len(samples) == 1 for samples in trainer.distillation.balance.samples.values())


@pytest.mark.train
def test_a_yolo_teaches_features_by_its_scores_too(data, tmp_path):
    yolo = save_detector(tmp_path / "y.pt", {0: "red", 1: "green"}, architecture="yolov8n")
    methods = (("fgfi", 0.01), ("cwd", 1.0), ("pkd", 1.0), ("score-l2", 6.0))
    plan = run(config_of(data, tmp_path / "run", yolo, methods, fgfi=FgfiConfig(soft=True)), dry_run=True)
    assert [level["stride"] for level in plan["kd"]["teachers"][0]["levels"]] == [8, 16, 32]
    assert plan["first_batch"]["terms"].keys() == dict(methods).keys()
    assert all(value > 0 for value in plan["first_batch"]["terms"].values())


def test_a_teachers_queries_are_those_of_the_whole_model(teacher):
    whole, images = models.load_model(teacher).model.eval(), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        boxes, logits, *_ = whole(images)[1]
    features, queries = Teacher(teacher, torch.device("cpu"), with_queries=True)(images)
    assert list(features) == [8, 16, 32]
    torch.testing.assert_close(queries.logits, logits[-1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(queries.boxes, boxes[-1], rtol=1e-3, atol=1e-3)


def test_scores_are_those_of_ultralytics_own_validator(data, detector):
    found = evaluate(data, detector, split="val", device="cpu", quiet=True)
    (data.parent / "whole.yaml").write_text(f"path: {data.parent}\n{data.read_text()}")
    with session.silence():
        theirs = RTDETR(detector).val(data=str(data.parent / "whole.yaml"), imgsz=96, device="cpu", plots=False).box
    assert found["map50"] > 0
    assert [found[key] for key in ("map50", "map50_95", "precision", "recall")] == [
        theirs.map50,
        theirs.map,
        theirs.mp,
        theirs.mr,
    ]


def test_detections_for_whole_frames_are_those_of_a_prediction(data, detector):
    image = data.parent / "images" / "val" / "000.png"
    yolo = models.load_model(detector)
    assert issubclass(yolo.task_map["detect"]["validator"], RTDETRValidator)
    options = {"imgsz": 96, "device": "cpu", "quiet": True}
    found = detect(yolo, [View(image, (0, 0, 192, 96), 1.0)], resolve_data(data), **options)[image]
    with session.silence():
        (shown,) = yolo.predict(str(image), imgsz=96, conf=0.001, device="cpu", save=False)
    inside = shown.boxes.xyxy.clamp(torch.zeros(4), torch.tensor([192.0, 96, 192, 96]))
    torch.testing.assert_close(torch.from_numpy(found.boxes_xyxy), inside, atol=0.05, rtol=0)
    assert float(shown.boxes.xyxy[:, 2].max()) > 100  # in the pixels of the image, not of the square


@pytest.mark.train
def test_a_bench_has_its_steps(teacher, tmp_path):
    pair = Pair.draw(tmp_path, STUDENT, teacher, imgsz=64, batch=1, device="cpu")
    with session.silence():
        for arm in (PLAIN, "queries"):
            training_step(pair.trainer(arm))()
        with pytest.raises(DistillationError, match=r"logits: got an RT-DETR as the student"):
            pair.trainer("logits")


@pytest.mark.parametrize("method", ["logits", "box", "ld", "soft-labels", "built-in"])
def test_methods_on_cells_are_refused(method):
    config = TrainConfig(data="d", student=STUDENT, out="o", teachers=("t.pt",), methods=((method, 0.5),))
    message = rf"^{STUDENT}: {method}: got an RT-DETR as the student, .*: fgfi, cwd, pkd, score-l2 or queries$"
    with pytest.raises(DistillationError, match=message):
        require_for_rtdetr(config, models.load_model(STUDENT).model)


def test_queries_are_refused_where_a_side_has_none(teacher):
    config = TrainConfig(data="d", student="yolov5n", out="o", teachers=("t.pt",), methods=(("queries", 0.5),))
    with pytest.raises(
        DistillationError, match=r"^yolov5n: queries: got a student without queries, expected an RT-DET"
    ):
        require_for_rtdetr(config, models.load_model("yolov5n").model)
    require_for_rtdetr(replace(config, teachers=(), methods=()), models.load_model("yolov5n").model)
    with pytest.raises(
        DistillationError, match=r"^yolov5n: teacher: got a Detect head without queries, .* choose fgfi"
    ):
        Teacher("yolov5n", torch.device("cpu"), with_queries=True)


@pytest.mark.parametrize("key", ["box", "cls", "dfl", "cls_pw", "rect", "quantize", "compile"])
def test_settings_that_would_do_nothing_are_refused(key):
    config = TrainConfig(data="d", student=STUDENT, out="o", settings=((key, 1),))
    with pytest.raises(UsageError, match=rf"^--set {key}: got it with {STUDENT}, expected"):
        require_for_rtdetr(config, models.load_model(STUDENT).model)


def test_no_weights_are_inherited(data, teacher, tmp_path):
    with pytest.raises(KdError, match=r"inherit: got an RT-DETR, expected a model with a Detect head"):
        run(config_of(data, tmp_path / "run", inherit=teacher))


def test_a_teacher_alone_is_imitated_by_fgfi(data, teacher):
    config = choose(TrainConfig(data=str(data), student=STUDENT, out="o", teachers=(teacher,)))
    assert dict(config.methods) == {"fgfi": 0.01}


def test_an_architecture_is_known_by_its_name_and_a_yaml_by_its_head(tmp_path):
    other = tmp_path / "other.yaml"
    other.write_bytes((models.SHIPPED / f"{STUDENT}.yaml").read_bytes())
    assert type(models.load_model(str(other)).model) is RTDETRDetectionModel
    models.require_student(models.load_model(str(other)), str(other))
    assert models.is_rtdetr(str(other))
    other.write_text("head: [[")
    assert not models.is_rtdetr(str(other))  # what it is then is said where it is loaded
    assert [models.is_rtdetr(spec) for spec in (STUDENT, "rtdetr-l", "yolov8n-rtdetr", "yolov8n")] == [True] * 3 + [
        False
    ]
    assert type(models.load_model("rtdetr-l").model) is RTDETRDetectionModel
