"""MobileNet students: their sizes, what their checkpoints hold, and torchvision's own weights from a file."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("torch", reason="needs the extra kd")

import torch
import torchvision
from ultralytics.utils.torch_utils import get_flops

from kd.errors import ModelError
from kd.training.build import build_trainer
from kd.training.run import train
from kd.ultra import model_files, models, session
from kd.ultra.backbone import load_backbone
from tests.kd.training.test_train import run_isolated
from tests.kd_fixtures import tiny_config, write_dataset
from tests.kd_models import save_detector

NAMES = {0: "red", 1: "green"}
V2, V3 = model_files.TORCHVISION
FILE = "mobilenet_v3_small-047dcff4.pth"  # torchvision's own name for it


@pytest.fixture(scope="module")
def networks():
    return {name: models.load_model(name).model for name in (V2, V3)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture
def published(tmp_path):
    """A file such as torchvision publishes, of random weights."""
    weights = torchvision.models.mobilenet_v3_small(weights=None).state_dict()
    torch.save(weights, tmp_path / FILE)
    return weights, str(tmp_path / FILE)


@pytest.mark.parametrize(("name", "millions", "gflops"), [(V2, 3.76, 10.1), (V3, 2.65, 5.9)])
def test_sizes_are_those_of_the_docs(networks, name, millions, gflops):
    network = networks[name]
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    assert get_flops(network, 640) == pytest.approx(gflops, abs=0.05)
    assert network.stride.tolist() == [8, 16, 32]
    assert [branch[0].conv.in_channels for branch in network.model[-1].cv2] == [64, 128, 256]


def test_the_loader_knows_exactly_the_classes_of_torchvision_that_they_need(networks):
    needed = {type(layer) for network in networks.values() for layer in network.modules()}
    known = {kind for kind in torch.serialization.get_safe_globals() if isinstance(kind, type)}
    names = [
        {f"{kind.__module__}.{kind.__name__}" for kind in kinds if kind.__module__.startswith("torchvision.")}
        for kinds in (needed, known)
    ]
    assert names[0] == {name for name in names[1] if not name.startswith("torchvision.transforms.")}
    assert len(names[0]) == 4


def test_a_checkpoint_of_another_class_of_torchvision_is_refused(tmp_path, networks):
    layer = networks[V3].model[0].m
    path, own = tmp_path / "x.pt", layer[1]
    layer[1] = torchvision.ops.misc.FrozenBatchNorm2d(16)
    try:
        torch.save({"model": networks[V3], "epoch": -1, "train_args": {"task": "detect"}}, path)
    finally:
        layer[1] = own
    with pytest.raises(ModelError, match=r"got no usable model .*references types outside"):
        models.load_model(str(path))


ROW = [-1, 1, "TorchVision", [320, V2, None, True, 2, True]]


def test_rows_as_they_are_shipped_pass():
    for row in (ROW, [-1, 1, "TorchVision", [96, V3, "None", True, 3, True]]):
        model_files._require_sensible({"backbone": [row], "head": []}, "x")


@pytest.mark.parametrize(
    "row",
    [
        [-1, 1, "TorchVision", [320, V2]],  # DEFAULT
        [-1, 1, "TorchVision", [320, V2, "DEFAULT", True]],
        [-1, 1, "TorchVision", [320, V2, "IMAGENET1K_V1", True]],
        [-1, 1, "TorchVision", [320, V2, False, True]],
        [-1, 1, "TorchVision", [320, V2, None, False]],  # the whole model, of one class more
        [-1, 1, "TorchVision", [320, "resnet18", None, True]],
        [-1, 2, "TorchVision", [320, V2, None, True]],
        [-1, 1, ["TorchVision"], [320, V2, None, True]],
        "TorchVision",
    ],
)
def test_other_rows_with_the_layer_are_refused(row):
    for yaml in ({"backbone": [row], "head": []}, {"backbone": [ROW], "head": [ROW, row]}):
        with pytest.raises(ModelError, match=r"x: got the layer TorchVision otherwise than .*would be downloaded"):
            model_files._require_sensible(yaml, "x")


def test_torchvisions_weights_become_the_backbone_and_nothing_else(networks, published):
    weights, path = published
    student = models.load_model(V3).model
    before = {name: value.clone() for name, value in student.state_dict().items()}
    load_backbone(student, path)
    for name, value in student.state_dict().items():
        theirs = weights.get(name.replace("model.0.m.", "features.")) if name.startswith("model.0.") else before[name]
        assert torch.equal(value, theirs), name


def test_a_file_without_counters_of_batches_is_one_too(tmp_path):
    student, weights = models.load_model(V3).model, torchvision.models.mobilenet_v3_small(weights=None).state_dict()
    torch.save({k: v for k, v in weights.items() if "num_batches" not in k}, tmp_path / FILE)
    load_backbone(student, str(tmp_path / FILE))
    assert torch.equal(student.model[0].m[0][0].weight, weights["features.0.0.weight"])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"features.0.0.weight": torch.zeros(32, 3, 3, 3)}, r"features\.0\.0\.weight: got \[32, 3, 3, 3\], expected"),
        ({}, r"features\.0\.0\.weight: got nothing, expected \[16, 3, 3, 3\]"),
        ({"features.0.0.weight": 3}, "got nothing, expected"),
        ({1: torch.zeros(2)}, "got no usable weights .AttributeError"),
        ([1, 2], "got no usable weights"),
        (torch.nn.Linear(2, 2), "got no usable weights"),
        (None, "got no usable weights"),
    ],
)
def test_other_files_are_refused_and_change_nothing(tmp_path, networks, content, expected):
    path, student = tmp_path / "x.pth", networks[V3]
    before = [value.clone() for value in student.state_dict().values()]
    path.write_bytes(b"no file of torch's") if content is None else torch.save(content, path)
    with pytest.raises(ModelError, match=expected) as refusal:
        load_backbone(student, str(path))
    assert str(refusal.value).startswith(f"{path}: ")
    assert "\n" not in str(refusal.value)
    assert all(torch.equal(*pair) for pair in zip(before, student.state_dict().values(), strict=True))


def test_a_run_starts_from_torchvisions_weights_and_resumes_from_its_own(data, tmp_path, published):
    weights, path = published
    base = tiny_config(data, tmp_path / "run").settings
    config = tiny_config(data, tmp_path / "run", student=V3, settings=(*base, ("pretrained", path)))
    with session.silence():
        trainer = build_trainer(config, models.load_model(V3).overrides["model"], tmp_path / "run")

        def first():
            trainer.setup_model()
            found, trainer.model = trainer.model.model[0].m[0][0].weight, trainer.args.model
            return found

        assert torch.equal(first(), weights["features.0.0.weight"])
        trainer.resume = True
        assert not torch.equal(first(), weights["features.0.0.weight"])


def test_weights_of_a_backbone_are_no_start_for_a_student_without_one(data, tmp_path, published):
    config = tiny_config(data, tmp_path / "run", settings=(("pretrained", published[1]),))
    with pytest.raises(ModelError, match=rf"{re.escape(published[1])}: got weights without their model, .* for {V2}"):
        train(config, quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.train
def test_soft_labels_teach_it_and_ultralytics_alone_reads_what_comes_out(data, tmp_path):
    teacher = save_detector(tmp_path / "t.pt", NAMES, architecture="yolov8n")
    config = tiny_config(data, tmp_path / "run", student=V3, teachers=(teacher,), methods=(("soft-labels", 0.5),))
    result = train(config, allow_weak_teacher=True, quiet=True)
    assert result["config"]["student"] == V3
    code = f"""
import torch, ultralytics.utils
ultralytics.utils.SAFE_LOAD = False
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel, torch_safe_load
yolo = YOLO({str(tmp_path / "run" / "weights" / "best.pt")!r})
assert type(yolo.model) is DetectionModel
yolo.predict(torch.zeros(1, 3, 64, 64), verbose=False)
assert yolo.names == {NAMES!r}, yolo.names
YOLO({str(models.SHIPPED / f"{V2}.yaml")!r})
try: torch_safe_load(yolo.ckpt_path, safe_only=True)
except TypeError: print('plain, and nothing that its own restricted loader knows')
"""
    done = run_isolated(code)
    assert done.stdout.splitlines()[-1:] == ["plain, and nothing that its own restricted loader knows"], done.stderr
