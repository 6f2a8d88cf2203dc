"""First weights of classic YOLOv5: reproduced outputs, the rows of its head, its anchors, and the file written."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

from kd.errors import ModelError
from kd.inheritance.inherit import inherit
from kd.inheritance.weights import Scale, inherit_weights
from kd.scoring.evaluate import evaluate
from kd.ultra import classic
from kd.ultra.classic.files import ALLOWED, globals_in
from kd.ultra.models import load_model
from tests.kd_fixtures import write_dataset
from tests.kd_models import as_trained, save_classic, save_detector, tiny_classic

IMAGES = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(3))
ANCHORS = [[4, 8, 6, 6, 9, 5], [12, 20, 14, 14, 30, 20], [40, 40, 60, 30, 80, 90]]


def detector(seed=0, width=0.25, names=("red", "green"), anchors=ANCHORS):
    """A classic model with activations that differ per channel, as trained ones have."""
    torch.manual_seed(seed)
    model = classic.Model({**tiny_classic(), "width_multiple": width, "anchors": anchors}, nc=len(names))
    model.names = dict(enumerate(names))
    return as_trained(model, IMAGES)


def outputs(model):
    """Raw outputs [N, 5 + K] of every place."""
    with torch.no_grad():
        return torch.cat([level.flatten(0, 3) for level in model(IMAGES)[1]["raw"]])


def test_a_solved_student_is_nearer_to_its_teacher_than_a_sliced_one():
    teacher = detector()
    solved, sliced = (detector(seed=1, width=0.125) for _ in range(2))
    result = inherit(solved, teacher, [IMAGES])
    inherit(sliced, teacher, [IMAGES], solving=False)
    own, others = ((outputs(model) - outputs(teacher)).square().mean() for model in (solved, sliced))
    assert own < 0.7 * others
    assert not result.fresh


def test_rows_of_classes_go_by_name_for_every_anchor_and_unknown_ones_stay_fresh():
    teacher = detector(names=("red", "green", "off"), width=0.125)
    student = detector(seed=1, names=("amber", "off"), width=0.125)
    before = student.model[-1].m[0].weight.detach().clone().unflatten(0, (3, 7))
    inherit(student, teacher, [IMAGES])
    same = (student.model[-1].m[0].weight.unflatten(0, (3, 7)) == before).flatten(2).all(2)
    assert same.tolist() == [[False] * 5 + [True, False]] * 3
    pairs = ((student, [*range(5), 6]), (teacher, [*range(5), 7]))
    own, its = (outputs(model)[:, columns] for model, columns in pairs)
    assert (own - its).square().mean() < 0.05 * its.var()


def test_objectness_of_other_classes_is_not_inherited():
    teacher, student = detector(width=0.125), detector(seed=1, names=("amber", "off"), width=0.125)
    before = student.model[-1].m[0].weight.detach().clone().unflatten(0, (3, 7))
    inherit(student, teacher, [IMAGES])
    same = (student.model[-1].m[0].weight.unflatten(0, (3, 7)) == before).flatten(2).all(2)
    assert same.tolist() == [[False] * 4 + [True] * 3] * 3


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), train=3)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_classic(
        tmp_path_factory.mktemp("teacher") / "t.pt", {0: "green", 1: "red"}, anchors=ANCHORS, width_multiple=0.25
    )


def test_half_a_teacher_is_a_checkpoint_of_the_official_form_with_its_anchors(data, teacher, tmp_path):
    out = tmp_path / "w.pt"
    found = inherit_weights(teacher, Scale(width=0.5), data, out, imgsz=64, quiet=True)
    wanted = {name for name in globals_in(out) if not name.startswith(("torch.", "collections."))}
    assert "models.yolo.Model" in wanted <= {*ALLOWED, "__builtin__.set"}
    model = load_model(str(out)).model
    assert model.yaml["width_multiple"] == 0.125
    assert "scales" not in model.yaml
    assert model.yaml["anchors"] == ANCHORS
    assert model.names == {0: "red", 1: "green"}
    assert [list(size) for sizes in model.model[-1].priors.values() for size in sizes][:2] == [[4, 8], [6, 6]]
    assert all(
        layer.out_channels % 8 == 0
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Conv2d) and ".m." not in name[-5:]
    )
    assert found["fresh"] == []
    assert evaluate(data, str(out), split="val", device="cpu", quiet=True)["map50"] == pytest.approx(found["map50"])


def test_a_teacher_of_the_other_kind_is_refused(data, teacher, tmp_path):
    free = save_detector(tmp_path / "free.pt", {0: "red", 1: "green"})
    for source, student in ((teacher, "yolov5n"), (free, "classic/yolov5n")):
        with pytest.raises(ModelError, match=rf"^{student}: inherit: got a teacher of another family"):
            inherit_weights(source, student, data, tmp_path / "w.pt", imgsz=64, quiet=True)
