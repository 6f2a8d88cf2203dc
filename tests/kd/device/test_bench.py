"""`kd device-bench`: what is checked before it starts, what it makes of its measurements, and each model's process."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")
for package in ("onnx", "onnxruntime", "onnxslim"):
    pytest.importorskip(package, reason="needs the extra device")

import cv2
import jsonschema
import yaml

import schemas
from kd.device import bench as module
from kd.device import timed
from kd.device.bench import device_bench
from kd.device.export import export
from kd.device.timed import Timed, Timing
from kd.errors import KdError, ModelError, UsageError
from kd.files import sha256
from kd.scoring.evaluate import evaluate
from kd.ultra.data import label_file
from kd.ultra.exported import Exported, load_exported, read_metadata
from kd.ultra.models import load_model
from tests.kd_device import canned, die, kill_the_command
from tests.kd_fixtures import write_dataset
from tests.kd_models import save_lively


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset, a checkpoint, and what `kd export` made of it."""
    folder = tmp_path_factory.mktemp("device")
    write_dataset(folder / "data", test=3, side=64)
    save_lively(folder / "run" / "weights" / "best.pt")
    export(folder / "run" / "weights" / "best.pt", out=folder / "run.onnx")
    return folder


@pytest.fixture(scope="module")
def models(folder):
    return [folder / "run" / "weights" / "best.pt", folder / "run.onnx"]


@pytest.fixture(scope="module")
def data(folder):
    return folder / "data" / "data.yaml"


@pytest.fixture
def measured(monkeypatch):
    monkeypatch.setattr(module, "_measure", canned)


def test_a_worked_example(models, data, measured):
    found = device_bench(models, data, threads=1, rounds=4, device="cpu", quiet=True)
    jsonschema.Draft7Validator(schemas.load("device")).validate(found)
    assert (found["runs"], found["threads"], found["images"], found["split"]) == (20, 1, 3, "test")
    checkpoint, file = found["models"]
    assert [(row["name"], row["format"]) for row in found["models"]] == [("run", "pt"), ("run", "onnx")]
    assert (file["median_ms"], file["p95_ms"], file["whole_median_ms"], file["speed"]) == (8, 24, 10, 2.5)
    assert checkpoint["sha256"] == checkpoint["checkpoint_sha256"] == file["checkpoint_sha256"] == sha256(models[0])
    assert (file["sha256"], file["bytes"]) == (sha256(models[1]), models[1].stat().st_size)
    assert found["versions"]["onnxruntime"]
    assert found["hardware"]["cores"] >= 1


def test_scores_are_those_of_squares(models, tmp_path, measured):
    """The truth is some of what the checkpoint finds in images of 64 by 24, padded to 64 by 64 and not by 32."""
    data = write_dataset(tmp_path, test=2, side=64)
    yolo = load_model(str(models[0]))
    for path in (tmp_path / "images" / "test").iterdir():
        cv2.imwrite(str(path), cv2.imread(str(path))[:24])
        boxes = yolo.predict(path, imgsz=64, conf=0.1, rect=False, save=False, verbose=False)[0].boxes
        rows = [(int(label), *box) for label, box in zip(boxes.cls.tolist(), boxes.xywhn.tolist(), strict=True)]
        whole = [" ".join(map(str, row)) for row in rows[::3] if min(row[3:]) > 0.01]  # others lie in the padding
        label_file(path).write_text("\n".join(whole))
    one, other = device_bench(models, data, device="cpu", quiet=True)["models"]
    assert one["map50_95"] == pytest.approx(other["map50_95"], abs=1e-4)
    assert one["map50_95"] > 0.01
    assert abs(one["map50_95"] - evaluate(data, models[0], device="cpu")["map50_95"]) > 1e-3


def test_a_model_of_single_cls_beside_others_is_named(models, data, tmp_path, measured):
    content = torch.load(models[0], weights_only=False)
    content["train_args"]["single_cls"] = True
    torch.save(content, tmp_path / "one.pt")
    lines = []
    device_bench([models[1], tmp_path / "one.pt"], data, rounds=1, device="cpu", quiet=True, tell=lines.append)
    assert any("one.pt: trained with single_cls" in line for line in lines)


def test_a_format_is_known_by_an_ending_in_capitals_too():
    model = module.Model(Exported.__new__(Exported), Timed("files/Best.ONNX", 64, 1, None, None))
    assert (model.format, model.title) == ("onnx", "Best")


def test_models_of_one_name_and_other_checkpoints_go_by_their_paths():
    named = [("run", "a", "x/run.onnx"), ("run", "b", "y/run.onnx"), ("one", "c", "z/one.pt"), ("one", "c", "one.onnx")]
    models = [
        SimpleNamespace(title=title, timed=SimpleNamespace(spec=spec), identity={"checkpoint_sha256": of})
        for title, of, spec in named
    ]
    assert module._names(models) == ["x/run.onnx", "y/run.onnx", "one", "one"]


@pytest.mark.parametrize(("load", "start"), [(1.9, None), (4.0, "got a load average of 4.0 on 2 cores: ")])
def test_a_busy_machine_is_named(monkeypatch, load, start):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 9.0, 9.0))
    monkeypatch.setattr(module, "processors", lambda: [0, 1])
    found = module._busy()
    assert found is None if start is None else found.startswith(start)


# ---------------------------------------------------------------- a process of its own


def threads_of_this_process():
    """torch's number, and the processors that any thread of whatever library may use."""
    return torch.get_num_threads(), {
        frozenset(os.sched_getaffinity(int(name))) for name in os.listdir("/proc/self/task")
    }


def as_openvino(file, folder):
    """An ONNX file for OpenVINO, quicker than `kd export`: it is not checked."""
    openvino = pytest.importorskip("openvino", reason="needs the extra device")
    openvino.save_model(openvino.Core().read_model(file), folder / "x.xml", compress_to_fp16=False)
    (folder / "metadata.yaml").write_text(yaml.safe_dump(read_metadata(file)))
    return folder


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a system that confines processes")
def test_a_process_has_the_threads_it_is_told_and_says_what_it_runs(models, data, tmp_path):
    files = [models[1], as_openvino(models[1], tmp_path / "x_openvino_model")]
    images = sorted((data.parent / "images" / "test").iterdir())
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:

        def run(path):
            """What a process says of a model that it has run on two images that count, and what threads it has."""
            model = Timed(str(path), 64, 1, "cpu", load_exported(str(path), "cpu").card)
            pool.submit(timed.start, model, images[0]).result()
            times = pool.submit(timed.turn, model, images).result()
            assert len(times) == 2
            assert all(0 < one.network_ms < one.whole_ms for one in times)
            return pool.submit(timed.account, model).result(), pool.submit(threads_of_this_process).result()

        (of_file, threads), (of_folder, more) = map(run, files)
    assert (threads, more) == ((1, {frozenset(timed.processors()[:1])}),) * 2
    assert (of_file["precision"], of_file["device"]) == ("float32", "cpu")
    assert of_folder["precision"] in ("float32", "bfloat16")  # as the processor has it
    assert 100 < of_file["peak_mib"] <= of_folder["peak_mib"]
    assert 0 < of_file["model_mib"] < of_file["peak_mib"]


def test_a_process_that_ends_is_named():
    with module._process(SimpleNamespace(spec="a.onnx")) as ask, pytest.raises(KdError, match=r"^a\.onnx: its process"):
        ask(die)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the test forks")
def test_a_process_ends_with_the_command_however_that_ended(monkeypatch):
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(module.multiprocessing, "get_context", lambda _: fork)
    here, there = fork.Pipe(duplex=False)

    def command():
        with module._process(SimpleNamespace(spec="a.onnx")) as ask:
            ask(kill_the_command)

    process = fork.Process(target=command)
    process.start()
    there.close()
    process.join()
    assert here.poll(10)  # the end of the pipe: nobody has its other end any more


def test_turns_alternate_in_direction_and_show_all_the_same_images(monkeypatch):
    calls = []

    def process(model):
        class Context:
            def __enter__(self):
                return lambda function, *args: calls.append((model, function.__name__, *args)) or [Timing(1.0, 2.0)]

            def __exit__(self, *_):
                return None

        return Context()

    monkeypatch.setattr(module, "_process", process)
    images = [Path(f"{i}.png") for i in range(4)]
    module._measure(["a", "b"], images, 2, True)
    assert [call[:2] for call in calls] == [
        ("a", "start"), ("b", "start"), ("a", "turn"), ("b", "turn"), ("b", "turn"), ("a", "turn"), ("a", "account"),
        ("b", "account"),
    ]  # fmt: skip
    shown = [[path.stem for path in call[2]] for call in calls if call[1] == "turn"]
    assert shown == [["0", "1", "2", "3", "0", "1"]] * 2 + [["1", "2", "3", "0", "1", "2"]] * 2


def test_the_first_of_each_core_comes_before_those_that_share_one(monkeypatch):
    siblings = {0: "0-1", 1: "0-1", 2: "2,3", 3: "2,3"}
    monkeypatch.setattr(timed.os, "sched_getaffinity", lambda _: set(siblings), raising=False)
    monkeypatch.setattr(timed.Path, "read_text", lambda self: siblings[int(self.parts[-3][3:])])
    assert timed.processors() == [0, 2, 1, 3]


def test_int8_is_known_by_an_onnx_files_operators(models, tmp_path):
    import onnx
    from onnx import helper

    model = onnx.load(models[1])
    backend = SimpleNamespace(format="onnx", fp16=False)
    assert timed.precision(backend, str(models[1])) == "float32"
    model.graph.node.append(helper.make_node("QuantizeLinear", ["images", "scale"], ["q"]))
    onnx.save(model, tmp_path / "q.onnx")
    assert timed.precision(backend, str(tmp_path / "q.onnx")) == "INT8 + float32"
    other = SimpleNamespace(format="engine", metadata={"args": {"quantize": 16}})
    assert timed.precision(other, "a.engine") == "float16"


# ---------------------------------------------------------------- what is refused, before anything is timed


@pytest.fixture
def untimed(monkeypatch):
    monkeypatch.setattr(module, "_measure", lambda *_: pytest.fail("was timed"))


@pytest.mark.usefixtures("untimed")
def test_one_model_that_does_not_fit_ends_it_before_the_first_is_timed(models, data, tmp_path):
    half = tmp_path / "half.onnx"
    half.write_bytes(models[1].read_bytes()[:9000])
    other = save_lively(tmp_path / "other.pt", names={0: "red", 1: "blue"})
    for bad, reason in (
        (half, r"half\.onnx: got an export "),
        (other, r"classes: got 2 \(red, blue\), expected those of"),
        (tmp_path / "none.pt", r"none\.pt: no such file, expected a checkpoint \(\.pt\) or what kd export"),
        ("yolov8p", "yolov8p: no such file"),
    ):
        with pytest.raises(ModelError, match=reason):
            device_bench([models[0], bad], data, device="cpu", quiet=True)


@pytest.mark.usefixtures("untimed")
def test_a_missing_runtime_is_named_with_the_extra(models, data, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(KdError, match=r"run\.onnx: got no package onnxruntime, .*pip install 'dtld-kd\[device\]'"):
        device_bench(models, data, device="cpu", quiet=True)


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"threads": 0}, "--threads: got 0, expected 1 to "),
        ({"threads": 4096}, "--threads: got 4096, expected 1 to "),
        ({"rounds": 0}, "--rounds: got 0, expected a whole number from 1"),
        ({"device": "7"}, "--device: got '7'"),
    ],
)
def test_options_that_do_not_fit_are_refused(models, data, options, reason):
    with pytest.raises(UsageError, match=reason):
        device_bench(models, data, quiet=True, **options)


@pytest.mark.usefixtures("untimed")
def test_threads_cannot_be_limited_everywhere(models, data, monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    monkeypatch.setattr(module, "processors", lambda: [0, 1, 2])
    with pytest.raises(UsageError, match="--threads: got 2, expected 3: this system lets a process take all"):
        device_bench(models, data, threads=2, quiet=True)
