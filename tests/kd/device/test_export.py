"""An exported file gives what its checkpoint gives, says what it is, and appears whole or not at all."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")
onnx = pytest.importorskip("onnx", reason="needs the extra device")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra device")
pytest.importorskip("onnxslim", reason="needs the extra device")

import cv2
import jsonschema
from ultralytics import YOLO

import schemas
from dtld_tools.types import TileSpec
from kd.device import export as module
from kd.device import writing
from kd.device.export import Difference, export
from kd.device.writing import FORMATS
from kd.errors import DataError, KdError, ModelError, UsageError
from kd.scoring.evaluate import evaluate
from kd.scoring.full_frame import evaluate_frames
from kd.scoring.predict import detect, predict
from kd.ultra import classic, models, session
from kd.ultra.data import label_file
from kd.ultra.exported import SUFFIXES, load_exported, read_metadata
from tests.kd.scoring.test_full_frame import make_dataset, one_light
from tests.kd_fixtures import write_dataset
from tests.kd_models import save_detector, save_rtdetr

NAMES = {0: "red", 1: "green"}


def squares(images):
    """Images [images, 3, 64, 64] of coloured squares."""
    return torch.nn.functional.interpolate(torch.rand(images, 3, 8, 8), 64)


def save_lively(path, seed=0, names=NAMES, imgsz=64):
    """A small untrained detector whose activations do not fade: its batch norms have seen coloured squares."""
    save_detector(path, names, imgsz=imgsz, seed=seed, architecture=str(models.SHIPPED / "yolov8p"))
    checkpoint = torch.load(path, weights_only=False)
    network = checkpoint["model"].train()
    norms = [layer for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # a plain average
    network(squares(8))
    for norm in norms:
        norm.momentum = 0.03
    for boxes, classes in zip(network.model[-1].cv2, network.model[-1].cv3, strict=True):
        boxes[-1].bias.data = torch.linspace(4, -4, 16).repeat(4)  # small ones
        classes[-1].weight.data /= 4  # or all scores were 0 or 1
    torch.save(checkpoint, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset, a run's checkpoint, and what `kd export` made of it."""
    folder = tmp_path_factory.mktemp("export")
    data = write_dataset(folder / "data", train=10, test=3, side=64)
    (data.parent / "report.json").write_text(json.dumps({"configuration": {"tiles": {
        "layout": "grid", "size_px": 640, "overlap": 0.2, "min_visible": 0.4, "min_side_px": 2, "mask_partial": False
    }}}))  # fmt: skip
    save_lively(folder / "run" / "weights" / "best.pt")
    return folder


@pytest.fixture(scope="module")
def checkpoint(folder):
    return folder / "run" / "weights" / "best.pt"


@pytest.fixture(scope="module")
def data(folder, checkpoint):
    """It, with some of the model's own detections as truth, so that scores are neither 0 nor 1."""
    yolo = models.load_model(str(checkpoint))
    for image in sorted((folder / "data" / "images" / "test").iterdir()):
        boxes = yolo.predict(image, imgsz=64, conf=0.1, save=False, verbose=False)[0].boxes
        rows = zip(boxes.cls.tolist()[::3], boxes.xywhn.tolist()[::3], strict=True)
        lines = dict.fromkeys(f"{int(label)} " + " ".join(f"{value:.6f}" for value in box) for label, box in rows)
        label_file(image).write_text("\n".join(lines))
    return folder / "data" / "data.yaml"


@pytest.fixture(scope="module")
def exported(folder, checkpoint, data):
    return export(checkpoint, data=data, out=folder / "run" / "best.onnx")


@pytest.fixture
def own(exported, checkpoint, tmp_path):
    """Copies to damage, laid out as the originals: the path of the file."""
    shutil.copytree(Path(exported["out"]).parent, tmp_path / "run")
    return tmp_path / "run" / "best.onnx"


def outputs(file, image):
    """What onnxruntime gives, without us or Ultralytics."""
    (found,) = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(
        None, {"images": image.numpy()}
    )
    return torch.from_numpy(found)


def props(file):
    return {entry.key: entry.value for entry in onnx.load(file).metadata_props}


def rewrite(file, change):
    """Change an ONNX file's metadata."""
    model = onnx.load(file)
    found = {entry.key: entry.value for entry in model.metadata_props}
    change(found)
    del model.metadata_props[:]
    for key, value in found.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, file)


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


# ---------------------------------------------------------------- what scores and draws checkpoints takes it, too


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
