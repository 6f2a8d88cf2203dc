"""Several teachers, teachers at another image size, and teachers of other kinds."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

import jsonschema
import torch.nn.functional as F
from ultralytics.nn.tasks import PoseModel, SegmentationModel

import schemas
from kd.distillation.criterion import term
from kd.distillation.links import match_levels, require_equal_grids
from kd.distillation.outputs import resized
from kd.distillation.teacher import Teacher
from kd.errors import DistillationError, ModelError, RunError
from kd.methods.adapters import Adapters
from kd.methods.batch import Batch, Prediction
from kd.methods.registry import METHODS
from kd.training.build import build_trainer
from kd.training.run import train
from kd.training.run_folder import require_same
from kd.ultra import models, session
from tests.kd_fixtures import tiny_config, write_dataset
from tests.kd_models import save_detector
from tests.kd_pairs import YOLO_METHODS

NAMES = {0: "red", 1: "green"}
ALL = tuple(YOLO_METHODS.items())
FEATURES = (("fgfi", 0.01), ("cwd", 1.0), ("pkd", 1.0))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two detectors of other widths that find many boxes, their features as large as trained ones."""
    folder = tmp_path_factory.mktemp("teachers")
    paths = []
    for i, name in enumerate(("yolov5n", "yolov8n")):
        paths.append(save_detector(folder / f"{name}-t.pt", NAMES, architecture=name, seed=i))
        model = models.load_model(paths[-1]).model
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            model.train()(torch.rand(4, 3, 64, 64))
        torch.save({"model": model, "epoch": -1, "train_args": {"task": "detect"}}, paths[-1])
    return tuple(paths)


def set_up(data, out, **changes):
    """A trainer that is ready for its first step, and a batch."""
    config = tiny_config(data, out, **changes)
    with session.silence():
        trainer = build_trainer(config, "yolov5n.yaml", out, None)
        trainer._setup_train()
    return trainer, trainer.preprocess_batch(next(iter(trainer.train_loader)))


def terms(data, out, **changes):
    """The unweighted terms of the first batch, by method."""
    trainer, batch = set_up(data, out, methods=ALL, **changes)
    with torch.no_grad():
        inputs = trainer.distillation.inputs(trainer.model.train()(batch["img"]), batch)
        batches = trainer.distillation.weighted_batches(inputs)
        return {name: float(term(name, batches, trainer.config)) for name in YOLO_METHODS}


# --- several ----------------------------------------------------------------------------------------------


@pytest.mark.train
def test_teachers_are_averaged_by_their_shares(data, tmp_path, pair):
    a, b = (terms(data, tmp_path / str(i), teachers=(spec,)) for i, spec in enumerate(pair))
    both = terms(data, tmp_path / "both", teachers=pair, teacher_weights=(3.0, 1.0))
    assert both == pytest.approx({name: 0.75 * a[name] + 0.25 * b[name] for name in YOLO_METHODS}, rel=1e-5)
    assert all(a[name] != pytest.approx(b[name], rel=1e-3) for name in YOLO_METHODS)


@pytest.mark.train
def test_one_teacher_is_the_same_alone_chosen_weighted_and_twice(data, tmp_path, pair):
    alone = terms(data, tmp_path / "alone", teachers=pair[:1])
    for i, changes in enumerate(
        (
            {"teachers": pair[:1], "combine": "best"},
            {"teachers": pair[:1], "teacher_weights": (0.3,)},
            {"teachers": pair[:1] * 2},
            {"teachers": pair[:1] * 2, "combine": "best"},
        )
    ):
        assert terms(data, tmp_path / str(i), **changes) == alone


def with_scores(batch, logits):
    """The batch of a teacher whose class logits are these, by image."""
    (head,) = batch.teacher_heads
    logits = torch.tensor(logits).view(-1, 1, 1, 1)
    scored = {s: Prediction(logits.expand_as(p.scores), p.boxes) for s, p in head.items()}
    return replace(batch, teacher_heads=[scored])


@pytest.mark.train
def test_each_image_learns_from_the_teacher_that_scores_it_highest(data, tmp_path, pair):
    trainer, batch = set_up(data, tmp_path, teachers=pair, combine="best", methods=ALL)
    with torch.no_grad():
        a, b = trainer.distillation.inputs(trainer.model.train()(batch["img"]), batch)
    a, b = with_scores(a, [0.0, 1.0, 0.0]), with_scores(b, [1.0, 0.0, 1.0])
    (share_a, of_a), (share_b, of_b) = batches = trainer.distillation.weighted_batches([a, b])
    assert (share_a, share_b) == (1 / 3, 2 / 3)
    for got, whole, images in ((of_a, a, [1]), (of_b, b, [0, 2])):
        assert all(torch.equal(got.teacher[s], whole.teacher[s][images]) for s in whole.teacher)
    for name in YOLO_METHODS:  # each image counts alike
        parts = [METHODS[name](of, trainer.config) for of in (of_a, of_b)]
        torch.testing.assert_close(term(name, batches, trainer.config), (parts[0] + 2 * parts[1]) / 3)
    batches = trainer.distillation.weighted_batches([a, with_scores(b, [-9.0] * 3)])  # nobody learns from the other one
    assert [share for share, _ in batches] == [1, 0]
    for name in YOLO_METHODS:
        assert torch.equal(term(name, batches, trainer.config), METHODS[name](a, trainer.config))


def synthetic(images=3):
    """A batch of features and heads on two levels, two boxes on the first image and one on the last."""
    torch.manual_seed(0)

    def head(classes):
        return {
            s: Prediction(torch.randn(images, classes, n, n), torch.randn(images, 4 * 4, n, n))
            for s, n in ((8, 4), (16, 2))
        }

    levels = {8: torch.randn(images, 3, 4, 4), 16: torch.randn(images, 5, 2, 2)}
    theirs = {8: torch.randn(images, 6, 4, 4), 16: torch.randn(images, 7, 2, 2)}
    adapters = Adapters({8: (3, 6), 16: (5, 7)}, tiny_config("d", "o", teachers=("t",), methods=ALL))
    boxes = torch.tensor([[0.0, 0, 9, 9], [10, 10, 30, 20], [4, 4, 28, 30]])
    index = torch.tensor([0, 0, images - 1])
    return Batch(levels, theirs, adapters.layers(), boxes, index, [head(2)], [head(3)], [2, 0])


def test_images_are_selected_with_their_boxes():
    batch = synthetic().select(torch.tensor([2, 0]))
    assert batch.image_index.tolist() == [1, 1, 0]
    batch = synthetic().select(torch.tensor([2]))
    assert batch.image_index.tolist() == [0]
    assert batch.boxes_xyxy.tolist() == [[4, 4, 28, 30]]
    assert torch.equal(batch.teacher_heads[0][8].scores, synthetic().teacher_heads[0][8].scores[2:])
    empty = synthetic().select(torch.tensor([1]))
    assert len(empty.boxes_xyxy) == 0
    config = tiny_config("d", "o", teachers=("t",), methods=ALL)
    assert all(METHODS[name](empty, config).isfinite() for name in YOLO_METHODS)


def test_a_selection_of_all_images_changes_no_term():
    whole, config = synthetic(), tiny_config("d", "o", teachers=("t",), methods=ALL)
    selected = whole.select(torch.arange(3))
    assert all(torch.equal(METHODS[name](whole, config), METHODS[name](selected, config)) for name in YOLO_METHODS)


def test_an_images_score_is_the_mean_confidence_of_its_cells_that_count():
    batch = synthetic()
    for stride in (8, 16):
        batch.teacher_heads[0][stride].scores[:] = -9  # far below what counts
        batch.teacher_heads[0][stride].scores[:, 1] = 9  # a class that the student does not have
    batch.teacher_heads[0][8].scores[1, 2, 0, 0] = 2  # one cell of the second image, which has no box
    scores = batch.image_scores
    low, high = torch.tensor([-9.0, 2.0]).sigmoid()
    assert scores.tolist() == pytest.approx([float(low), float(high), float(low)])
    batch.teacher_heads[0][8].scores[1] = -9
    assert batch.image_scores[1] == 0  # no cell of it counts


@pytest.mark.train
def test_every_teachers_adapters_start_as_if_it_were_alone_and_are_trained(data, tmp_path, pair):
    config = tiny_config(data, tmp_path / "run", teachers=pair, methods=FEATURES, teacher_weights=(1.0, 3.0))
    result = train(config, allow_weak_teacher=True)
    jsonschema.validate(json.loads(json.dumps(result)), schemas.load("run"))
    first, second = result["kd"]["teachers"]
    assert (first["weight"], second["weight"]) == (0.25, 0.75)
    assert first["sha256"] != second["sha256"]
    assert all(teacher["worth"]["teacher_map50"] is not None for teacher in (first, second))
    assert (result["config"]["teacher_weights"], result["config"]["combine"]) == ([0.25, 0.75], "mean")
    with (tmp_path / "run" / "results.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert [key for key in row if "kd" in key] == [
        "train/kd_loss", "train/kd_fgfi_loss", "train/kd_cwd_loss", "train/kd_pkd_loss",
    ]  # fmt: skip
    end = torch.load(tmp_path / "run" / "weights" / "last.kd.pt", weights_only=True)["adapters"]
    for i, teacher in enumerate((first, second)):
        levels = {r["stride"]: (r["student_channels"], r["teacher_channels"]) for r in teacher["levels"]}
        start = Adapters(levels, config)
        assert teacher["adapter_params"] == sum(p.numel() for p in start.parameters())
        for key, value in start.state_dict().items():
            assert not torch.equal(end[f"{i}.{key}"], value)
            assert float((end[f"{i}.{key}"] - value).abs().max()) < 0.2


def test_a_run_resumes_with_its_teachers_alone(data, tmp_path, pair):
    def record(*teachers, sha256=("a", "b"), **changes):
        config = tiny_config(data, tmp_path, teachers=teachers or pair, **changes).to_json()
        kd = {"teachers": [{"sha256": content} for content in sha256]}
        return {"config": json.loads(json.dumps(config)), "data_sha256": "d", "student_sha256": None, "kd": kd}

    (tmp_path / "config.json").write_text(json.dumps(record()))
    assert require_same(tmp_path, record()) == record()
    for key, other in (
        ("combine", record(combine="best")),
        ("teacher_weights", record(teacher_weights=(1.0, 2.0))),
        ("teacher_imgsz", record(teacher_imgsz=128)),
        ("teacher_sha256", record(sha256=("a", "c"))),
        ("teacher_sha256", record(*pair[::-1], sha256=("b", "a"))),
        ("teachers", record(pair[0], "yolov5s", sha256=("a", None))),
    ):
        with pytest.raises(RunError, match=f"{key}: got"):
            require_same(tmp_path, other)
    moved = record("/elsewhere/a.pt", "/elsewhere/b.pt")
    assert require_same(tmp_path, moved) == record()


# --- at another image size --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (1, {8: 8, 16: 16, 32: 32}),
        (2, {8: 16, 16: 32}),
        (0.5, {16: 8, 32: 16}),
        (4, {8: 32}),
        (1.4, {8: 8, 16: 16, 32: 32}),  # 5.7, 11.4, 22.9 of the student's pixels
        (1.5, {8: 16, 16: 32}),  # 5.3, 10.7, 21.3: its finest level is as near to no one as to 4
    ],
)
def test_levels_are_matched_by_the_students_pixels(ratio, expected):
    assert match_levels([8, 16, 32], [8, 16, 32], "t", ratio) == expected


def test_a_teacher_that_sees_too_much_shares_no_level():
    with pytest.raises(DistillationError, match="strides 1, 2, 4, expected at least one of the student's: 8, 16, 32"):
        match_levels([8, 16, 32], [8, 16, 32], "t", 8)


@pytest.mark.train
def test_at_twice_the_size_the_teachers_next_level_has_the_students_cells(data, tmp_path, pair):
    trainer, batch = set_up(data, tmp_path, teachers=pair[:1], teacher_imgsz=128, methods=ALL)
    (inputs,) = trainer.distillation.inputs(trainer.model.train()(batch["img"]), batch)
    larger = F.interpolate(batch["img"], (128, 128), mode="bilinear")
    features, (head,) = Teacher(pair[0], torch.device("cpu"), with_head=True)(larger)
    assert list(inputs.teacher) == list(inputs.student) == [8, 16]
    for own, theirs in ((8, 16), (16, 32)):
        assert torch.equal(inputs.teacher[own], features[theirs])
        assert torch.equal(inputs.teacher_heads[0][own].boxes, head[theirs].boxes)
        assert inputs.student[own].shape[2:] == features[theirs].shape[2:]
    assert trainer.distillation(trainer.model(batch["img"]), batch)[0].isfinite().all()


@pytest.mark.train
@pytest.mark.parametrize(
    ("imgsz", "size", "sides"),
    [(64, 96, {8: 16, 16: 32}), (96, 64, {16: 8, 32: 16}), (128, 160, {8: 8, 16: 16, 32: 32})],
)
def test_at_other_ratios_features_are_resized_to_the_students_cells(data, tmp_path, pair, imgsz, size, sides):
    trainer, batch = set_up(data, tmp_path, teachers=pair[:1], imgsz=imgsz, teacher_imgsz=size, methods=FEATURES)
    (inputs,) = trainer.distillation.inputs(trainer.model.train()(batch["img"]), batch)
    images = F.interpolate(batch["img"], (size, size), mode="bilinear")
    features = Teacher(pair[0], torch.device("cpu")).features(images)
    assert trainer.distillation.links[0].levels == sides
    for own, theirs in sides.items():
        assert inputs.teacher[own].shape[2:] == inputs.student[own].shape[2:] != features[theirs].shape[2:]
        torch.testing.assert_close(inputs.teacher[own], resized(features[theirs], inputs.student[own]))
    assert float(trainer.distillation(trainer.model(batch["img"]), batch)[1]["kd_loss"]) > 0


def test_resizing_is_bilinear_and_leaves_equal_cells_alone():
    maps = torch.tensor([[[[0.0, 4.0]]]])
    assert resized(maps, torch.zeros(1, 9, 1, 2)) is maps
    assert resized(maps, torch.zeros(1, 9, 1, 4)).tolist() == [[[[0.0, 1.0, 3.0, 4.0]]]]
    assert resized(maps, torch.zeros(1, 9, 1, 1)).tolist() == [[[[2.0]]]]


@pytest.mark.parametrize(
    ("imgsz", "size", "theirs", "settings", "fits"),
    [
        (64, None, (8, 16, 32), (), None),
        (64, 128, (8, 16, 32), (), None),
        (64, 32, (8, 16, 32), (), None),
        (64, 96, (8, 16, 32), (), "choose 32 or 64 or 128 or 256"),
        (96, 64, (8, 16, 32), (), "choose 96 or 192 or 384"),
        (96, None, (8, 16, 32, 64), (), "choose 192 or 384"),
        (128, None, (8, 16, 32, 64), (), None),
        (128, 64, (8, 16, 32), (("rect", True),), "choose 128 or 256 or 512"),
        (128, None, (8, 16, 32, 64), (("multi_scale", 0.5),), "choose 256 or 512"),
    ],
)
def test_heads_are_compared_on_equal_cells_or_not_at_all(imgsz, size, theirs, settings, fits):
    config = tiny_config("d", "o", teachers=("t",), imgsz=imgsz, teacher_imgsz=size, settings=settings)
    if fits is None:
        require_equal_grids(config, (8, 16, 32), theirs, "t")
    else:
        with pytest.raises(DistillationError, match=f"^t: --teacher-imgsz: got {size or imgsz} .*{fits}, or fgfi"):
            require_equal_grids(config, (8, 16, 32), theirs, "t")


@pytest.mark.train
def test_a_teacher_with_a_sixth_level_sees_multiples_of_its_stride(data, tmp_path):
    plan = train(
        tiny_config(data, tmp_path / "run", imgsz=96, teachers=("yolov5n-p6",)), dry_run=True, allow_weak_teacher=True
    )
    assert plan["first_batch"]["terms"]["fgfi"] > 0


# --- of other kinds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["yolov8n-seg", "yolo26n-seg", "yolo11n-pose", "yolo26n-pose"])
def test_models_for_masks_and_poses_teach_as_the_detectors_inside(tmp_path, name):
    torch.manual_seed(0)
    kind = SegmentationModel if name.endswith("seg") else PoseModel
    model = kind(f"{name}.yaml", nc=2, verbose=False).eval()
    model.names = NAMES
    torch.save(
        {"model": model, "epoch": -1, "train_args": {"task": name.split("-")[1].replace("seg", "segment")}},
        tmp_path / "t.pt",
    )
    images = torch.rand(1, 3, 64, 64)
    seen = []
    model.model[-1].register_forward_pre_hook(lambda _, args: seen.extend(args[0]))
    with torch.no_grad():
        model(images)
        branches = [model.model[-1].one2many]
        branches += [model.model[-1].one2one] if hasattr(model.model[-1], "one2one_cv2") else []
        want = [
            [(cls(f), box(f)) for f, cls, box in zip(seen, branch["cls_head"], branch["box_head"], strict=True)]
            for branch in branches
        ]
    features, heads = Teacher(str(tmp_path / "t.pt"), torch.device("cpu"), with_head=True)(images)
    torch.testing.assert_close(list(features.values()), seen, rtol=1e-3, atol=1e-4)
    got = [[tuple(prediction[:2]) for prediction in head.values()] for head in heads]
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


@pytest.mark.train
def test_a_segmentation_teacher_is_scored_and_teaches_heads(data, tmp_path):
    model = SegmentationModel("yolo11n-seg.yaml", nc=2, verbose=False)
    model.names = NAMES
    torch.save({"model": model, "epoch": -1, "train_args": {"task": "segment"}}, tmp_path / "t.pt")
    config = tiny_config(data, tmp_path / "run", teachers=(str(tmp_path / "t.pt"),), methods=ALL)
    plan = train(config, dry_run=True, allow_weak_teacher=True)
    assert plan["kd"]["teachers"][0]["worth"]["teacher_map50"] is not None
    assert all(value > 0 for value in plan["first_batch"]["terms"].values())


@pytest.mark.train
def test_rtdetr_teaches_features_beside_others_and_is_never_the_surest(data, tmp_path, pair):
    config = tiny_config(data, tmp_path / "run", teachers=("rtdetr-l", pair[0]), methods=FEATURES)
    plan = train(config, dry_run=True, allow_weak_teacher=True)
    assert [level["stride"] for level in plan["kd"]["teachers"][0]["levels"]] == [8, 16, 32]
    assert all(value > 0 for value in plan["first_batch"]["terms"].values())
    choosing = tiny_config(data, tmp_path / "run", teachers=("rtdetr-l", pair[0]), methods=FEATURES, combine="best")
    with pytest.raises(DistillationError, match=r"^rtdetr-l: teacher: got a RTDETRDecoder head .*--combine best"):
        train(choosing, dry_run=True, allow_weak_teacher=True)


@pytest.mark.parametrize(("name", "kind"), [("yolov8s-world", "WorldModel"), ("yoloe-v8-seg", "YOLOESegModel")])
def test_detectors_of_free_text_are_refused(data, tmp_path, name, kind):
    with pytest.raises(ModelError, match=f"^{name}: teacher: got a {kind}, expected a detector"):
        train(tiny_config(data, tmp_path / "run", teachers=(name,)))
    assert not (tmp_path / "run").exists()
