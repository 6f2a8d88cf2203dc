"""`kd` as a user meets it: help, exit codes, one error line each, JSON and nothing else on stdout."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra kd")

import jsonschema
import typer

import cli
import kd.ultra  # here, for its log keeps the stream that it finds, and a test's is soon closed
import schemas
from kd.commands import app
from kd.errors import KdError, UsageError
from tests.kd_device import canned
from tests.kd_fixtures import write_dataset
from tests.kd_models import save_detector

ROOT = Path(__file__).parents[2]
SMALL = ("--imgsz", 64, "--batch", 2, "--epochs", 1, "--device", "cpu", "--set", "mosaic=0")
COMMANDS = typer.main.get_command(app).commands


@pytest.fixture
def kd(capfd, monkeypatch, tmp_path):
    """Run `kd` in this process and an empty folder; the answer is (exit code, stdout, stderr)."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.run("kd", app, KdError, UsageError, [str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def fails(kd):
    """Run `kd`, which must fail with one error line and this exit code; the answer is that line."""

    def run(*arguments, code=1):
        exit_code, out, err = kd(*arguments)
        assert (exit_code, out) == (code, ""), err
        assert re.fullmatch(r"error: .+\n", err), err
        return err

    return run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), train=2, val=2, test=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_detector(tmp_path_factory.mktemp("model") / "tiny.pt", {0: "red", 1: "green"})


def left_behind():
    return sorted(path.name for path in Path.cwd().iterdir())


# --- help ------------------------------------------------------------------------------------------------


def test_the_commands_are_the_contracts(kd):
    code, out, _ = kd("--help")
    assert code == 0
    listed = re.findall(r"^  ([a-z]+)  +\S", out.partition("Commands:")[2], re.MULTILINE)
    assert set(listed) >= {"train", "evaluate", "predict", "report"}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_of_every_command_ends_in_an_example_that_parses(kd, command):
    code, out, err = kd(command, "--help")
    assert (code, err) == (0, "")
    example = re.search(r"Example: (kd .+?)\s*$", " ".join(out.split()))
    assert example, out
    words = shlex.split(example[1])
    assert words[:2] == ["kd", command]
    # Parsing alone: every option exists and every value is of its type.
    COMMANDS[command].make_context(command, words[2:])


def test_every_flag_of_the_contract_is_there_with_its_default():
    options = {name: option for option in COMMANDS["train"].params for name in option.opts}
    defaults = {"--epochs": 30, "--imgsz": 640, "--batch": "16", "--seed": 0}  # auto is a batch, too
    assert {name: options[name].default for name in defaults} == defaults
    flags = {
        "--data", "--student", "--teacher", "--method", "--weight", "--device", "--freeze", "--out", "--resume",
        "--overwrite", "--dry-run", "--combine", "--teacher-imgsz", "--allow-weak-teacher", "--set", "--priors",
    }  # fmt: skip
    assert options.keys() >= flags
    assert options["--teacher"].multiple
    assert options["--set"].multiple
    assert {name for option in COMMANDS["evaluate"].params for name in option.opts} >= {
        "--data", "--split", "--full-frame", "--json",
    }  # fmt: skip


def test_help_loads_neither_torch_nor_anything_slow():
    code = "import sys, kd.commands; print(*{name.split('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = set(run.stdout.split())
    assert "typer" in loaded  # the probe works
    assert not loaded & {"torch", "torchvision", "ultralytics", "cv2", "matplotlib", "numpy", "dtld_tools"}


# --- what is printed -------------------------------------------------------------------------------------


def test_device_bench_prints_one_json_object_or_a_table_and_writes_a_folder(kd, fails, data, model, monkeypatch):
    monkeypatch.setattr("kd.device.bench._measure", canned)
    monkeypatch.setattr("kd.device.bench._busy", lambda: None)
    options = ("device-bench", model, "--data", data, "--threads", 1, "--device", "cpu")
    code, out, err = kd(*options, "--json", "--out", "bench")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads(Path("bench/bench.json").read_text())
    assert "--out: got bench, which is there already" in fails(*options, "--out", "bench", code=2)
    assert re.search(
        r"^  tiny +pt +float32 +96 +\d+\.\d +20\.0 +60\.0 +22\.0 +1\.00 +800 +50 ", kd(*options)[1], re.MULTILINE
    )
    assert "MODEL" in kd("device-bench", "--data", data)[2]
    assert left_behind() == ["bench"]


def test_evaluate_prints_one_json_object_and_leaves_nothing(kd, data, model):
    code, out, err = kd("evaluate", "--data", data, "--model", model, "--device", "cpu", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found.keys() >= {"map50", "map50_95", "precision", "recall", "per_class"}
    assert found["per_class"].keys() == {"red", "green"}
    assert (found["split"], found["images"]) == ("test", 2)
    assert left_behind() == []


def test_evaluate_prints_a_row_per_class_for_people(kd, data, model):
    code, out, _ = kd("evaluate", "--data", data, "--model", model, "--device", "cpu", "--split", "val")
    assert code == 0
    title, head, *table = out.splitlines()
    assert title == f"{model}, val: 2 images, 4 objects"
    assert head.split() == ["mAP50", "mAP50-95", "precision", "recall"]
    assert [line.split()[0] for line in table] == ["all", "red", "green"]
    ends = [match.end() for match in re.finditer(r"\S+", head)]
    assert [match.end() for match in re.finditer(r"\S+", table[0])][1:] == ends  # aligned
    assert all(re.fullmatch(r"[01]\.\d{3}|-", cell) for line in table for cell in line.split()[1:])


def test_predict_writes_the_picture_and_says_what_it_shows(kd, data, model):
    images = data.parent / "images" / "test"
    code, out, _ = kd(
        "predict", images, "--model", model, "--model", model, "--out", "a1.png", "--device", "cpu", "--json"
    )
    found = json.loads(out)
    assert code == 0
    assert [row.keys() for row in found["models"]] == [{"name", "params", "mean_ms", "median_ms", "detections"}] * 2
    assert (found["images"], found["out"]) == (2, "a1.png")
    assert left_behind() == ["a1.png"]


def test_predict_tiled_finds_boxes_and_says_how_fast(kd, data, model):
    command = ("predict", data.parent / "images" / "test", "--model", model, "--tiled", "--conf", 1, "--device", "cpu")
    code, out, err = kd(*command, "--sparse", "--save-txt", "t", "--json")
    assert code == 0
    assert (err.count("\n"), "tiles of 640 px are seen at 96 px" in err) == (1, True)
    found = json.loads(out)
    assert (found["frames"], found["tiles"], found["detections"]) == (2, 2, 0)
    assert (found["save_txt"], found["coco"], found["out"]) == ("t", None, None)
    code, out, err = kd(*command, "--tile-size", 96, "--coco", "c.json")
    assert (code, err) == (0, "")
    assert re.search(r"tiny.pt: 0 detections in 2 frames, \d+\.\d+ frames/s on .+\n2 of 2 tiles looked at", out)
    assert left_behind() == ["c.images.json", "c.json", "t"]


@pytest.mark.train
def test_train_then_report(kd, data):
    options = SMALL
    code, out, err = kd("train", "--data", data, "--student", "yolov5n", "--out", "runs/plain", *options)
    assert (code, err) == (0, "")
    for line in (r"val, last epoch: 2 images, 4 objects", r"test, last epoch: 2 images", r"runs/plain: 1 epoch in"):
        assert re.search(line, out), out
    weights = re.search(r"weights: (\S+), (\S+)", out)
    assert all(Path(path).is_file() for path in weights.groups())
    assert (Path("runs/plain/README.md")).read_text().count("yolov5n, trained without a teacher") == 1
    code, out, _ = kd("report", "runs", "--out", "runs/report.md")
    line = "runs/report.md: 1 run, 0 pairs of a distilled and a plain run; the same as runs/report.html\n"
    assert (code, out) == (0, line)
    code, out, _ = kd("report", "runs", "--out", "runs/report.md", "--json")
    written = {"out": "runs/report.md", "html": "runs/report.html"}
    assert json.loads(out) == {"runs": 1, "pairs": 0, "unfinished": 0, **written}
    assert left_behind() == ["runs"]


def test_train_takes_priors_from_the_answer_of_dtld_inspect(kd, data, monkeypatch):
    configs = []
    monkeypatch.setattr("kd.training.run.train", lambda config, **_: configs.append(config) or {})
    Path("a.json").write_text('{"frames": 1, "anchors": {"16": [[9, 30.5]], "8": [[4, 9], [5, 7]]}, "anchor_fit": {}}')
    for more in ((), ("--priors", "a.json")):
        assert kd("train", "--data", data, "--student", "yolov5n", *more, "--json")[:2] == (0, "{}\n")
    assert [config.fgfi.priors for config in configs] == [
        None,
        ((8, ((4.0, 9.0), (5.0, 7.0))), (16, ((9.0, 30.5),))),
    ]


def test_train_takes_several_methods_with_their_weights(kd, fails, data, monkeypatch):
    configs = []
    monkeypatch.setattr("kd.training.run.train", lambda config, **_: configs.append(config) or {})
    train = ("train", "--data", data, "--student", "yolov5n", "--teacher", "t.pt", "--json")
    assert kd(*train, "--method", "cwd=1", "--method", "logits=0.5", "--method", "ld")[:2] == (0, "{}\n")
    assert configs[0].methods == (("cwd", 1.0), ("logits", 0.5), ("ld", 0.25))
    assert "--weight: got 2.0" in fails(*train, "--method", "cwd", "--method", "pkd", "--weight", 2, code=2)


def test_train_takes_balance_schedules_and_unlabelled_images(kd, fails, data, monkeypatch):
    configs = []
    monkeypatch.setattr("kd.training.run.train", lambda config, **_: configs.append(config) or {})
    train = ("train", "--data", data, "--student", "yolov5n", "--teacher", "t.pt", "--json")
    course = ("--balance", 0.1, "--schedule", "warmup", "--schedule", "no-closing", "--unlabeled", "more")
    assert kd(*train, "--method", "cwd", *course)[:2] == (0, "{}\n")
    assert (configs[0].balance, configs[0].schedules, configs[0].unlabeled) == (0.1, ("warmup", "no-closing"), "more")
    assert "--balance: got it with cwd=2" in fails(*train, "--method", "cwd=2", "--balance", 0.1, code=2)
    assert "--unlabeled: got it with fgfi alone" in fails(*train, "--unlabeled", "more", code=2)


@pytest.mark.train
def test_the_weights_that_were_measured_are_printed(kd, data, model):
    options = SMALL
    teach = ("--teacher", model, "--allow-weak-teacher", "--method", "cwd", "--method", "pkd", "--balance", 0.1)
    code, out, err = kd("train", "--data", data, "--student", "yolov5n", *teach, "--out", "run", *options)
    assert (code, err) == (0, "")
    printed = re.search(r"^balanced weights: cwd (\S+), pkd (\S+)$", out, re.MULTILINE)
    weights = json.loads(Path("run/run.json").read_text())["kd"]["balanced_weights"]
    assert [float(text) for text in printed.groups()] == pytest.approx([weights["cwd"], weights["pkd"]], rel=1e-3)


def test_train_takes_several_teachers_with_their_weights(kd, data, monkeypatch):
    configs = []
    monkeypatch.setattr("kd.training.run.train", lambda config, **_: configs.append(config) or {})
    train = ("train", "--data", data, "--student", "yolov5n", "--json")
    assert kd(*train, "--teacher", "a.pt", "--teacher", "b.pt=3", "--teacher-imgsz", 960)[:2] == (0, "{}\n")
    assert kd(*train, "--teacher", "a.pt", "--teacher", "b.pt", "--combine", "best")[:2] == (0, "{}\n")
    weighted, best = configs
    assert (weighted.teachers, weighted.shares, weighted.teacher_imgsz) == (("a.pt", "b.pt"), (0.25, 0.75), 960)
    assert (weighted.chooses, best.chooses) == (False, True)


@pytest.mark.train
def test_a_run_with_priors_records_them(kd, data):
    Path("a.json").write_text('{"anchors": {"8": [[12, 20], [30, 25]], "16": [[30, 40]]}}')
    options = ("--imgsz", 64, "--batch", 2, "--epochs", 1, "--device", "cpu", "--set", "mosaic=0", "--json")
    teach = ("--teacher", "yolov5n", "--allow-weak-teacher", "--priors", "a.json")
    code, out, err = kd("train", "--data", data, "--student", "yolov5n", *teach, "--out", "run", *options)
    assert (code, err) == (0, "")
    answer = json.loads(out)
    jsonschema.validate(answer, schemas.load("run"))
    assert answer["config"]["fgfi"]["priors"] == {"8": [[12.0, 20.0], [30.0, 25.0]], "16": [[30.0, 40.0]]}
    assert answer == json.loads(Path("run/run.json").read_text())


# --- errors ----------------------------------------------------------------------------------------------


def test_bad_input_is_one_line_and_exit_1(fails, data, model, tmp_path):
    (tmp_path / "no_model.pt").write_text("hello")
    (tmp_path / "empty.yaml").write_text("train: nowhere\nval: nowhere\nnames: [red, green]\n")
    assert "no.yaml: no such file" in fails("evaluate", "--data", "no.yaml", "--model", model)
    assert "nowhere" in fails("evaluate", "--data", tmp_path / "empty.yaml", "--model", model)
    assert "no.pt: no such file" in fails("evaluate", "--data", data, "--model", "no.pt")
    assert "no_model.pt: got no usable model" in fails("evaluate", "--data", data, "--model", tmp_path / "no_model.pt")
    assert "no.jpg: no such file" in fails("predict", "no.jpg", "--model", model, "--out", "a.png")
    assert "cannot decode" in fails("predict", data, "--model", model, "--out", "a.png")
    assert "got none, expected finished runs" in fails("report", data.parent)
    assert "no.yaml: no such file" in fails("train", "--data", "no.yaml", "--student", "yolov5n")
    (tmp_path / "a.json").write_text('{"anchors": {"8": [[4, 0]]}}')
    for name, expected in (("a.json", "anchors.8: got [[4, 0]]"), ("no.json", "No such file")):
        line = fails("train", "--data", data, "--student", "yolov5n", "--priors", tmp_path / name)
        assert f"{tmp_path / name}: {expected}" in line
    assert left_behind() == []


def test_wrong_usage_is_exit_2(kd, fails, data):
    train = ("train", "--data", data, "--student", "yolov5n")
    teachers = ("--teacher", "a.pt=2", "--teacher", "b.pt", "--combine", "best")
    assert "--combine best: got teachers with weights" in fails(*train, *teachers, code=2)
    assert "--method: got 'fgif', expected fgfi" in fails(*train, "--method", "fgif", code=2)
    assert "--epochs: got 0" in fails(*train, "--epochs", 0, code=2)
    assert "lr0" in fails(*train, "--set", "lr=1", code=2)
    assert "--out: got 'a.jpg'" in fails("predict", data, "--model", "a.pt", "--out", "a.jpg", code=2)
    frames = data.parent / "images" / "test"
    assert "--out: got none, expected the picture" in fails("predict", frames, "--model", "a.pt", code=2)
    for alone in (("--sparse",), ("--tile-size", 96), ("--save-txt", "t"), ("--coco", "c.json"), ("--batch", 2)):
        line = fails("predict", frames, "--model", "a.pt", "--out", "a.png", *alone, code=2)
        assert f"{alone[0]}: got it without --tiled, expected both" in line
    twice = ("--model", "a.pt", "--model", "b.pt", "--tiled", "--out", "pictures")
    assert "--model: got 2 models with --tiled, expected one" in fails("predict", frames, *twice, code=2)
    for command in (("evaluate", "--data", data), ("predict", frames, "--out", "a.png")):
        assert "--device: got '99'" in fails(*command, "--model", "a.pt", "--device", "99", code=2)
    code, out, err = kd("evaluate", "--split", "all", "--data", data, "--model", "a.pt")
    assert (code, out) == (2, "")
    assert "all" in err
    assert left_behind() == []


def test_debug_shows_the_traceback(capfd, monkeypatch):
    with pytest.raises(KdError, match="no such file"):
        cli.run("kd", app, KdError, UsageError, ["--debug", "evaluate", "--data", "no.yaml", "--model", "no.pt"])


def test_ctrl_c_is_130(kd, monkeypatch, data, model):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("kd.scoring.evaluate.evaluate", interrupted)
    code, out, err = kd("evaluate", "--data", data, "--model", model)
    assert code == 130
    assert "Traceback" not in out + err


# --- bad labels -------------------------------------------------------------------------------------------


@pytest.fixture
def spoiled(tmp_path):
    """One training, one validation and one test image whose labels cannot be used, and a row that stands twice."""
    data = write_dataset(tmp_path / "spoiled", train=3, val=2, test=2)
    for split in ("train", "val", "test"):
        (data.parent / "labels" / split / "001.txt").write_text("7 .5 .5 .1 .1\n")
        (data.parent / "labels" / split / "000.txt").write_text("0 .5 .5 .1 .1\n" * (1 + (split == "test")))
    return data


def test_bad_labels_are_refused_unless_allowed(kd, fails, spoiled, model):
    train = ["train", "--data", spoiled, "--student", "yolov5n", *SMALL, "--out", "run"]
    evaluate = ["evaluate", "--data", spoiled, "--model", model, "--imgsz", "64", "--device", "cpu"]
    assert "got 3 of 7 images that cannot be used (labels/train/001.txt: line 1: class 7" in fails(*train)
    assert "got 1 of 2 images that cannot be used (labels/test/001.txt: line 1: class 7" in fails(*evaluate)
    assert "--skip-bad-labels: got it with --full-frame" in fails(
        *evaluate, "--full-frame", "--skip-bad-labels", code=2
    )
    assert left_behind() == []
    code, out, err = kd(*train, "--skip-bad-labels", "--json")
    assert code == 0
    answer = json.loads(out)
    assert answer["images"] == {"train": 2, "val": 1, "test": 1}
    assert answer["skipped"] == {"train": 1, "val": 1, "test": 1}
    jsonschema.validate(answer, schemas.load("run"))
    warnings = err.splitlines()
    assert [line.partition("data.yaml: ")[2][:30] for line in warnings] == [
        "test: 1 label row equals anoth", "3 of 7 images are left out: la",
    ]  # fmt: skip
    assert all(line.startswith("warning: ") for line in warnings)
    code, out, err = kd(*evaluate, "--skip-bad-labels")
    assert code == 0
    assert out.splitlines()[0].endswith("test: 1 image, 1 object, 1 image left out")
    assert len(err.splitlines()) == 2


def test_training_images_in_val_are_refused_unless_allowed(kd, fails, data, tmp_path):
    same = data.parent / "same.yaml"
    same.write_text("train: images/train\nval: images/train\nnames: [red, green]\n")
    train = ["train", "--data", same, "--student", "yolov5n", *SMALL, "--out", "run"]
    assert "train: got 2 that val has too (000.png, 001.png), expected others" in fails(*train)
    code, out, _ = kd(*train, "--allow-overlap", "--json")
    assert (code, json.loads(out)["shared_images"]) == (0, {"val": 2})


@pytest.mark.parametrize("number", [2**31, 2**63, 2**64, 2**200, -1, -(2**200)])
@pytest.mark.parametrize("option", ["--seed", "--imgsz", "--batch", "--epochs", "--freeze", "--teacher-imgsz"])
def test_a_number_beyond_sense_is_wrong_usage_for_train(fails, option, number):
    line = fails("train", "--data", "d.yaml", "--student", "yolov5n", "--teacher", "t.pt", option, number, code=2)
    assert line.startswith(f"error: {option}: got ")
    assert len(line) < 200


@pytest.mark.parametrize("batch", ["auto:0", "auto:1.5", "auto:nan", "auto:x", "many", "0.8"])
def test_a_batch_of_no_form_is_wrong_usage(fails, batch):
    line = fails("train", "--data", "d.yaml", "--student", "yolov5n", "--batch", batch, code=2)
    assert line.startswith("error: --batch: got ")
    assert "share" in line


@pytest.mark.parametrize("size", [33, 0, 2**200])
def test_a_size_that_no_network_sees_is_wrong_usage_at_every_door(fails, tmp_path, size):
    data, model = write_dataset(tmp_path / "data", test=1), save_detector(tmp_path / "m.pt", {0: "red", 1: "green"})
    image = tmp_path / "data/images/test/000.png"
    for arguments in (
        ("train", "--data", data, "--student", "yolov5n"),
        ("evaluate", "--data", data, "--model", model),
        ("evaluate", "--data", data, "--model", model, "--full-frame"),
        ("predict", image, "--model", model, "--out", "p.png"),
        ("bench", "--student", "yolov5n", "--teacher", "yolov5s"),
    ):
        assert fails(*arguments, "--imgsz", size, code=2).startswith("error: --imgsz: got ")
    assert not list(Path().iterdir())


def test_a_sixth_level_asks_for_multiples_of_64(fails, tmp_path):
    data = write_dataset(tmp_path / "data")
    line = fails("train", "--data", data, "--student", "yolov5n-p6", "--imgsz", 96, "--device", "cpu", code=2)
    assert "--imgsz: got 96, expected a multiple of 64" in line
    pair = ("--student", "yolov5n", "--teacher", "yolov5n-p6")
    line = fails("train", "--data", data, *pair, "--imgsz", 64, "--teacher-imgsz", 96, "--device", "cpu", code=2)
    assert "--teacher-imgsz: got 96, expected a multiple of 64" in line
    assert not list(Path().iterdir())


def test_as_many_images_as_there_are_is_no_number_beyond_sense(kd, tmp_path):
    write_dataset(tmp_path / "data")
    model = save_detector(tmp_path / "m.pt", {0: "red", 1: "green"})
    code, out, _ = kd("predict", tmp_path / "data/images/val", "--model", model, "--out", "p.png", "--limit", 2**200)
    assert (code, out.endswith("p.png: 3 images\n")) == (0, True)
