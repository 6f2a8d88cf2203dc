"""What `kd` makes of everything that can be given as a model: refused in one line, or trained as what it is."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra kd")

import torch
from torch import nn
from torch.nn.modules import module as registry
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import ROOT

import cli
from kd.commands import app
from kd.distillation.teacher import load_detector
from kd.errors import KdError, ModelError, UsageError
from kd.scoring.evaluate import evaluate
from kd.scoring.predict import predict
from kd.training import checkpoints
from kd.training.bench import Pair
from kd.training.run import train
from kd.ultra import model_files, models
from kd.ultra.exported import is_exported
from tests.kd_fixtures import tiny_config, write_dataset
from tests.kd_models import save_detector

NAMES = {0: "red", 1: "green"}
YOLOV8 = (ROOT / "cfg" / "models" / "v8" / "yolov8.yaml").read_text(encoding="utf-8")
CONV = "[-1, 1, Conv, [64, 3, 2]]"  # its first layer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), test=2)


@pytest.fixture
def line(capfd):
    """The one line with which `kd` refuses these arguments, with exit code 1."""

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.run("kd", app, KdError, UsageError, list(map(str, arguments)))
        out, err = capfd.readouterr()
        assert (end.value.code, out) == (1, ""), err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert "a defect of kd" not in err
        return err

    return run


def changed(path, change, architecture="yolov8n"):
    """A checkpoint whose module was changed after it was built."""
    save_detector(path, NAMES, architecture=architecture)
    model = models.load_model(str(path)).model
    change(model)
    torch.save({"model": model, "epoch": -1, "train_args": {"task": "detect", "imgsz": 96}}, path)
    return str(path)


def prune(model):
    """Keep 4 of the first layer's 16 channels, as structured pruning does."""
    first, second = model.model[0], model.model[1]
    for layer, names in ((first.conv, ("weight",)), (first.bn, ("weight", "bias"))):
        for name in names:
            setattr(layer, name, nn.Parameter(getattr(layer, name).detach()[:4]))
    first.bn.running_mean, first.bn.running_var = first.bn.running_mean[:4], first.bn.running_var[:4]
    first.conv.out_channels = first.bn.num_features = 4
    second.conv.weight = nn.Parameter(second.conv.weight.detach()[:, :4])
    second.conv.in_channels = 4


def fold(model):
    model.fuse(verbose=False)


def swap_activations(model):
    for layer in model.modules():
        if isinstance(getattr(layer, "act", None), nn.SiLU):
            layer.act = nn.ReLU()


CHANGED = [
    (prune, r"model\.0\.bn\.bias is \[4\], not \[16\]"),
    (fold, r"model\.0\.bn\.bias is missing, not \[16\]"),
    (swap_activations, r"model\.0\.act is ReLU, not SiLU"),
]


# --- a module that is not what its yaml makes --------------------------------------------------------------


@pytest.mark.parametrize(("change", "difference"), CHANGED)
def test_a_changed_module_is_no_student_at_any_door(data, tmp_path, line, change, difference):
    path = changed(tmp_path / "changed.pt", change)
    teacher = save_detector(tmp_path / "teacher.pt", NAMES)
    refusal = rf"student: got a module of [\d,]+ parameters .*{difference}.*Ultralytics trains what the yaml makes"
    run = ("train", "--data", data, "--student", path, "--imgsz", 64, "--device", "cpu", "--out", tmp_path / "run")
    for more in ((), ("--dry-run",), ("--teacher", teacher), ("--teacher", teacher, "--method", "built-in")):
        assert re.search(refusal, line(*run, *more))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ModelError, match=refusal):
        Pair.draw(tmp_path / "bench", path, teacher, imgsz=64, batch=2, device="cpu")


def test_a_changed_module_is_run_as_it_is(data, tmp_path):
    path = changed(tmp_path / "changed.pt", prune)
    count = sum(p.numel() for p in models.load_model(path).model.parameters())
    assert count < sum(p.numel() for p in models.load_model("yolov8n").model.parameters()) - 4000
    assert evaluate(data, path, imgsz=96, device="cpu", quiet=True)["images"] == 2
    found = predict([data.parent / "images/val/000.png"], [path], tmp_path / "p.png", device="cpu", quiet=True)
    assert found["models"][0]["params"] == count
    assert sum(p.numel() for p in load_detector(path).model.parameters()) == count


@pytest.mark.parametrize(
    "architecture", ["yolov3-tiny", "yolov5n", "yolov6n", "yolov9t", "yolov10n", "yolo11n", "yolo26n"]
)
def test_what_ultralytics_saved_is_a_student(tmp_path, architecture):
    path = save_detector(tmp_path / "m.pt", NAMES, architecture=architecture)
    models.require_student(models.load_model(path), path)


def test_the_number_of_classes_is_no_difference(tmp_path):
    path = changed(tmp_path / "m.pt", lambda model: model.yaml.update(nc=80))
    models.require_student(models.load_model(path), path)


@pytest.mark.parametrize("architecture", ["yolov8n", "yolo26n"])
def test_a_tuned_model_keeps_the_class_branches_of_80_classes_and_is_a_student(tmp_path, architecture):
    wide, tuned = (DetectionModel(f"{architecture}.yaml", nc=nc, verbose=False) for nc in (80, 2))
    narrow = sum(p.numel() for p in tuned.parameters())
    tuned.load(wide, verbose=False)
    assert sum(p.numel() for p in tuned.parameters()) > narrow  # or Ultralytics does so no longer
    tuned.names = NAMES
    path = tmp_path / "m.pt"
    torch.save({"model": tuned, "epoch": -1, "train_args": {"task": "detect", "imgsz": 64}}, path)
    models.require_student(models.load_model(str(path)), str(path))


def test_measuring_an_architecture_leaves_random_states_and_hooks_alone():
    yaml = models.load_model("yolov8n").model.yaml
    before = torch.get_rng_state()
    model = model_files.meta_model(yaml, "x")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert sum(p.numel() for p in model.parameters()) == sum(
        p.numel() for p in DetectionModel("yolov8n.yaml", verbose=False).parameters()
    )
    torch.set_rng_state(before)
    model_files.meta_model(yaml, "x")
    assert torch.equal(before, torch.get_rng_state())
    assert not registry._global_forward_hooks
    assert not registry._global_parameter_registration_hooks


# --- checkpoints that hold something else -----------------------------------------------------------------


@pytest.fixture(scope="module")
def cut_off(data, tmp_path_factory):
    """The last.pt of a built-in run that was killed before its end: Ultralytics' wrapper of student and teacher."""
    folder = tmp_path_factory.mktemp("killed")
    teacher = save_detector(folder / "teacher.pt", NAMES)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "strip_optimizer", stop)
        config = tiny_config(data, folder / "run", teachers=(teacher,), methods=(("built-in", 6.0),))
        with pytest.raises(KeyboardInterrupt):
            train(config, allow_weak_teacher=True, quiet=True)
    return folder / "run" / "weights" / "last.pt"


@pytest.mark.train
def test_the_wrapper_of_a_killed_built_in_run_is_named_at_every_door(data, tmp_path, line, cut_off):
    image, out = data.parent / "images/val/000.png", tmp_path / "out"
    small = ("--data", data, "--imgsz", 64, "--device", "cpu", "--out", out)
    for arguments in (
        ("train", *small, "--student", cut_off),
        ("train", *small, "--student", "yolov8n", "--teacher", cut_off),
        ("train", *small, "--student", "yolov8n", "--set", f"pretrained={cut_off}"),
        ("evaluate", "--data", data, "--model", cut_off),
        ("predict", image, "--model", cut_off, "--out", tmp_path / "p.png"),
        ("bench", "--student", cut_off, "--teacher", "yolov8n", "--imgsz", 64),
        ("bench", "--student", "yolov8n", "--teacher", cut_off, "--imgsz", 64),
    ):
        refusal = line(*arguments)
        assert refusal.startswith(
            f"error: {cut_off}: got a student and teacher in one, from a built-in run that was cut "
        )
        assert "start it anew with --overwrite" in refusal
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"model": nn.Linear(2, 2)}, "got a Linear, expected a detector"),
        ({"model": nn.Sequential(nn.Linear(2, 2))}, "got a Sequential, expected a detector"),
        ({"model": torch.zeros(2)}, "got no usable model"),
        ({"model": {"model.0.conv.weight": torch.zeros(2)}}, "got no usable model"),
        ({"state_dict": {}}, "got no usable model"),
        ([1, 2], "got no usable model"),
    ],
)
def test_a_checkpoint_of_something_else_says_of_what(tmp_path, content, expected):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ModelError, match=expected):
        models.load_model(str(tmp_path / "x.pt"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda m: setattr(m.model[0].conv, "weight", nn.Parameter(torch.zeros(4, 3, 3, 3))),
            "a model that does not run",
        ),
        (lambda m: setattr(m, "yaml", {}), "whose yaml makes no model .KeyError"),
        (lambda m: setattr(m, "yaml", "no mapping"), "a model that does not run"),
        (lambda m: m.yaml.update(nc=10**9, head=[["x"]]), "the number 1e[+]09, expected at most 100,000"),
        (lambda m: m.yaml.update(scales={"n": [0.33, 9.9, 100_000]}), "more than 500,000,000 parameters"),
    ],
)
def test_a_checkpoint_that_contradicts_itself_is_no_student(tmp_path, change, expected):
    save_detector(tmp_path / "x.pt", NAMES, architecture="yolov8n")
    model = torch.load(tmp_path / "x.pt", weights_only=False)["model"]
    change(model)
    torch.save({"model": model, "epoch": -1, "train_args": {"task": "detect"}}, tmp_path / "x.pt")
    with pytest.raises(ModelError, match=expected) as refusal:
        models.require_student(models.load_model(str(tmp_path / "x.pt")), str(tmp_path / "x.pt"))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("names", [{0: "red"}, {}, None, "red", {0: "red", 5: "green"}, {"x": "red"}])
def test_classes_without_a_name_are_neither_scored_nor_drawn(data, tmp_path, line, names):
    path = changed(tmp_path / "x.pt", lambda m: setattr(m, "names", names))
    image = data.parent / "images/val/000.png"
    one = Path(shutil.copytree(data.parent, tmp_path / "one")) / "data.yaml"
    one.write_text("train: images/train\nval: images/val\ntest: images/test\nnames: [red]\n")
    for label in one.parent.rglob("labels/*/*.txt"):
        label.write_text("".join(f"0{row[1:]}\n" for row in label.read_text().splitlines()))
    for arguments in (
        ("evaluate", "--data", one, "--model", path, "--device", "cpu"),
        ("predict", image, "--model", path, "--out", tmp_path / "p.png", "--device", "cpu"),
    ):
        assert re.search("class names", line(*arguments))


# --- what is no model -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((f"best{ending}", f"got an export ({form})") for ending, form in model_files.EXPORTS.items()),
        ("BEST.ONNX", "got an export (ONNX)"),
        *((f"best{ending}", "got weights without their model") for ending in model_files.WEIGHTS_ALONE),
        ("notes.txt", "got a file that is neither .pt nor .yaml"),
        ("best", "got a file that is neither .pt nor .yaml"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, line, data, name, expected):
    (tmp_path / name).write_bytes(b"x")
    for arguments in (
        ("train", "--data", data, "--student", tmp_path / name, "--out", tmp_path / "run"),
        ("evaluate", "--data", data, "--model", tmp_path / name),
    ):
        refusal = line(*arguments)
        if arguments[0] == "evaluate" and is_exported(name):  # which takes sound ones
            assert refusal.startswith(f"error: {tmp_path / name}: got an export without class names")
            continue
        assert refusal.startswith(
            f"error: {tmp_path / name}: {expected}, expected a .pt of PyTorch, a model .yaml, or a "
        )
    with pytest.raises(ModelError, match=re.escape(expected)):
        load_detector(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "form"), [(f"best{end}", form) for end, form in model_files.EXPORTS.items() if end[0] == "_"]
)
def test_a_folder_of_an_export_is_named(tmp_path, name, form):
    (tmp_path / name).mkdir()
    with pytest.raises(ModelError, match=re.escape(f"got an export ({form})")):
        models.load_model(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("w.onnx", "got an export (ONNX)"), ("w.pth", "got weights without"), ("w.yaml", "got a model yaml"),
     ("w.txt", "got a file that is neither"), ("w", "got a file that is neither")],
)  # fmt: skip
def test_weights_to_start_from_are_a_checkpoint(data, tmp_path, line, name, expected):
    (tmp_path / name).write_text(YOLOV8)
    options = ("--student", "yolov8n", "--set", f"pretrained={tmp_path / name}", "--out", tmp_path / "run")
    assert line("train", "--data", data, *options).startswith(f"error: {tmp_path / name}: {expected}")
    assert not (tmp_path / "run").exists()


def test_a_folder_is_named_and_a_runs_weights_are_offered(tmp_path):
    for name in ("run", "x.pt", "x.yaml"):
        (tmp_path / name).mkdir()
        with pytest.raises(ModelError, match=r": got a folder, expected .*: give the \.pt inside"):
            models.load_model(str(tmp_path / name))
    best = tmp_path / "run" / "weights" / "best.pt"
    best.parent.mkdir()
    best.write_bytes(b"x")
    with pytest.raises(ModelError, match=re.escape(f"give {best}")):
        models.load_model(str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("nowhere/best.pt", "no such file"),
        ("nowhere/yolov5n.yaml", "no such file"),  # a mistyped path is no name of the package
        ("nowhere/yolov5n", "no such file"),
        ("nowhere.onnx", "got an export"),
        ("https://example.com/yolov8n", "got an address"),
        ("ul://someone/some/model", "got an address"),
        ("", "got an empty name"),
        ("a" * 300, "neither a file nor a model name"),
        ("a" * 300 + ".pt", "no such file"),
        ("x\0.pt", "no such file"),
        ("x\0", "neither a file nor a model name"),
    ],
)
def test_what_is_nowhere_is_one_line(tmp_path, monkeypatch, spec, expected):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=expected) as refusal:
        models.load_model(spec)
    assert "\n" not in str(refusal.value)


# --- model yamls --------------------------------------------------------------------------------------------


def with_first_layer(row):
    return YOLOV8.replace(CONV, row, 1)


ALIASES = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (ALIASES + YOLOV8, "aliases for more than"),
        ("a: &a [*a]\n" + YOLOV8, "alias"),
        (YOLOV8 + "\nnc: 3\n", "'nc' as a key"),
        ("[" * 3000, "more than 20 lists in each other|nesting depth"),
        ("{a: " * 3000, "more than 20 lists in each other|nesting depth"),
        (YOLOV8 + "\0", "NUL"),
        (YOLOV8.encode() + b"\xff", "UTF-8"),
        (YOLOV8 + "\nx: !!python/object/apply:os.system [true]\n", "tag"),
        (YOLOV8 + "\nx: .nan\n", "nan"),
        ("", "no mapping"),
        ("[1]", "no mapping"),
        ("nc: 2", "no usable model"),
        (YOLOV8.replace("nc: 80", "nc: 10000000"), "1e[+]07, expected at most 100,000"),
        (YOLOV8.replace("[0.33, 0.25, 1024]", "[0.33, 1e300, 1024]"), "1e[+]300 times the depth or width"),
        (YOLOV8.replace("[0.33, 0.25, 1024]", "[-1, 0.25, 1024]"), "-1 times the depth or width"),
        (YOLOV8.replace("[0.33, 0.25, 1024]", "[0.33, 9, 100000]"), "more than 500,000,000 parameters"),
        (with_first_layer("[-1, 1000000000, nn.Identity, []]"), "1e[+]09, expected at most"),
        (with_first_layer("[-1, 99999, Conv, [64, 3, 2]]"), "more than 2,000 modules"),
        (with_first_layer("[-1, 1, Conv, ['1000000000', 3, 2]]"), "1e[+]09, expected at most"),
        (with_first_layer("[-1, 1, Conv, ['" + "(" * 5000 + "', 3, 2]]"), "a word of 5000 characters"),
        (with_first_layer("[-1, 1, TorchVision, [768, convnext_tiny, DEFAULT]]"), "got the layer TorchVision"),
        (YOLOV8.replace("[None, 2, ", "[None, 2000, ", 1), "a layer that makes 65,536,000,000 values"),
        (YOLOV8 + "\nactivation: __import__('os').system('touch ran')\n", "no usable model"),
        (with_first_layer("[-1, 1, os.system, [touch ran]]"), "no usable model"),
    ],
)
def test_a_hostile_model_yaml_is_refused_in_one_line(tmp_path, monkeypatch, line, data, content, expected):
    monkeypatch.setattr(model_files, "MAX_MODULES", 2_000)  # 50,000 take 10 s to count
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    refusal = line("train", "--data", data, "--student", "m.yaml", "--out", tmp_path / "run")
    assert refusal.startswith("error: m.yaml: ")
    assert re.search(expected, refusal), refusal
    assert {path.name for path in tmp_path.iterdir()} == {"m.yaml"}


def test_a_hostile_model_yaml_is_refused_at_every_door(tmp_path, line, data):
    bomb, image = tmp_path / "m.yaml", data.parent / "images/val/000.png"
    bomb.write_text(ALIASES + YOLOV8)
    small = ("--data", data, "--imgsz", 64, "--device", "cpu", "--out", tmp_path / "run")
    for arguments in (
        ("train", *small, "--student", "yolov8n", "--teacher", bomb),
        ("evaluate", "--data", data, "--model", bomb),
        ("predict", image, "--model", bomb, "--out", tmp_path / "p.png"),
        ("bench", "--student", bomb, "--teacher", "yolov8n", "--imgsz", 64),
        ("bench", "--student", "yolov8n", "--teacher", bomb, "--imgsz", 64),
    ):
        assert line(*arguments).startswith(f"error: {bomb}: line ")
    assert {path.name for path in tmp_path.iterdir()} == {"m.yaml"}


def test_a_yaml_that_ultralytics_reads_under_another_name_is_refused(tmp_path):
    (tmp_path / "yolov8n6.yaml").write_text(YOLOV8)
    with pytest.raises(ModelError, match="reads as its own -p6 model"):
        models.load_model(str(tmp_path / "yolov8n6.yaml"))


@pytest.mark.parametrize("name", ["own.yaml", "own.yml", "yolov8s.yaml"])
def test_a_model_yaml_is_built_at_its_scale(tmp_path, name):
    (tmp_path / name).write_text(YOLOV8)
    expected = "yolov8s" if name == "yolov8s.yaml" else "yolov8n"
    counts = [
        sum(p.numel() for p in models.load_model(spec).model.parameters()) for spec in (str(tmp_path / name), expected)
    ]
    assert counts[0] == counts[1]


def test_model_yamls_of_the_package_are_within_the_bounds(tmp_path):
    for file in sorted((ROOT / "cfg" / "models").rglob("*.yaml"))[::3]:  # of 66, which take 10 s
        if "TorchVision" not in file.read_text(encoding="utf-8"):
            model_files.require_model_yaml(str(file))
