"""Runs of classic YOLOv5: what they start from, write and learn from, and what is refused for them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

import numpy as np
import yaml

from kd.config import TrainConfig
from kd.distillation.caching import cache_teacher
from kd.errors import DistillationError, UsageError
from kd.methods.batch import Batch
from kd.methods.fgfi import fgfi_masks
from kd.methods.fgfi_config import FgfiConfig
from kd.options import read_priors
from kd.runs.record import read_run
from kd.scoring.evaluate import evaluate
from kd.training.bench import Pair
from kd.training.classic import fit_anchors, require_for_classic, starting_point
from kd.training.defaults import choose
from kd.training.run import train
from kd.ultra import classic, models
from kd.ultra.classic.files import ALLOWED, globals_in, read_checkpoint
from tests.kd_fixtures import interrupted, tiny_config, write_dataset
from tests.kd_models import save_classic, save_detector, tiny_classic

TINY = tiny_classic()
PRIORS = ((8, ((4.0, 8.0), (6.0, 6.0), (9.0, 5.0))), (16, ((12.0, 20.0),) * 3), (32, ((40.0, 40.0),) * 3))
NAMES = {0: "red", 1: "green"}
ODD = {8: (2.0, 2.5), 16: (500.0, 30.0), 32: (30.0, 500.0)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), train=3)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    path = tmp_path_factory.mktemp("classic") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return str(path)


@pytest.fixture(scope="module")
def run(data, student, tmp_path_factory):
    """A plain run of one epoch."""
    out = tmp_path_factory.mktemp("runs") / "plain"
    train(tiny_config(data, out, student=student), quiet=True)
    return out


@pytest.fixture(scope="module")
def teacher(run):
    return str(run / "weights" / "last.pt")


@pytest.mark.train
def test_a_run_writes_checkpoints_of_the_official_form(data, run, teacher):
    record = read_run(run)
    assert record["anchors"]["8"] == [[10, 13], [16, 30], [33, 23]]
    assert read_priors(run / "run.json")[0] == (8, ((10, 13), (16, 30), (33, 23)))
    assert 'torch.hub.load("ultralytics/yolov5", "custom", "weights/best.pt")' in (run / "README.md").read_text()
    header = (run / "results.csv").read_text().splitlines()[0]
    assert "train/box_loss,train/obj_loss,train/cls_loss," in header
    for name in ("best.pt", "last.pt"):
        wanted = globals_in(run / "weights" / name)
        assert {name for name in wanted if not name.startswith(("torch.", "collections."))} <= {
            *ALLOWED,
            "__builtin__.set",
        }
        assert "models.yolo.Model" in wanted
    found = evaluate(data, teacher, split="val", device="cpu", quiet=True)
    assert found["map50"] == pytest.approx(record["metrics"]["last"]["val"]["map50"])
    assert found["imgsz"] == 64


@pytest.mark.train
def test_an_inherited_and_distilled_run_that_was_stopped_ends_like_one_that_was_not(data, student, odd, tmp_path):
    options = {"inherit": odd, "teachers": (odd,), "methods": (("logits", 1.0), ("box", 1.0))}
    whole, cut = (tiny_config(data, tmp_path / name, student=student, epochs=2, **options) for name in ("whole", "cut"))
    record = train(whole, allow_weak_teacher=True, quiet=True)
    assert record["anchors"] == {
        str(stride): [list(size)] * 3 for stride, size in ODD.items()
    }  # out of reach, and kept
    assert record["inherited"]["fresh"] == []
    with interrupted(), pytest.raises(KeyboardInterrupt):
        train(cut, allow_weak_teacher=True, quiet=True)
    last = Path(cut.out) / "weights" / "last.pt"
    assert read_checkpoint(str(last))[1]["epoch"] == 0  # the official form in the middle of a run too
    assert train(cut, resume=True, quiet=True)["resumed"]
    states = [read_checkpoint(str(Path(c.out) / "weights" / "last.pt"))[0].state_dict() for c in (whole, cut)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A detector with anchors that no box of the data comes near."""
    anchors = [[*size] * 3 for size in ODD.values()]
    return save_classic(tmp_path_factory.mktemp("odd") / "odd.pt", NAMES, anchors=anchors)


def dry(data, tmp_path, **changes):
    config = tiny_config(data, tmp_path / "out", **changes)
    return train(config, dry_run=True, allow_weak_teacher=True, quiet=True)


FEATURES = (("fgfi", 0.01), ("cwd", 1.0), ("pkd", 1.0))


@pytest.mark.train
def test_a_classic_student_learns_the_features_of_a_classic_teacher(data, student, teacher, tmp_path):
    plan = dry(data, tmp_path, student=student, teachers=(teacher,), methods=FEATURES)
    assert all(np.isfinite(value) and value > 0 for value in plan["first_batch"]["terms"].values())
    assert set(plan["first_batch"]["mask_share"]) == {"8", "16", "32"}


@pytest.mark.train
def test_a_fresh_student_has_the_anchors_of_the_teacher_whose_head_it_imitates(data, student, odd, tmp_path):
    plan = dry(data, tmp_path, student=student, teachers=(odd,), methods=(("logits", 1.0), ("box", 1.0)))
    assert all(np.isfinite(value) and value > 0 for value in plan["first_batch"]["terms"].values())
    assert plan["anchors"]["16"] == [[500, 30]] * 3


def test_heads_of_other_anchors_or_of_none_are_not_compared(data, student, odd, teacher, tmp_path):
    free = save_detector(tmp_path / "free.pt", NAMES, imgsz=64)
    for own, taught_by, method, words in (
        (teacher, odd, "box", r"a teacher with anchors 2x2\.5, .*; 500x30, .* and a student with anchors 10x13, 16x30"),
        (student, free, "logits", r"got a teacher with no anchors and a student with anchors .*: choose a method on"),
        (
            "yolov5n",
            teacher,
            "box",
            r"got a teacher with anchors .* and a student with no anchors, expected equal ones",
        ),
        (student, teacher, "ld", r"ld: got reg_max 1 with the student's 1, expected the same above 1"),
    ):
        with pytest.raises(DistillationError, match=words):
            dry(data, tmp_path, student=own, teachers=(taught_by,), methods=((method, 1.0),))


@pytest.mark.train
def test_an_anchor_free_student_learns_from_a_classic_teacher(data, teacher, tmp_path):
    methods, fgfi = (("fgfi", 0.01), ("cwd", 1.0), ("score-l2", 6.0)), FgfiConfig(soft=True)
    plan = dry(data, tmp_path, student="yolov5n", teachers=(teacher,), methods=methods, fgfi=fgfi)
    assert all(np.isfinite(value) and value > 0 for value in plan["first_batch"]["terms"].values())
    assert "anchors" not in plan


@pytest.mark.train
def test_both_kinds_of_students_learn_what_a_classic_teacher_has_been_asked(data, student, odd, tmp_path):
    cache = tmp_path / "odd.npz"
    assert cache_teacher(odd, data, cache, device="cpu", quiet=True)["rows"] > 0
    for own in (student, "yolov5n"):
        taught = {"teachers": (odd,), "methods": (("soft-labels", 0.5),), "teacher_cache": str(cache)}
        plan = dry(data, tmp_path, student=own, **taught)
        assert np.isfinite(plan["first_batch"]["terms"]["soft-labels"])
        assert plan["first_batch"]["terms"]["soft-labels"] != 0


@pytest.mark.train
def test_a_classic_student_has_its_own_priors_and_learns_by_an_anchor_free_teachers_scores(data, teacher, tmp_path):
    free = save_detector(tmp_path / "free.pt", NAMES, imgsz=64)
    methods, fgfi = (("fgfi", 0.01), ("score-l2", 6.0)), FgfiConfig(soft=True, priors=PRIORS)
    plan = dry(data, tmp_path, student=teacher, teachers=(free,), methods=methods, fgfi=fgfi)
    assert all(np.isfinite(value) and value > 0 for value in plan["first_batch"]["terms"].values())
    assert plan["anchors"] == {str(stride): [list(size) for size in sizes] for stride, sizes in PRIORS}


def test_fgfi_imitates_by_the_anchors_of_the_student():
    def share(**anchors):
        features = {8: torch.zeros(1, 1, 8, 8)}
        box, index = torch.tensor([[8.0, 8.0, 56.0, 56.0]]), torch.zeros(1, dtype=torch.long)
        config = TrainConfig(data="d.yaml", student="classic/yolov5n", out="run", teachers=("t.pt",))
        return fgfi_masks(Batch(features, features, {}, box, index, **anchors), config)[0].float().mean()

    assert share(priors={8: ((10.0, 13.0), (16.0, 30.0), (33.0, 23.0))}) == share()
    assert share(priors={8: ((48.0, 48.0),)}) < share()


def test_what_training_starts_from(run, teacher):
    layout, weights = starting_point(teacher, True, None)
    assert layout["head"][-1][2:] == ["Detect", ["nc", "anchors"]]
    assert isinstance(weights, classic.Model)
    assert starting_point(teacher, False, None)[1] is None
    layout, weights = starting_point("classic/yolov5s.yaml", teacher, PRIORS)
    assert layout["width_multiple"] == 0.5
    assert layout["anchors"][0] == [4, 8, 6, 6, 9, 5]
    assert isinstance(weights, classic.Model)


def test_anchors_are_fitted_where_boxes_are_out_of_reach_unless_a_teachers_head_has_them_too(caplog):
    model = classic.Model(TINY)
    before = model.model[-1].priors
    sides = np.exp(np.random.default_rng(0).normal(0, 0.1, (30, 2)))
    near, far = (
        SimpleNamespace(labels=[{"bboxes": np.tile(sides * size, 2), "shape": (100, 100)}])
        for size in (0.1, [0.01, 0.4])
    )
    distilled = {"teachers": ("t.pt",), "imgsz": 320}
    fit_anchors(model, near, config_of(imgsz=320))
    fit_anchors(model, far, config_of(imgsz=320, fgfi=FgfiConfig(priors=PRIORS)))
    assert not caplog.messages
    fit_anchors(model, far, config_of(imgsz=320, inherit="t.pt"))
    fit_anchors(model, far, config_of(**distilled, methods=(("box", 1.0),)))
    assert [message[:34] for message in caplog.messages] == ["kd: the teacher's anchors stay, thou"[:34]] * 2
    assert model.model[-1].priors == before
    fit_anchors(model, far, config_of(**distilled, methods=(("cwd", 1.0),)))
    found = model.model[-1].priors
    assert all(
        w == pytest.approx(3.2, rel=0.4) and h == pytest.approx(128, rel=0.4) for s in found.values() for w, h in s
    )


def config_of(**changes):
    return TrainConfig(**{"data": "d.yaml", "student": "classic/yolov5n", "out": "run", **changes})


def test_ultralytics_own_distillation_is_refused_for_a_classic_student():
    with pytest.raises(DistillationError, match=r"^classic/yolov5n: built-in: got a student with an anchor-based head"):
        require_for_classic(config_of(teachers=("t.pt",), methods=(("built-in", 6.0),)), classic.Model(TINY))


def test_bench_leaves_out_what_a_classic_student_cannot_learn(tmp_path):
    free = save_detector(tmp_path / "free.pt", NAMES, imgsz=64)
    pair = Pair(tmp_path, "classic/yolov5n.yaml", free, imgsz=64, batch=2, device="cpu")
    with pytest.raises(DistillationError, match=r"built-in: got a student with an anchor-based head"):
        pair.trainer("built-in")


@pytest.mark.parametrize("setting", [("box", 7.5), ("cls", 1.0), ("dfl", 1.0), ("cls_pw", 0.5), ("quantize", 8)])
def test_settings_that_its_loss_has_not_are_refused(setting):
    with pytest.raises(UsageError, match=rf"^--set {setting[0]}: got it with classic/yolov5n, expected it with anchor"):
        require_for_classic(config_of(settings=(setting,)), classic.Model(TINY))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fgfi": FgfiConfig(priors=PRIORS[:2])}, "--priors: got 3 at stride 8, 3 at stride 16, expected equally many"),
        ({"fgfi": FgfiConfig(priors=(*PRIORS[:2], (32, ((9.0, 9.0),))))}, "--priors: got 3 at stride 8, 3 .*, 1 at"),
        ({"settings": (("pretrained", "x.pt"),)}, "--set pretrained: got x.pt, an anchor-free model, expected a clas"),
    ],
)
def test_what_does_not_fit_a_classic_student_is_refused(changes, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        require_for_classic(config_of(**changes), classic.Model(TINY))


def test_what_an_anchor_free_student_cannot_do_with_a_classic_model_is_refused(teacher):
    free = models.load_model("yolov5n").model
    config = config_of(student="yolov5n", settings=(("pretrained", teacher),))
    with pytest.raises(UsageError, match=r"a classic YOLOv5, expected an anchor-free model as yolov5n is$"):
        require_for_classic(config, free)
    config = config_of(student="yolov5n", teachers=(teacher,), methods=(("built-in", 6.0),))
    with pytest.raises(DistillationError, match=r"built-in: got a classic YOLOv5, expected a teacher that Ultralytics"):
        require_for_classic(config, free)
    config = config_of(student="s.pt", teachers=("t.pt",), methods=(("cwd", 1.0),), fgfi=FgfiConfig(priors=PRIORS))
    with pytest.raises(UsageError, match=r"--priors: got it with cwd, expected the method fgfi"):
        require_for_classic(config, free)


def test_of_a_teacher_alone_its_family_inherits_and_others_learn_its_labels(data, teacher):
    chosen = [
        choose(config_of(data=str(data), student=student, teachers=(teacher,)))
        for student in ("classic/yolov5n", "yolov5n", teacher)
    ]
    assert [config.inherit for config in chosen] == [teacher, None, None]
    assert [dict(config.methods) for config in chosen] == [{}, {"soft-labels": 0.5}, {"soft-labels": 0.5}]


def test_priors_of_a_plain_classic_run_survive_json():
    config = config_of(fgfi=FgfiConfig(priors=PRIORS))
    assert TrainConfig.from_json(config.to_json()).fgfi == config.fgfi
