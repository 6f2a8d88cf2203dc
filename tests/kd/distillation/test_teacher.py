"""Teachers: what they give, that they stay frozen, and when they are refused."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

from ultralytics.nn.modules.head import Detect

from kd.distillation.links import match_levels, matching_classes
from kd.distillation.teacher import Teacher, probe_levels
from kd.errors import DistillationError
from kd.ultra import models

CPU = torch.device("cpu")


def test_features_are_what_the_head_of_the_unfolded_model_reads(tmp_path):
    yolo = models.load_model("yolov5n")
    for module in yolo.model.modules():  # batch statistics that folding must carry over
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    yolo.save(tmp_path / "teacher.pt")
    whole = models.load_model(str(tmp_path / "teacher.pt")).model.eval()
    seen = []
    whole.model[-1].register_forward_pre_hook(lambda _, args: seen.extend(f.clone() for f in args[0]))
    images = torch.rand(2, 3, 96, 64)
    with torch.no_grad():
        whole(images)
    features = Teacher(str(tmp_path / "teacher.pt"), CPU).features(images)
    assert list(features) == [8, 16, 32]
    for got, want in zip(features.values(), seen, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_is_frozen_folded_headless_and_no_module():
    teacher = Teacher("yolo26n", CPU)
    parameters = list(teacher.model.parameters())
    assert not isinstance(teacher, torch.nn.Module)
    assert not any(p.requires_grad for p in parameters)
    assert not teacher.model.training
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in teacher.model.modules())
    assert sum(p.numel() for p in parameters) < sum(p.numel() for p in models.load_model("yolo26n").model.parameters())
    assert not any(f.requires_grad for f in teacher.features(torch.rand(1, 3, 64, 64)).values())


@pytest.mark.parametrize("name", ["yolov5n", "yolo11n", "yolov10n", "yolo26n"])
def test_the_kept_heads_outputs_are_those_of_the_unfolded_model(tmp_path, name):
    yolo = models.load_model(name)
    yolo.save(tmp_path / "teacher.pt")
    whole = models.load_model(str(tmp_path / "teacher.pt")).model.eval()
    images = torch.rand(2, 3, 96, 64)
    with torch.no_grad():
        preds = whole(images)[1]
    branches = [preds["one2many"], preds["one2one"]] if "one2many" in preds else [preds]
    features, heads = Teacher(str(tmp_path / "teacher.pt"), CPU, with_head=True)(images)
    assert len(heads) == len(branches)
    for head, branch in zip(heads, branches, strict=True):
        assert list(head) == list(features) == [8, 16, 32]
        for i, key in enumerate(("scores", "boxes")):
            got = torch.cat([prediction[i].flatten(2) for prediction in head.values()], 2)
            torch.testing.assert_close(got, branch[key], rtol=1e-3, atol=1e-4)


def test_a_teacher_with_head_is_frozen_and_folded_too():
    teacher = Teacher("yolo26n", CPU, with_head=True)
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert not any(isinstance(m, torch.nn.BatchNorm2d) or m.training for m in teacher.model.modules())
    assert Teacher("yolo26n", CPU)(torch.rand(1, 3, 64, 64))[1] == ()


def test_a_head_that_is_not_yolos_is_refused_where_it_would_be_read(monkeypatch):
    other = models.load_model("yolov5n")
    other.model.model[-1].__class__ = type("RTDETRDecoder", (Detect,), {})
    folded = models.load_model("yolo26n")
    folded.model.end2end = True
    folded.model.fuse(verbose=False)  # leaves the one-to-one branch alone
    for yolo, head in ((other, "RTDETRDecoder"), (folded, "Detect")):
        monkeypatch.setattr(models, "load_model", lambda *_, yolo=yolo, **__: yolo)
        with pytest.raises(DistillationError, match=f"t.pt: teacher: got a {head} head without .*: choose fgfi, cwd"):
            Teacher("t.pt", CPU, with_head=True)
        assert list(Teacher("t.pt", CPU).levels) == [8, 16, 32]


def test_classes_are_matched_by_name():
    assert matching_classes({0: "bus", 1: "car"}, {0: "car", 1: "van", 2: "bus"}) == [2, 0]
    assert matching_classes({0: "bus", 1: "tram"}, {0: "car", 1: "van", 2: "bus"}) is None


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("yolov5n", {8: 64, 16: 128, 32: 256}),
        ("yolov8n-p2", {4: 32, 8: 64, 16: 128, 32: 256}),
        ("yolov5n-p6", {8: 64, 16: 128, 32: 192, 64: 256}),
        ("yolov3-tiny", {16: 256, 32: 512}),
    ],
)
def test_levels_are_measured(name, levels):
    assert probe_levels(models.load_model(name).model) == levels


def test_measuring_leaves_statistics_mode_and_random_state_alone():
    model = models.load_model("yolov5n").model.train()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    probe_levels(model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_levels_are_matched_by_stride_not_by_place():
    assert match_levels([8, 16, 32], [4, 8, 16, 32], "t") == {8: 8, 16: 16, 32: 32}
    assert match_levels([8, 16, 32], [16, 32], "t") == {16: 16, 32: 32}
    with pytest.raises(DistillationError, match="strides 64, expected at least one of the student's: 8, 16"):
        match_levels([8, 16], [64], "t")
