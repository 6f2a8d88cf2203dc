"""The INT8 form learns from the float one, also when it is killed in between, and the file is what was trained."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict, replace

import jsonschema
import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")
for package in ("openvino", "nncf"):
    pytest.importorskip(package, reason="needs the extra device")

from ultralytics.nn.tasks import DetectionModel

import schemas
from kd.device import aware as module
from kd.device.aware import STATE, Course, train_int8, with_quantizers
from kd.device.images import Images
from kd.device.quantize import quantize
from kd.errors import ModelError, UsageError
from kd.ultra import models
from kd.ultra.data import image_files, resolve_data
from kd.ultra.exported import load_exported
from tests.kd.device.test_quantize import weights_of
from tests.kd_fixtures import write_dataset
from tests.kd_models import save_lively, save_rtdetr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint and data of one batch."""
    folder = tmp_path_factory.mktemp("aware")
    write_dataset(folder / "data", train=4, side=64)
    save_lively(folder / "best.pt")
    return folder


@pytest.fixture(scope="module")
def images(folder):
    return Images(image_files(resolve_data(folder / "data" / "data.yaml", "train")["train"]), 64)


@pytest.fixture(scope="module")
def quantized(folder, images):
    """Its INT8 form, calibrated and not trained."""
    yolo = models.load_model(str(folder / "best.pt"))
    with module.eager():
        found = with_quantizers(yolo.model, images)
    assert "_inference" not in vars(yolo.model.model[-1]) | vars(found.model[-1])
    return found


@pytest.fixture
def train(folder, images, quantized, monkeypatch):
    """Train it for two epochs, with a rate at which that shows; returns its state and its terms."""
    monkeypatch.setattr(module, "RATE", 1e-3)
    monkeypatch.setattr(module, "METHODS", (("logits", 1.0),))
    monkeypatch.setattr(module, "with_quantizers", lambda network, _: deepcopy(quantized))

    def run(state, **options):
        yolo = models.load_model(str(folder / "best.pt"))
        terms = train_int8(yolo, folder / "best.pt", folder / "data" / "data.yaml", images, 2, state, **options)
        return yolo.model.state_dict(), terms

    return run


def test_a_killed_training_ends_as_an_uninterrupted_one(train, quantized, tmp_path, monkeypatch):
    whole, terms = train(tmp_path / "whole")
    assert len(terms) == 2
    assert min(terms) > 0  # rounding parts the two
    before = quantized.state_dict()
    for part in ("model.0.conv.weight", "input_low", "input_range", "scale"):  # weights and ranges have moved
        assert any(not torch.equal(whole[name], before[name]) for name in whole if name.endswith(part)), part
    with monkeypatch.context() as patch:
        own = module._seed
        patch.setattr(module, "_seed", lambda seed, epoch: own(seed, epoch) if epoch == 0 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tmp_path / "killed")
    lines = []
    resumed, again = train(tmp_path / "killed", tell=lines.append)
    assert again == terms
    assert lines == []
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_what_another_course_has_left_is_named_and_not_used(tmp_path):
    state, lines = tmp_path / "state", []
    course = Course("a", "b", 64, 4, 2, 0)
    assert module._load(state, course, lines.append) == {}
    torch.save({"course": asdict(course), "terms": [0.5]}, state)
    assert module._load(state, course, lines.append)["terms"] == [0.5]
    assert lines == []
    assert module._load(state, replace(course, epochs=3), lines.append) == {}
    state.write_bytes(b"half")
    assert module._load(state, course, lines.append) == {}
    assert "got an unfinished distillation of another checkpoint, other data or other options" in lines[0]
    assert "got an unfinished distillation that cannot be read" in lines[1]


def test_the_file_is_what_was_trained_and_says_so(folder):
    lines = []
    found = quantize(
        folder / "best.pt",
        folder / "data" / "data.yaml",
        out=folder / "small_openvino_model",
        distil=1,
        tell=lines.append,
    )
    exported = load_exported(found["out"], "cpu")
    jsonschema.validate(exported.card.own, schemas.load("export"))
    assert exported.card.own == found["metadata"]
    assert found["metadata"]["int8"] == {"images": 4, "float": "the box decoding", "distilled": 1}
    assert len(found["distilled"]) == len(found["tried"]) == 1
    assert found["int8"]["bytes"] < 0.5 * found["float"]["bytes"]
    kinds = weights_of(found["out"])
    assert {kind for name, kind in kinds.items() if "dfl" not in name} == {"i8"}
    assert {kind for name, kind in kinds.items() if "dfl" in name} == {"f32"}
    assert not list(folder.glob(f"*{STATE}"))
    assert not list(folder.glob(".*"))


def test_it_is_calibrated_as_it_is_trained_and_detects(quantized):
    with module.eager(), torch.no_grad():
        pictures = torch.rand(2, 3, 64, 64)
        decoded, raw = quantized.eval()(pictures)
        trained = quantized.train()(pictures)
    assert decoded.shape == (2, 4 + 2, 64 + 16 + 4)
    assert all(torch.equal(raw[key], trained[key]) for key in ("boxes", "scores"))
    assert decoded[:, :4].unique().numel() > 256  # in pixels, not rounded


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_attention_is_traced_with_the_quantisers_that_it_was_calibrated_with(images):
    network = DetectionModel("yolo11n.yaml", nc=2, verbose=False)
    with module.eager(), torch.no_grad():
        found = with_quantizers(network, Images(images.paths[:1], 64)).eval()
        found.model[-1].export, found.model[-1].format = True, "openvino"
        picture = torch.rand(1, 3, 64, 64)
        traced = torch.jit.trace(found, picture, strict=False, check_trace=False)
        assert torch.allclose(traced(picture), found(picture), atol=1e-3)


def test_what_it_does_not_do_is_one_line(folder, tmp_path):
    data = folder / "data" / "data.yaml"
    with pytest.raises(UsageError, match="--distil: got it with --format onnx, expected openvino"):
        quantize(folder / "best.pt", data, format="onnx", distil=1, out=tmp_path / "x.onnx")
    with pytest.raises(UsageError, match="--distil: got -1"):
        quantize(folder / "best.pt", data, distil=-1, out=tmp_path / "x_openvino_model")
    other = save_rtdetr(tmp_path / "rtdetr.pt", {0: "red", 1: "green"})
    with pytest.raises(ModelError, match=r"--distil: .*: got a RTDETRDecoder head"):
        quantize(other, data, distil=1, out=tmp_path / "x_openvino_model")
