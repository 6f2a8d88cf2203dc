"""`kd bench`: its arms are real steps, its ratios follow from its times, and what a pair does not allow is listed."""

from __future__ import annotations

import inspect
import json

import pytest

pytest.importorskip("torch", reason="needs the extra kd")

import torch

import cli
import kd.training.bench
from kd.commands import app
from kd.distillation.teacher import SegmentationModel, Teacher
from kd.errors import KdError, UsageError
from kd.methods.facts import BUILT_IN, NEEDS_QUERIES
from kd.training.bench import (
    BOXES,
    EVERY,
    FEATURES,
    MASKS,
    PLAIN,
    TEACHER,
    Pair,
    bench,
    draw_batch,
    in_turns,
    training_step,
)
from kd.ultra import models

TINY = {"imgsz": 64, "batch": 2, "device": "cpu", "steps": 2}


@pytest.fixture(scope="module")
def found():
    """All methods of a small pair; memory is measured in another test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kd.training.bench, "_alone", lambda *_: None)
        return bench("yolov5n", "yolov5s", **TINY, quiet=True)


@pytest.fixture
def pair(tmp_path):
    return Pair.draw(tmp_path, "yolov5n", "yolov5s", imgsz=64, batch=2, device="cpu")


@pytest.fixture
def kd_bench(capfd):
    """Run `kd bench` in this process; the answer is (exit code, stdout, stderr)."""

    def run(*arguments):
        tiny = [str(word) for key, value in TINY.items() for word in (f"--{key}", value)]
        with pytest.raises(SystemExit) as end:
            cli.run("kd", app, KdError, UsageError, ["bench", *tiny, *arguments])
        captured = capfd.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return run


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"imgsz": 33}, "--imgsz: got 33, expected a multiple of 32, .* choose 32 or 64"),
        ({"student": "yolov5n-p6", "imgsz": 96}, "--imgsz: got 96, expected a multiple of 64, .* choose 64 or 128"),
        ({"imgsz": 2**200}, "--imgsz: got a number of 201 bits"),
        ({"batch": 0}, "--batch: got 0"),
        ({"batch": 2**200}, "--batch: got a number of 201 bits"),
        ({"steps": 2**200}, "--steps: got a number of 201 bits"),
    ],
)
def test_numbers_beyond_sense_are_refused(changes, expected):
    arguments = {"student": "yolov5n", "teacher": "yolov5s", **TINY, **changes}
    with pytest.raises(UsageError, match=expected):
        bench(**arguments, quiet=True)


@pytest.mark.train
def test_every_arm_has_its_turn(found):
    assert list(found["arms"]) == [
        PLAIN,
        TEACHER,
        FEATURES,
        *(name for name in EVERY if name not in NEEDS_QUERIES),
        BUILT_IN,
        MASKS,
    ]
    assert all(arm["seconds"] > 0 for arm in found["arms"].values())
    assert found["left_out"].keys() == NEEDS_QUERIES
    assert (found["imgsz"], found["batch"], found["boxes"], found["rounds"]) == (64, 2, 2 * BOXES, 2)


@pytest.mark.train
@pytest.mark.parametrize("as_file", [True, False])
def test_a_segmentation_teacher_is_the_detector_inside(tmp_path, monkeypatch, as_file):
    monkeypatch.setattr(kd.training.bench, "_alone", lambda *_: None)
    teacher = "yolov8n-seg"
    if as_file:
        model = SegmentationModel(f"{teacher}.yaml", nc=2, verbose=False)
        teacher = str(tmp_path / "t.pt")
        torch.save({"model": model, "epoch": -1, "train_args": {"task": "segment"}}, teacher)
    found = bench("yolov5n", teacher, **TINY, methods=(("fgfi", 0.01),), quiet=True)
    assert {PLAIN, TEACHER, "fgfi", MASKS} <= found["arms"].keys()


@pytest.mark.train
def test_ratios_follow_from_the_times(found):
    arms = found["arms"]
    plain, whole = arms[PLAIN]["seconds"], arms[TEACHER]["seconds"]
    for name, arm in arms.items():
        if name in {*EVERY, BUILT_IN}:
            assert arm["over_teacher"] == pytest.approx((arm["seconds"] - plain) / whole)
        else:
            assert arm["over_teacher"] is None
    assert found["mask_share"] == pytest.approx(arms[MASKS]["seconds"] / arms["fgfi"]["seconds"])


@pytest.mark.train
@pytest.mark.parametrize("arm", [PLAIN, "fgfi", BUILT_IN])
def test_a_step_trains_the_student_and_never_the_teacher(pair, arm):
    trainer = pair.trainer(arm, 0.01)
    model = trainer.model
    student = getattr(model, "student_model", model)
    weight = student.model[0].conv.weight
    teacher = model.teacher_model if arm == BUILT_IN else None
    if arm == "fgfi":
        teacher = trainer.distillation.links[0].teacher.model
    frozen = [p.clone() for p in teacher.parameters()] if teacher else []
    before = weight.detach().clone()
    training_step(trainer)()
    assert not torch.equal(weight, before)
    assert all(p.grad is None or not p.grad.any() for p in student.parameters())  # the step is complete
    assert trainer.ema.updates == 1
    assert not teacher or all(torch.equal(*both) for both in zip(frozen, teacher.parameters(), strict=True))


def test_the_built_in_learns_from_the_same_teacher(pair):
    theirs = pair.trainer(BUILT_IN).model.teacher_model.model[0].conv
    ours = Teacher(pair.teacher, torch.device("cpu")).model.model[0].conv.weight
    images = torch.rand(1, 3, 64, 64)
    folded = models.load_model(pair.teacher).model.fuse(verbose=False).model[0].conv
    assert torch.equal(ours, folded.weight)
    assert theirs.weight.shape == ours.shape
    assert theirs(images).shape == folded(images).shape


def test_arms_take_turns_and_the_warm_up_does_not_count(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(kd.training.bench.time, "perf_counter", lambda: clock[0])

    def arm(name, *durations):
        left = list(durations)

        def step():
            order.append(name)
            clock[0] += left.pop(0)

        return step

    arms = {"a": arm("a", 100, 100, 1, 2, 9), "b": arm("b", 100, 100, 4, 4, 5)}
    assert in_turns(arms, 3, torch.device("cpu"), quiet=True) == {"a": 2, "b": 4}
    assert order == ["a", "b"] * 5


def test_the_batch_has_its_number_of_boxes_inside_its_images(tmp_path):
    draw_batch(tmp_path, {0: "a", 1: "b"}, side=64, images=3)
    rows = [
        [float(value) for value in line.split()]
        for file in (tmp_path / "labels").iterdir()
        for line in file.read_text().splitlines()
    ]
    assert len(rows) == 3 * BOXES
    for label, x, y, w, h in rows:
        assert label in (0, 1)
        assert min(x - w / 2, y - h / 2) >= 0
        assert max(x + w / 2, y + h / 2) <= 1
        assert 0.05 <= min(w, h) <= max(w, h) <= 0.5


@pytest.mark.train
def test_a_method_that_the_pair_does_not_allow_is_left_out_unless_it_is_named(monkeypatch):
    monkeypatch.setattr(kd.training.bench, "_alone", lambda *_: None)
    monkeypatch.setattr(kd.training.bench, "EVERY", {"fgfi": 0.01, "ld": 0.25})
    found = bench("yolov5n", "yolo26n", **TINY, quiet=True)  # YOLO26 has no box distributions
    assert found["left_out"].keys() == {"ld"}
    assert found["left_out"]["ld"].startswith("yolo26n: ld: got reg_max 1")
    assert "ld" not in found["arms"]


def test_ultralytics_joins_a_step_as_it_is_joined_here():
    code = inspect.getsource(kd.training.bench.DetectionTrainer._do_train)
    parts = (
        'autocast(torch.bfloat16 if self.args.amp == "bf16" else self.amp, device=self.device.type)',
        "batch = self.preprocess_batch(batch)", "self.model(batch)", "self.loss = loss.sum()",
        "self.scaler.scale(self.loss).backward()", "self.optimizer_step()",
    )  # fmt: skip
    assert sorted(parts, key=code.index) == list(parts)


# --- the command -----------------------------------------------------------------------------------------


@pytest.mark.train
def test_the_command_prints_a_row_per_arm_with_memory_and_the_same_as_json(kd_bench, monkeypatch):
    answers = []
    measure = kd.training.bench.bench
    monkeypatch.setattr(kd.training.bench, "bench", lambda *a, **k: answers.append(measure(*a, **k)) or answers[-1])
    code, out, err = kd_bench("--student", "yolov5n", "--teacher", "yolov5s", "--method", "fgfi")
    assert (code, err) == (0, "")
    title, head, *rows, masks = out.splitlines()
    assert title.startswith("yolov5n <- yolov5s, 64 px, batches of 2 with 16 boxes, median of 2 steps on ")
    assert head.split() == ["ms", "(step", "-", "plain)", "/", "teacher", "peak", "MiB"]
    arms = answers[0]["arms"]
    assert [row[:22].strip() for row in rows] == list(arms) == [PLAIN, TEACHER, FEATURES, "fgfi", BUILT_IN, MASKS]
    for row, arm in zip(rows, arms.values(), strict=True):
        ms, share, _ = row[22:].split()
        assert float(ms) == pytest.approx(1000 * arm["seconds"], abs=0.051)
        assert share == ("-" if arm["over_teacher"] is None else f"{arm['over_teacher']:.2f}")
    assert masks.startswith("fgfi's masks: ")
    peaks = {name: arm["peak_mib"] for name, arm in arms.items()}
    assert [name for name, peak in peaks.items() if peak is not None] in ([PLAIN, "fgfi", BUILT_IN], [])
    monkeypatch.setattr(kd.training.bench, "bench", lambda *_, **__: answers[0])
    code, out, err = kd_bench("--student", "yolov5n", "--teacher", "yolov5s", "--json")
    assert (code, json.loads(out), err) == (0, answers[0], "")


def test_bad_input_is_one_line_and_exit_1_or_2(kd_bench, tmp_path):
    coarse = tmp_path / "coarse.yaml"  # one level, at stride 64
    layers = ["[-1, 1, Conv, [8, 3, 2]]"] * 6
    coarse.write_text(f"nc: 2\nbackbone: [{', '.join(layers)}]\nhead: [[[5], 1, Detect, [nc]]]\n")
    for student, teacher, more, code, expected in (
        ("yolov5n", "nothing-like-it", (), 1, "nothing-like-it: got neither a file nor a model name"),
        ("no.pt", "yolov5s", (), 1, "no.pt: no such file"),
        ("yolov5n", str(coarse), ("--method", "cwd"), 1, f"error: {coarse}: teacher: got levels at strides 64"),
        ("yolov5n", "yolo26n", ("--method", "ld"), 1, "error: yolo26n: ld: got reg_max 1"),
        ("yolov5n", "yolov5s", ("--method", "fgif"), 2, "--method: got 'fgif', expected fgfi"),
        ("yolov5n", "yolov5s", ("--batch", "0"), 2, "--batch: got 0"),
        ("yolov5n", "yolov5s", ("--device", "99"), 2, "--device: got '99'"),
    ):
        found, out, err = kd_bench("--student", student, "--teacher", teacher, *more)
        assert (found, out) == (code, ""), err
        assert err.startswith("error: ")
        assert expected in err
        assert err.count("\n") == 1
