"""An exported file gives what its checkpoint gives, says what it is, and appears whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")
onnx = pytest.importorskip("onnx", reason="needs the extra device")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra device")
pytest.importorskip("onnxslim", reason="needs the extra device")

import jsonschema
from ultralytics import YOLO

import schemas
from kd.device import export as module
from kd.device import writing
from kd.device.export import Difference, export
from kd.device.writing import FORMATS
from kd.errors import DataError, KdError, ModelError, UsageError
from kd.scoring.evaluate import evaluate
from kd.ultra import classic, models
from kd.ultra.exported import SUFFIXES, load_exported
from tests.kd_models import NAMES, save_detector, save_lively, squares


def outputs(file, image):
    """What onnxruntime gives, without us or Ultralytics."""
    (found,) = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(
        None, {"images": image.numpy()}
    )
    return torch.from_numpy(found)


def props(file):
    return {entry.key: entry.value for entry in onnx.load(file).metadata_props}


# ---------------------------------------------------------------- what is written


def test_the_file_gives_the_checkpoints_outputs(exported, checkpoint):
    image = squares(1)
    with torch.inference_mode():
        expected = models.load_model(str(checkpoint)).model(image)[0]
    found = outputs(exported["out"], image)
    assert found.shape == (1, 6, 84)
    assert (found - expected).abs().amax() < 1e-3
    assert expected[:, 4:].std() > 0.05  # or anything would be near


def test_the_file_says_what_it_is(exported, checkpoint):
    found = props(exported["out"])
    assert found["names"] == str(NAMES)
    assert found["imgsz"] == "[64, 64]"
    assert found["description"] == "best, exported by kd"  # Ultralytics names the data's path
    own = json.loads(found["kd"])
    jsonschema.Draft7Validator(schemas.load("export")).validate(own)
    assert own == exported["metadata"] == {
        "checkpoint": "weights/best.pt",
        "sha256": writing.sha256(checkpoint),
        "threshold": 0.25,
        "tiles": {"layout": "grid", "size_px": 640, "overlap": 0.2},
    }  # fmt: skip


def test_it_was_checked_on_training_images_and_nothing_else_is_left(exported, checkpoint, folder):
    assert exported["checked"]["images"] == 8  # of 10
    assert exported["checked"]["max_px"] < 0.01
    assert exported["bytes"] == Path(exported["out"]).stat().st_size
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["best.pt"]
    assert sorted(path.name for path in (folder / "run").iterdir()) == ["best.onnx", "weights"]


def test_without_a_place_it_is_named_after_the_run_in_the_current_folder(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = export(checkpoint)
    assert (found["out"], found["checked"]["data"], found["checked"]["images"]) == ("run.onnx", None, 1)
    assert "tiles" not in found["metadata"]
    assert [path.name for path in tmp_path.iterdir()] == ["run.onnx"]


def test_of_two_heads_the_one_to_many_is_exported(tmp_path):
    checkpoint = save_detector(tmp_path / "m.pt", NAMES, imgsz=64, architecture="yolo26n")
    export(checkpoint, out=tmp_path / "m.onnx")
    image = squares(1)
    network = models.load_model(checkpoint).model
    network.end2end = False
    with torch.inference_mode():
        assert (outputs(tmp_path / "m.onnx", image) - network(image)[0]).abs().amax() < 1e-3


def test_a_classic_model_is_exported_in_the_form_that_its_head_returns(tmp_path):
    torch.manual_seed(0)
    network = models.load_model("classic/yolov5n").model.eval()
    with classic.official_names():
        torch.save({"model": network, "ema": None}, tmp_path / "yolov5n.pt")
    export(tmp_path / "yolov5n.pt", imgsz=64, out=tmp_path / "a.pt.d" / "n.onnx")
    image = squares(1)
    with torch.inference_mode():
        expected = network(image)[0]
    found = outputs(tmp_path / "a.pt.d" / "n.onnx", image)
    assert found.shape == expected.shape == (1, 84, 3 * (64 + 16 + 4))
    assert (found - expected).abs().amax() < 1e-3
    assert load_exported(str(tmp_path / "a.pt.d" / "n.onnx")).names[79] == "79"


@pytest.mark.train  # seconds
def test_an_openvino_folder_replaces_an_earlier_export_alone(exported, checkpoint, data, tmp_path):
    pytest.importorskip("openvino", reason="needs the extra device")
    out = tmp_path / "x_openvino_model"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"--out: got .*x_openvino_model, a folder that is no earlier export"):
        export(checkpoint, format="openvino", out=out)
    (out / "metadata.yaml").write_text("version: 1")  # what many programs write
    with pytest.raises(UsageError, match=r"a folder that is no earlier export"):
        export(checkpoint, format="openvino", out=out)
    (out / "metadata.yaml").write_text("names: {0: other}")
    found = export(checkpoint, format="openvino", data=data, out=out)
    assert sorted(path.name for path in out.iterdir()) == ["metadata.yaml", "x.bin", "x.xml"]
    assert [path.name for path in tmp_path.iterdir()] == ["x_openvino_model"]
    assert found["checked"]["max_px"] < 0.05  # in float32, on processors with bfloat16, too
    assert found["checked"]["tolerance"] == "0.05 px and 0.001 at every place"
    scores = [evaluate(data, file, device="cpu")["map50_95"] for file in (out, exported["out"])]
    assert scores[0] == pytest.approx(scores[1], abs=0.05)  # OpenVINO calculates in bfloat16 where the processor does


# ---------------------------------------------------------------- what is refused


def test_a_file_that_differs_from_its_checkpoint_leaves_nothing(exported, own, checkpoint, data, monkeypatch):
    other = str(save_lively(own.parent.parent / "other.pt", seed=1))
    before, write = own.read_bytes(), module.write
    wrong = lambda yolo, *rest: write(models.load_model(other), *rest)  # noqa: E731
    monkeypatch.setattr(module, "write", wrong)
    with pytest.raises(
        KdError, match=r"best\.onnx: got boxes that differ .*, expected at most 0\.05 px .*: nothing was"
    ):
        export(checkpoint, data=data, out=own)
    assert own.read_bytes() == before
    assert sorted(path.name for path in own.parent.iterdir()) == ["best.onnx", "weights"]


def test_the_tolerance_has_two_sides_and_takes_no_nan():
    near = Difference(1, max_px=0.04, mean_px=0.001, max_score=0.0005)
    half = Difference(1, max_px=15, mean_px=0.8, max_score=0.02)
    assert (near.within(True), half.within(True), half.within(False)) == (True, False, True)
    assert not Difference(1, 15, 1.2, 0.02).within(False)
    assert not Difference(1, 0.04, 0.001, 0.002).within(True)
    assert not Difference(1, float("nan"), float("nan"), float("nan")).within(False)


def test_a_missing_package_is_named_with_the_extra(checkpoint, exported, data, monkeypatch, tmp_path):
    extra = r"got no package {}, expected it to be installed: pip install 'dtld-kd\[device\]'"
    monkeypatch.setattr(writing, "find_spec", lambda name: None if name == "onnxslim" else SimpleNamespace())
    with pytest.raises(KdError, match="--format onnx: " + extra.format("onnxslim")):
        export(checkpoint, out=tmp_path / "a.onnx")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(KdError, match="best.onnx: " + extra.format("onnxruntime")):
        evaluate(data, exported["out"], device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_what_an_exporter_says_is_one_line_and_nothing_is_left(checkpoint, tmp_path, monkeypatch, capfd):
    def fails(*_, **__):
        print("chatter")
        raise RuntimeError("no such engine\nsecond line")

    monkeypatch.setattr(YOLO, "export", fails)
    with pytest.raises(KdError, match=r"^--format ncnn: got RuntimeError: no such engine from Ultralytics' exporter"):
        export(checkpoint, format="ncnn", out=tmp_path / "new" / "a_ncnn_model")
    assert capfd.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []  # nor the folder


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"format": "int8"}, UsageError, "--format: got 'int8', expected one of onnx, openvino"),
        ({"format": "hailo"}, UsageError, "--format: got 'hailo', expected one of"),
        ({"out": "a.bin"}, UsageError, r"--out: got a\.bin, expected a name that ends in \.onnx"),
        ({"out": ".onnx"}, UsageError, r"--out: got \.onnx, expected a name"),
        ({"imgsz": 33}, UsageError, "--imgsz: got 33, expected a multiple of 32"),
        ({"data": "nothing.yaml"}, KdError, r"nothing\.yaml"),
    ],
)
def test_options_that_do_not_fit_are_refused(checkpoint, options, error, reason):
    with pytest.raises(error, match=reason):
        export(checkpoint, **options)


@pytest.mark.parametrize("model", ["yolov5n", "nothing.pt"])
def test_only_a_checkpoint_is_exported(model):
    with pytest.raises(ModelError, match=f"^{model}: no such file, expected a checkpoint"):
        export(model)


def test_a_file_is_no_place_for_a_folder_nor_the_other_way_round(checkpoint, tmp_path):
    (tmp_path / "a_openvino_model").write_text("mine")
    (tmp_path / "a.onnx").mkdir()
    (tmp_path / "a.onnx" / "metadata.yaml").write_text("names: {0: mine}")
    with pytest.raises(UsageError, match=r"--out: got .*a_openvino_model, a file, expected another name"):
        export(checkpoint, format="openvino", out=tmp_path / "a_openvino_model")
    with pytest.raises(UsageError, match=r"--out: got .*a\.onnx, a folder, expected another name"):
        export(checkpoint, out=tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx" / "metadata.yaml").is_file()


def test_data_without_training_images_are_refused(checkpoint, folder, tmp_path):
    (tmp_path / "data.yaml").write_text(f"val: {folder}/data/images/test\nnames: {{0: red, 1: green}}\n")
    with pytest.raises(DataError, match=r"data\.yaml: train: got none, expected .*: leave --data out"):
        export(checkpoint, data=tmp_path / "data.yaml")


def test_every_format_is_one_of_ultralytics_with_an_ending_of_its_own():
    assert set(FORMATS) < SUFFIXES.keys()
    assert len({SUFFIXES[name] for name in FORMATS}) == len(FORMATS)
