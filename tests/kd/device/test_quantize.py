"""INT8 files keep what has to stay float, are judged in their runtime, and say what they are."""

from __future__ import annotations

import json
from unittest.mock import Mock

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")
for package in ("onnx", "onnxruntime", "onnxslim", "openvino", "nncf"):
    pytest.importorskip(package, reason="needs the extra device")

import cv2
import jsonschema
import numpy as np
import onnx
import openvino
from ultralytics.nn.tasks import DetectionModel

import schemas
from kd import locks
from kd.device import quantize as module
from kd.device import writing
from kd.device.images import Images
from kd.device.int8 import recipes
from kd.device.quantize import quantize
from kd.errors import DataError, KdError, RunError, UsageError
from kd.scoring.evaluate import evaluate
from kd.ultra import models
from kd.ultra.data import label_file
from kd.ultra.exported import load_exported
from tests.kd_fixtures import write_dataset
from tests.kd_models import NAMES, save_lively


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, and training images with its own detections as truth: a float file scores high on them."""
    folder = tmp_path_factory.mktemp("quantize")
    write_dataset(folder / "data", train=4, test=1, side=64)
    checkpoint = save_lively(folder / "best.pt")
    yolo = models.load_model(str(checkpoint))
    for image in sorted((folder / "data" / "images" / "train").iterdir()):
        boxes = yolo.predict(image, imgsz=64, conf=0.1, save=False, verbose=False)[0].boxes
        rows = zip(boxes.cls.tolist()[::3], boxes.xywhn.tolist()[::3], strict=True)
        label_file(image).write_text(
            "\n".join(f"{int(label)} " + " ".join(f"{value:.6f}" for value in box) for label, box in rows)
        )
    return folder


@pytest.fixture(scope="module", params=["openvino", "onnx"])
def quantized(request, folder):
    lines = []
    name = {"openvino": "small_openvino_model", "onnx": "small.onnx"}[request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST_LOST", 1)  # the first recipe is good enough
        model, data = folder / "best.pt", folder / "data" / "data.yaml"
        return quantize(model, data, format=request.param, out=folder / name, tell=lines.append), lines


def test_it_is_smaller_says_what_it_is_and_is_scored_as_reported(quantized, folder):
    found, lines = quantized
    metadata = load_exported(found["out"], "cpu").card.own
    jsonschema.validate(metadata, schemas.load("export"))
    assert metadata == found["metadata"]
    assert metadata["int8"] == {"images": 4, "float": found["kept_float"]}
    assert metadata["sha256"] == writing.sha256(folder / "best.pt")
    assert found["int8"]["bytes"] < 0.5 * found["float"]["bytes"]
    again = evaluate(folder / "data" / "data.yaml", found["out"], split="train", device="cpu", quiet=True)
    assert again["map50_95"] == pytest.approx(found["int8"]["map50_95"])
    assert found["float"]["map50_95"] > 0.2  # on some of its own detections
    assert any("saves size alone" in line for line in lines) == (found["int8"]["ms"] > found["float"]["ms"])
    assert not list(folder.glob(".*"))


def weights_of(file):
    """The types of all convolutions' weights, by operation."""
    if file.endswith(".onnx"):
        graph = onnx.load(file).graph
        made = {name: node.op_type for node in graph.node for name in node.output}
        return {n.name: made.get(n.input[1], "float") for n in graph.node if n.op_type == "Conv"}
    found = {}
    for operation in openvino.Core().read_model(f"{file}/small.xml").get_ops():
        if operation.get_type_name() == "Convolution":
            weights = operation.input_value(1).get_node()
            while weights.get_type_name() != "Constant":
                weights = weights.input_value(0).get_node()
            found[operation.get_friendly_name()] = weights.get_element_type().get_type_name()
    return found


def test_the_box_decoding_stays_float_and_the_convolutions_do_not(quantized):
    found = weights_of(quantized[0]["out"])
    decoding = {kind for name, kind in found.items() if "dfl" in name}
    others = {kind for name, kind in found.items() if "dfl" not in name}
    assert len(found) > 50
    assert decoding <= {"float", "f32"}
    assert len(decoding) == len(others) == 1
    assert others <= {"DequantizeLinear", "i8"}


def test_what_stays_float_is_tried_from_the_fastest_on_until_the_score_is_kept(folder, monkeypatch):
    scores = iter([0.5, 0.40, 0.49, 0.498])
    monkeypatch.setattr(module, "score", lambda *_, **__: {"map50_95": next(scores)})
    asked = []
    monkeypatch.setitem(
        module.QUANTIZERS, "onnx", lambda made, images, recipe, network, out: asked.append(recipe) or out
    )
    monkeypatch.setattr(module, "load_exported", lambda *_: None)
    monkeypatch.setattr(module, "describe_as", lambda *_: None)
    monkeypatch.setattr(module, "size_bytes", lambda *_: 1)
    monkeypatch.setattr(module, "place", lambda *_: None)
    monkeypatch.setattr(module, "_milliseconds", lambda *_: (1.0, 2.0))
    lines = []
    found = quantize(
        folder / "best.pt", folder / "data" / "data.yaml", format="onnx", out=folder / "x.onnx", tell=lines.append
    )
    assert [recipe.narrow for recipe in asked] == [False, True, False]
    assert found["kept_float"] == asked[-1].title == "the head's last convolutions"
    assert lines == [f"{folder / 'x.onnx'}: INT8 takes 2.0 ms here, float 1.0: on this processor it saves size alone"]
    scores = iter([0.5, 0.1, 0.3, 0.2, 0.2, 0.1])
    found = quantize(
        folder / "best.pt", folder / "data" / "data.yaml", format="onnx", out=folder / "x.onnx", tell=lines.append
    )
    assert found["kept_float"] == "the box decoding, weights in 7 bits"
    assert "mAP50-95 is 20.0 points below the float file's on training images" in lines[1]
    scores = iter([0.001, 0.0])
    quantize(folder / "best.pt", folder / "data" / "data.yaml", format="onnx", out=folder / "x.onnx", tell=lines.append)
    assert "best.pt: mAP50-95 is 0.1 on training images, and what INT8 costs is not seen" in lines[3]


def test_one_process_at_a_time_writes_a_file_and_removes_what_a_killed_one_left(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "WAIT_S", 0.1)
    out, left = tmp_path / "new" / "x.onnx", tmp_path / "new" / ".x.onnx.kd" / "scratch" / "half.onnx"
    left.parent.mkdir(parents=True)
    left.touch()
    with writing.workplace(out) as scratch:
        assert not list(scratch.iterdir())
        with pytest.raises(RunError, match=r"x\.onnx: another process is writing it"), writing.workplace(out):
            pass
        assert scratch.exists()
    assert not list(out.parent.iterdir())


def test_recipes_name_convolutions_of_the_network():
    network = DetectionModel(str(models.SHIPPED / "yolov8p.yaml"), nc=2, verbose=False)
    there = {name for name, part in network.named_modules() if isinstance(part, torch.nn.Conv2d)}
    found = recipes(network, "openvino")
    assert [len(recipe.floats) for recipe in found] == [0, 6, 7, 20]
    assert all(recipe.floats <= there for recipe in found)
    assert "model.22.cv2.0.2" in found[1].floats
    assert "model.0.conv" in found[2].floats


def test_images_are_rgb_and_padded_to_squares(tmp_path):
    blue = np.full((32, 64, 3), (255, 0, 0), np.uint8)
    cv2.imwrite(str(tmp_path / "blue.png"), blue)
    (image,) = Images([tmp_path / "blue.png"], 96)
    assert image.shape == (1, 3, 96, 96)
    assert image.dtype == np.float32
    assert np.allclose(image[0, :, 0, 0], 114 / 255)
    assert image[0, :, 48, 48].tolist() == [0, 0, 1]


def test_a_model_of_single_cls_takes_the_data_of_its_classes(tmp_path, monkeypatch):
    data = write_dataset(tmp_path / "data", train=2, side=64)
    for label in (tmp_path / "data" / "labels" / "train").iterdir():
        label.write_text("9 0.5 0.5 0.2 0.2\n")
    checkpoint = save_lively(tmp_path / "one.pt", names={0: "item"})
    content = torch.load(checkpoint, weights_only=False)
    content["train_args"]["single_cls"] = True
    torch.save(content, checkpoint)
    monkeypatch.setattr(module, "write", Mock(side_effect=KdError("all is checked")))
    with pytest.raises(KdError, match="all is checked"):
        quantize(checkpoint, data, out=tmp_path / "one.onnx", format="onnx")


def test_bad_input_is_one_line_and_leaves_nothing(folder, tmp_path, monkeypatch):
    data, model = folder / "data" / "data.yaml", folder / "best.pt"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="--format: got 'engine', expected one of openvino, onnx"):
        quantize(model, data, format="engine")
    with pytest.raises(UsageError, match="expected a name that ends in _openvino_model"):
        quantize(model, data, out="a.onnx")
    empty = tmp_path / "empty.yaml"
    empty.write_text(f"path: {folder / 'data'}\nval: images/test\nnames: {json.dumps(list(NAMES.values()))}\n")
    with pytest.raises(DataError, match="train: got none, expected training images"):
        quantize(model, empty)
    empty.unlink()
    monkeypatch.setattr(writing, "find_spec", lambda name: None if name == "nncf" else object())
    with pytest.raises(KdError, match=r"got no package nncf, .*: pip install 'dtld-kd\[device\]'"):
        quantize(model, data)
    assert list(tmp_path.iterdir()) == []
