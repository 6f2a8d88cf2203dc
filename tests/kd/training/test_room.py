"""Out of memory: one line with the batch to try, never a smaller batch in silence, and nothing lost."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

from ultralytics.models.yolo.detect import DetectionTrainer

import kd.training.run
from kd.distillation import cache
from kd.environment import WORLD
from kd.errors import RunError
from kd.scoring import evaluate as evaluation
from kd.scoring.evaluate import evaluate
from kd.training import bench
from kd.training.room import room_for
from kd.training.run import train
from kd.ultra.memory import enough_memory
from tests.kd.training.test_auto_batch import NO_MEMORY
from tests.kd_fixtures import tiny_config
from tests.kd_models import save_detector

LINE = "{out}: got out of memory at batch 3 of 64 px images, expected room for them: try --batch 1"


@pytest.fixture
def full(monkeypatch):
    """Have memory run out for batches of three in an epoch, once it is set; Ultralytics would go on with one image."""
    own, at = DetectionTrainer.preprocess_batch, []

    def preprocess(self, batch):
        if at == [self.epoch] and len(batch["img"]) == 3:
            raise NO_MEMORY
        return own(self, batch)

    monkeypatch.setattr(DetectionTrainer, "preprocess_batch", preprocess)
    return at


@pytest.mark.train
def test_memory_that_runs_out_ends_a_run_which_goes_on_with_the_same_batch(tmp_path, data, full):
    out = tmp_path / "run"
    config = tiny_config(data, out, epochs=2)
    full[:] = [0]
    with pytest.raises(RunError) as caught:
        train(config)
    assert str(caught.value) == LINE.format(out=out)
    assert not list(out.glob("*")), "there is nothing to resume"
    full[:] = [1]
    for resume in (False, True):  # the second time it is the first epoch of a process
        with pytest.raises(RunError) as caught:
            train(config, resume=resume)
        assert str(caught.value) == LINE.format(out=out) + (
            ", anew with --overwrite; or free some, and --resume goes on with this batch from the last whole epoch"
        )
        assert len((out / "results.csv").read_text().splitlines()) == 2
    full[:] = []
    record = train(config, resume=True)
    assert (record["config"]["batch"], record["epochs"]) == (3, 2)
    args = torch.load(out / "weights" / "last.pt", weights_only=False)["train_args"]
    assert args["batch"] == 3


@pytest.mark.parametrize(
    ("changes", "gpus", "processes", "advice"),
    [
        ({"batch": 16, "device": "0"}, True, 1, "try --batch 8, or --batch auto"),
        ({"batch": 16, "device": None}, True, 1, "try --batch 8, or --batch auto"),
        ({"batch": 16, "device": None}, False, 1, "try --batch 8"),
        ({"batch": 16, "device": "cpu"}, True, 1, "try --batch 8"),
        ({"batch": 6, "device": "0,1"}, True, 1, "try --batch 2"),
        ({"batch": 12, "device": "0"}, True, 4, "try --batch 4"),
        ({"batch": 1, "device": "cpu"}, False, 1, "try a smaller --imgsz"),
    ],
)
def test_the_batch_to_try_is_one_that_may_be_given(tmp_path, monkeypatch, changes, gpus, processes, advice):
    """``processes`` are torchrun's, under which a batch is not measured either."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    monkeypatch.setenv(WORLD, str(processes))
    config = tiny_config(tmp_path / "data.yaml", tmp_path, **changes)
    with pytest.raises(RunError) as caught, room_for(config):
        raise NO_MEMORY
    assert str(caught.value).endswith(f"expected room for them: {advice}")
    assert caught.value.__cause__ is NO_MEMORY


@pytest.mark.parametrize("error", [
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    MemoryError("Unable to allocate 3.00 GiB for an array"),
])  # fmt: skip
def test_other_libraries_say_it_in_their_own_words(error):
    line = "^here: got out of memory at batch 2 of 32 px images"
    with pytest.raises(RunError, match=line), enough_memory("here", 2, 32, lambda: "x"):
        raise error


def test_other_errors_are_left_as_they_are():
    for error in (RuntimeError("CUDA error: device-side assert triggered"), ValueError("out of memory")):
        with pytest.raises(type(error)) as caught, enough_memory("here", 2, 32, lambda: "x"):
            raise error
        assert caught.value is error


def raising(*_, **__):
    raise NO_MEMORY


def test_a_plan_and_timed_steps_end_in_one_line_too(tmp_path, data, monkeypatch):
    monkeypatch.setattr(kd.training.run, "plan", raising)
    monkeypatch.setattr(bench, "_arms", raising)
    with pytest.raises(RunError, match=rf"^{tmp_path}: got out of memory at batch 3 of 64 px .*: try --batch 1$"):
        train(tiny_config(data, tmp_path), dry_run=True)
    with pytest.raises(RunError, match=r"^yolov8p: got out of memory at batch 4 of 64 px .*: try --batch 2$"):
        bench.bench("yolov8p", "yolov8p", imgsz=64, batch=4, device="cpu")


def test_scores_and_what_a_teacher_says_end_in_one_line_too(tmp_path, data, monkeypatch):
    teacher = save_detector(tmp_path / "t.pt", {0: "red", 1: "green"})
    monkeypatch.setattr(evaluation, "score", raising)
    monkeypatch.setattr(cache, "detect", raising)
    with pytest.raises(RunError, match=f"^{teacher}: got out of memory at batch 16 of 96 px .*: try --batch 8$"):
        evaluate(data, teacher, split="val")
    images = sorted((data.parent / "images" / "train").iterdir())
    with pytest.raises(RunError, match=f"^{teacher}: got out of memory at batch 271 of 96 px .*: free some"):
        cache.ask(teacher, images, 96, 3, torch.device("cpu"))
