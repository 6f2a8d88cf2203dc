"""What scores and draws checkpoints takes an exported file, too, and refuses half of one in a line."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")
onnx = pytest.importorskip("onnx", reason="needs the extra device")
pytest.importorskip("onnxruntime", reason="needs the extra device")
pytest.importorskip("onnxslim", reason="needs the extra device")

import cv2
from ultralytics import YOLO

from dtld_tools.types import TileSpec
from kd.device.export import export
from kd.errors import ModelError, UsageError
from kd.scoring.evaluate import evaluate
from kd.scoring.full_frame import evaluate_frames
from kd.scoring.predict import detect, predict
from kd.ultra import session
from kd.ultra.exported import SUFFIXES, read_metadata
from tests.kd.scoring.test_full_frame import make_dataset, one_light
from tests.kd_fixtures import write_dataset
from tests.kd_models import NAMES, save_lively, save_rtdetr


def rewrite(file, change):
    """Change an ONNX file's metadata."""
    model = onnx.load(file)
    found = {entry.key: entry.value for entry in model.metadata_props}
    change(found)
    del model.metadata_props[:]
    for key, value in found.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, file)


def test_it_is_scored_as_ultralytics_scores_the_checkpoint_on_padded_images(exported, checkpoint, data, tmp_path):
    found = evaluate(data, exported["out"], device="cpu")  # by batches of one, as the file was made
    with session.silence():
        theirs = YOLO(checkpoint).val(
            data=str(data), split="test", imgsz=64, rect=False, device="cpu", plots=False, project=str(tmp_path)
        )
    assert 0.05 < found["map50_95"] < 0.95
    assert (found["map50"], found["map50_95"]) == pytest.approx((theirs.box.map50, theirs.box.map), abs=1e-3)
    assert (found["imgsz"], found["images"], found["per_class"].keys()) == (64, 3, {"red", "green"})


@pytest.mark.parametrize(
    ("format", "package", "refusal"),
    [("ncnn", "ncnn", "does not run .*its runtime crashed"), ("mnn", "MNN", "without class names")],
)
def test_others_say_what_they_are_and_are_scored_but_not_by_half(
    format, package, refusal, exported, checkpoint, data, tmp_path
):
    pytest.importorskip(package)
    found = export(checkpoint, format=format, data=data, out=tmp_path / f"a{SUFFIXES[format]}")
    assert found["checked"]["max_px"] < 0.05
    assert json.loads(read_metadata(Path(found["out"]))["kd"]) == found["metadata"]
    scores = evaluate(data, found["out"], device="cpu")
    assert scores["map50_95"] == pytest.approx(evaluate(data, exported["out"], device="cpu")["map50_95"], abs=0.005)
    assert 0 < scores["map50_95"] < 1
    weights = next(tmp_path.rglob("*.bin"), Path(found["out"]))
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(ModelError, match=f"got an export .*{refusal}"):
        evaluate(data, found["out"], device="cpu")


def mnn_file(text):
    """The start of what MNN writes: a table whose first field is a text."""
    flatbuffers = pytest.importorskip("flatbuffers")
    builder = flatbuffers.Builder()
    texts = [builder.CreateString(each) for each in (text, "other")]
    builder.StartObject(len(texts))
    for field, where in enumerate(texts):
        builder.PrependUOffsetTRelativeSlot(field, where, 0)
    builder.Finish(builder.EndObject())
    return bytes(builder.Output())


def test_an_mnn_file_is_read_without_running_it(tmp_path):
    file, own = tmp_path / "a.mnn", {"names": {"0": "red"}, "kd": "é"}
    whole = mnn_file(json.dumps(own))
    file.write_bytes(whole)
    assert read_metadata(file) == own
    for end in range(0, len(whole) - 30, 7):
        file.write_bytes(whole[:end])
        assert read_metadata(file) == {}
    rng = random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.randrange(40)] = rng.randrange(256)
        file.write_bytes(damaged)
        assert read_metadata(file) in ({}, own)
    for text in ("", "[]", "{", '{"names": {}}'):
        file.write_bytes(mnn_file(text))
        assert read_metadata(file) == {}


def test_it_is_scored_on_whole_frames(tmp_path):
    checkpoint = save_lively(tmp_path / "m.pt", names={0: "relevant", 1: "not_relevant"}, imgsz=192)
    file = export(checkpoint, format="torchscript", out=tmp_path / "m.torchscript")["out"]
    root = make_dataset(tmp_path, one_light, tiles=TileSpec(size_px=192, overlap=0), frames=1)
    whole, part = (run(root / "data.yaml", file, device="cpu") for run in (evaluate_frames, evaluate))
    assert whole["frames"] == 1
    assert whole["map50"] == pytest.approx(part["map50"])


def test_it_draws_what_the_checkpoint_draws(exported, checkpoint, data, tmp_path):
    images = sorted((data.parent / "images" / "test").iterdir())
    pictures = [cv2.imread(str(path)) for path in images]
    mine, theirs = (detect(file, pictures, device="cpu", quiet=True) for file in (exported["out"], checkpoint))
    assert mine.params is None
    for found, expected in zip(mine.detections, theirs.detections, strict=True):
        assert len(found) == len(expected) > 3
        for one, other in zip(found, expected, strict=True):
            assert (one.name, one.confidence) == (other.name, pytest.approx(other.confidence, abs=1e-3))
            assert one.box_xyxy == pytest.approx(other.box_xyxy, abs=0.01)
    found = predict(images, [exported["out"], checkpoint], tmp_path / "a.png", device="cpu", quiet=True)
    assert [row["params"] is None for row in found["models"]] == [True, False]


def test_other_classes_and_another_size_are_refused(exported, tmp_path):
    other = write_dataset(tmp_path, test=1)
    other.write_text(other.read_text().replace("red", "blue"))
    with pytest.raises(ModelError, match=r"classes: got 2 \(red, green\), expected those of .*: 2 \(blue, green\)"):
        evaluate(other, exported["out"], device="cpu")
    with pytest.raises(UsageError, match=r"--imgsz: got 96, expected 64, for which the file was made"):
        evaluate(other, exported["out"], imgsz=96, device="cpu")


def test_a_file_whose_checkpoint_has_changed_is_named(own, data, tmp_path):
    lines: list[str] = []
    evaluate(data, own, device="cpu", tell=lines.append)
    assert lines == []
    save_lively(own.parent / "weights" / "best.pt", seed=1)
    evaluate(data, own, device="cpu", tell=lines.append)
    image = next((data.parent / "images" / "test").iterdir())
    predict([image], [own], tmp_path / "a.png", device="cpu", tell=lines.append, quiet=True)
    assert len(lines) == 2
    assert lines[0] == lines[1]
    assert "best.onnx: got an export of what " in lines[0]
    (own.parent / "weights" / "best.pt").unlink()
    evaluate(data, own, device="cpu", tell=lines.append)
    assert len(lines) == 2


def test_an_export_of_ultralytics_itself_is_taken(own, data):
    rewrite(own, lambda found: found.pop("kd"))
    assert evaluate(data, own, device="cpu")["map50"] > 0


@pytest.fixture(scope="module")
def three(data):
    """The same data with a third class: rows of boxes, best score and its class are not those of a score per class."""
    file = data.with_name("three.yaml")
    file.write_text(data.read_text().replace("1: green", "1: green, 2: blue"))
    return file


def test_an_rtdetr_is_scored_and_draws_as_its_checkpoint(data, three, tmp_path):
    checkpoint = save_rtdetr(tmp_path / "m.pt", NAMES | {2: "blue"}, imgsz=64)
    data, images = three, data.parent / "images" / "test"
    file = export(checkpoint, format="torchscript", out=tmp_path / "m.torchscript")["out"]  # quicker than ONNX
    mine, theirs = (evaluate(data, model, device="cpu") for model in (file, checkpoint))
    assert mine["map50"] == pytest.approx(theirs["map50"], abs=1e-3)
    image = cv2.imread(str(next(images.iterdir())))
    mine, theirs = (detect(model, [image], device="cpu", quiet=True) for model in (file, checkpoint))
    assert [box.confidence for box in mine.detections[0]] == pytest.approx(
        [box.confidence for box in theirs.detections[0]], abs=1e-3
    )
    assert mine.detections[0]


def test_an_export_with_nms_inside_is_scored_with_a_line(three, tmp_path):
    lines: list[str] = []
    checkpoint = save_lively(tmp_path / "m.pt", names=NAMES | {2: "blue"})
    with session.silence(), warnings.catch_warnings(action="ignore"):
        file = YOLO(checkpoint).export(format="torchscript", nms=True, imgsz=64)
    evaluate(three, file, device="cpu", tell=lines.append)
    assert [line.partition(": ")[2] for line in lines] == [
        "got an export with NMS inside, which drops scores below a threshold: its mAP is lower for that"
    ]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.999])
def test_a_half_written_file_is_refused(own, data, share):
    content = own.read_bytes()
    own.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(
        ModelError, match=r"best\.onnx: got an export .*, expected a whole file that .*: export it again"
    ):
        evaluate(data, own, device="cpu")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda found: found.clear(), "got an export without class names in its metadata"),
        (lambda found: found.update(names="{0: 'red'}"), r"does not run \(TypeError: outputs of \[1, 6, 84\] for 1"),
        (lambda found: found.update(names="os.abort()"), "does not run"),
        (lambda found: found.update(imgsz="[64, 65]"), "does not run"),
        (lambda found: found.update(imgsz="[640000, 640000]"), "image sides of"),
        (lambda found: found.update(channels="4"), "does not run"),
        (lambda found: found.update(task="segment"), r"does not run \(TypeError: a model for segment\)"),
        (lambda found: found.update(kd="{"), "metadata: kd: "),
        (lambda found: found.update(kd='{"checkpoint": "/dev/zero"}'), "metadata: kd: "),
    ],
)
def test_metadata_that_does_not_fit_is_refused(own, data, change, reason):
    rewrite(own, change)
    with pytest.raises(ModelError, match=rf"best\.onnx: .*{reason}.*export it again"):
        evaluate(data, own, device="cpu")


def test_a_text_is_no_export(tmp_path, data):
    (tmp_path / "a.onnx").write_text("weights")
    (tmp_path / "a_openvino_model").mkdir()
    for name in ("a.onnx", "a_openvino_model"):
        with pytest.raises(ModelError, match=f"{name}: got an export without class names"):
            evaluate(data, tmp_path / name, device="cpu")
    with pytest.raises(ModelError, match=r"nowhere\.onnx: no such file or folder"):
        evaluate(data, "nowhere.onnx", device="cpu")
