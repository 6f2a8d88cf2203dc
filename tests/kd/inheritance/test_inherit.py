"""A student's first weights: reproduced outputs, tied channels, classes by name, and what cannot be inherited."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

from ultralytics.nn.tasks import DetectionModel

from kd.errors import ModelError
from kd.inheritance.inherit import inherit
from kd.ultra import session
from kd.ultra.models import load_model
from tests.kd_models import as_trained

IMAGES = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def detector(name, *, names=("red", "green"), seed=0, width=None):
    """A detector with activations that differ per channel, as trained ones have."""
    torch.manual_seed(seed)
    config = dict(load_model(name).model.yaml)
    if width:
        config["scales"] = {config["scale"]: [config["scales"][config["scale"]][0], width, 1024]}
    with session.silence():
        model = DetectionModel(config, nc=len(names), verbose=False)
    model.names = dict(enumerate(names))
    return as_trained(model, IMAGES)


def outputs(model):
    head = model.model[-1]
    head.training = True
    with torch.no_grad():
        found = model(IMAGES)
    head.training = False
    found = found.get("one2many", found)
    return torch.cat([found["boxes"], found["scores"]], 1)


def born(student, teacher, **options):
    return inherit(student, teacher, list(IMAGES.split(4)), **options)


def error(student, teacher):
    theirs = outputs(teacher)
    return float((outputs(student) - theirs).square().mean() / theirs.var())


@pytest.mark.parametrize("name", ["yolov8n", "yolov5n", "yolo11n", "yolo26n"])
def test_solved_students_are_nearer_to_their_teacher_than_sliced_ones(name):
    teacher = detector(name)
    solved, sliced = (detector(name, seed=1, width=0.125) for _ in range(2))
    result = born(solved, teacher)
    born(sliced, teacher, solving=False)
    assert error(solved, teacher) < 0.7 * error(sliced, teacher)
    assert not result.fresh
    assert all(0 <= share <= 1 for share, _ in result.reproduced.values())


@pytest.mark.parametrize("name", ["yolov8n", "mobilenet_v3_small"])
def test_a_student_as_wide_as_its_teacher_becomes_it(name):
    teacher, student = detector(name), detector(name, seed=1)
    born(student, teacher)
    assert error(student, teacher) < 0.05


def test_it_is_the_same_each_time_whatever_the_student_was():
    teacher = detector("yolov8n")
    students = [detector("yolov8n", seed=seed, width=0.125) for seed in (1, 2)]
    for student in students:
        born(student, teacher)
    one, other = (student.state_dict() for student in students)
    assert all(torch.equal(value, other[key]) for key, value in one.items() if "num_batches" not in key)


def test_channels_that_a_shortcut_adds_are_the_same_ones_of_the_teacher():
    teacher, student = detector("yolov8n"), detector("yolov8n", seed=1, width=0.125)
    for name, module in teacher.named_modules():  # a mark: the biases are the channels' numbers
        if name in ("model.2.cv1.bn", "model.2.m.0.cv2.bn"):
            module.bias.data = torch.arange(float(len(module.bias)))
    born(student, teacher)
    first, inner = (student.get_submodule(f"model.2.{name}.bn").bias for name in ("cv1", "m.0.cv2"))
    assert (first[8:] - 16).tolist() == inner.tolist()
    assert set(first[:8].tolist()) <= set(range(16))


def test_classes_go_by_name_and_unknown_ones_stay_fresh():
    teacher = detector("yolov8n", names=("red", "green", "off"))
    student = detector("yolov8n", names=("amber", "off"), seed=1, width=0.125)
    before = student.model[-1].cv3[0][-1].weight.clone()
    born(student, teacher)
    after = student.model[-1].cv3[0][-1].weight
    assert torch.equal(after[0], before[0])
    scores = [outputs(model)[:, 64:] for model in (student, teacher)]
    correlation = torch.corrcoef(torch.stack([scores[0][:, 1].flatten(), scores[1][:, 2].flatten()]))[0, 1]
    assert correlation > 0.8


def test_of_more_repeats_the_last_ones_are_inherited():
    teacher = detector("yolov8m", names=("a", "b"))
    student = detector("yolov8n", names=("a", "b"), seed=1)
    assert len(teacher.model[4].m) > len(student.model[4].m)
    mark = teacher.model[4].m[-1].cv1.bn.bias
    born(student, teacher)
    assert set(student.model[4].m[-1].cv1.bn.bias.tolist()) <= set(mark.tolist())


def test_attention_is_inherited_by_whole_heads():
    teacher, student = detector("yolo11s"), detector("yolo11n", seed=1)
    attention, own = teacher.model[10].m[0].attn, student.model[10].m[0].attn
    assert attention.num_heads > own.num_heads
    for name in ("qkv", "pe"):
        bias = getattr(attention, name).bn.bias
        bias.data = torch.arange(float(len(bias)))
    result = born(student, teacher)
    heads = own.qkv.bn.bias[:: own.key_dim * 2 + own.head_dim] / (own.key_dim * 2 + own.head_dim)
    assert own.pe.bn.bias[:: own.head_dim].tolist() == (heads * own.head_dim).tolist()
    assert "model.10.m.0.attn.pe.conv" in result.copied


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("yolov8n", "yolov5n"), ("yolov8n", "yolo11n"), ("yolov8n", "yolov8n-p2"), ("yolov8n", "mobilenet_v2"),
        ("mobilenet_v2", "yolov8n"), ("mobilenet_v2", "mobilenet_v3_small"),
    ],
)  # fmt: skip
def test_another_family_is_refused(name, other):
    with pytest.raises(ModelError, match="another family"):
        inherit(load_model(name).model, load_model(other).model, [])


def test_channels_beyond_the_teachers_stay_as_drawn():
    teacher, student = detector("yolov8n", width=0.0625), detector("yolov8n", seed=1, width=0.125)
    before = [student.model[2].cv1.conv.weight.clone(), student.model[2].cv1.bn.running_mean.clone()]
    born(student, teacher)
    after = [student.model[2].cv1.conv.weight, student.model[2].cv1.bn.running_mean]
    for was, now in zip(before, after, strict=True):
        same = [bool(torch.equal(a, b)) for a, b in zip(was, now, strict=True)]
        assert same == ([False] * 4 + [True] * 4) * 2  # of both halves
    assert error(student, teacher) < 0.05


def test_attention_of_other_heads_stays_as_drawn():
    teacher, student = detector("yolo11n", width=0.125), detector("yolo11n", seed=1, width=0.0625)
    result = born(student, teacher)
    assert result.fresh == ["model.10.m.0.attn.qkv.conv", "model.10.m.0.attn.pe.conv"]


def test_a_teacher_without_batch_norms_or_with_outputs_that_are_no_numbers_is_refused():
    folded, student = detector("yolov8n", width=0.125), detector("yolov8n", seed=1, width=0.125)
    with session.silence():
        folded.fuse(verbose=False)
    with pytest.raises(ModelError, match="got a teacher whose batch norms are folded"):
        born(student, folded)
    huge = detector("yolov8n", width=0.125)
    huge.model[0].conv.weight.data *= 1e7
    with pytest.raises(ModelError, match=r"teacher's model\.0\.conv that 16 bits cannot hold"):
        born(student, huge)
