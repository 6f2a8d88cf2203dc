"""The largest batch, by meters whose lines are known: what is measured, what is pinned, and who takes part."""

from __future__ import annotations

import json
from types import SimpleNamespace

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the extra kd")

import schemas
from kd.config import TrainConfig
from kd.errors import RunError, UsageError
from kd.training import auto_batch
from kd.training.auto_batch import Steps, largest, rounded, write_untrained
from kd.training.run import train
from kd.training.run_folder import own_config
from kd.ultra import memory, models
from tests.kd_fixtures import tiny_config
from tests.kd_models import save_detector

NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total of 4 GiB")


class Line:
    """A meter that lets every step be done and says 1000 bytes and 100 for each image; above ``most`` there is none."""

    def __init__(self, available: int, most: int = 100) -> None:
        self.bytes, self.most, self.batch = available, most, 0

    def available(self) -> int:
        return self.bytes

    def peak(self, work) -> int | None:
        try:
            work()
        except torch.OutOfMemoryError:
            return None
        return 1000 + 100 * self.batch


@pytest.fixture
def gpu(monkeypatch):
    """Have the CPU measured by such a meter; returns a function that sets it, and gets the steps that are done."""
    one_step, steps = auto_batch.one_step, []

    def use(available, most=100):
        meter = Line(available, most)

        def step(trainer, images):
            meter.batch = len(images["img"])
            steps.append((trainer, images))
            if meter.batch > meter.most:
                raise NO_MEMORY
            one_step(trainer, images)

        monkeypatch.setattr(memory, "meter_of", lambda device: meter)
        monkeypatch.setattr(auto_batch, "one_step", step)
        return steps

    return use


@given(
    st.integers(0, 10**10), st.integers(1, 10**9), st.integers(1, 10**12), st.integers(1, 5000), st.integers(1, 5000)
)
def test_on_a_line_it_is_the_most_that_fits_but_a_fifth(base, slope, budget, most, ceiling):
    """``ceiling`` is where memory runs out, whatever the line says."""
    tried = largest(lambda batch: None if batch > ceiling else base + slope * batch, budget, most)
    fitting = [batch for batch, peak in tried if peak is not None and peak <= budget]
    best = min(most, ceiling, (budget - base) // slope)
    assert all(batch <= most for batch, _ in tried)
    assert max(fitting, default=0) <= max(best, 0)
    assert max(fitting, default=0) >= (rounded(best) if best >= 1 and ceiling >= most else min(best, 1))


def test_a_line_that_promises_too_much_is_not_believed():
    """Steeper from 16 on: 40 is tried, and numbers below it until one fits."""
    tried = largest(lambda batch: 100 + 10 * batch + 20 * max(0, batch - 16), 510, 1000)
    assert [batch for batch, _ in tried] == [1, 2, 4, 8, 40, 32, 28, 24]
    assert tried[-1][1] == 500


def test_memory_that_runs_out_early_is_the_end_of_it():
    assert largest(lambda batch: None if batch > 5 else batch, 1000, 1000) == [
        (1, 1), (2, 2), (4, 4), (8, None), (7, None), (6, None), (5, 5),
    ]  # fmt: skip
    assert largest(lambda batch: None, 1000, 1000) == [(1, None)]
    assert largest(lambda batch: batch, 1000, 1) == [(1, 1)]


@pytest.mark.train
def test_a_run_is_the_one_that_the_number_would_give_and_resumes_with_it(tmp_path, data, gpu):
    """1600 bytes are 80 % of 2000: room for six images, of which there are no more."""
    said, losses = [], {}
    steps = gpu(2000)
    for name, batch in (("auto", {"batch": 16, "batch_auto": 0.8}), ("number", {"batch": 6})):
        record = train(tiny_config(data, tmp_path / name, **batch), tell=said.append)
        lines = (tmp_path / name / "results.csv").read_text().splitlines()
        losses[name] = [line.split(",")[2:] for line in lines]  # without epoch and time
        assert record["config"]["batch"] == 6
        assert "batch_auto" not in record["config"]
    assert losses["auto"] == losses["number"]
    assert not said
    record = json.loads((tmp_path / "auto" / "run.json").read_text())
    jsonschema.validate(record, schemas.load("run"))
    measured = [[1, 1100], [2, 1200], [4, 1400], [6, 1600]]
    assert record["batch_auto"] == {"share": 0.8, "memory_bytes": 2000, "measured": measured}
    assert [len(images["img"]) for _, images in steps] == [1, 1, 2, 2, 4, 4, 6, 6]
    (tmp_path / "auto" / "run.json").unlink()  # as if it had been killed before the end
    assert own_config(tmp_path / "auto").batch == 6
    again = train(tiny_config(data, tmp_path / "auto", batch=16, batch_auto=0.8), resume=True)
    assert (again["config"]["batch"], again["batch_auto"]) == (6, record["batch_auto"])
    assert len(steps) == 8, "it was measured once"


@pytest.mark.train
@pytest.mark.parametrize("method", ["fgfi", "built-in"])
def test_teachers_adapters_and_optimizer_take_part(tmp_path, data, teacher, gpu, method):
    steps = gpu(10_000, most=2)
    settings = (("optimizer", "AdamW"), ("multi_scale", 0.5), ("rect", True))
    config = tiny_config(
        data, tmp_path / "run", teachers=(teacher,), methods=((method, 0.1),), settings=settings, batch_auto=0.5
    )
    found = train(config, dry_run=True, allow_weak_teacher=True)
    assert found["config"]["batch"] == 2
    assert found["batch_auto"]["measured"] == [[1, 1100], [2, 1200], [4, None], [3, None]]
    assert not (tmp_path / "run").exists()
    trainer, images = steps[0]
    assert images["img"].shape[2:] == (96, 96), "the largest that multi_scale may ask for"
    assert len(images["cls"]) == 2, "an image with as many objects as any has"
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    assert all(p in trainer.optimizer.state for p in parameters), "the optimizer has stepped"
    if method == "fgfi":
        adapters = list(trainer.adapters.parameters())
        assert adapters
        assert {id(p) for p in adapters} <= {id(p) for p in parameters}
        assert trainer.distillation.links[0].teacher
    assert trainer.ema.updates


@pytest.mark.train
def test_no_room_for_one_image_is_one_line_and_leaves_nothing(tmp_path, data, gpu):
    config = tiny_config(data, tmp_path / "run", batch_auto=0.5)
    for available, most, got in ((2000, 100, "0.00 GB"), (10_000, 0, "out of memory")):
        gpu(available, most)
        line = f"^--batch auto: got {got} for one image of 64 px, expected at most .*, or a share above auto:0.5$"
        with pytest.raises(RunError, match=line):
            train(config)
        assert not list(tmp_path.glob("run/*"))


def test_a_cpu_keeps_what_it_has_and_says_so(data, tmp_path):
    said = []
    found = train(tiny_config(data, tmp_path / "run", batch=3, batch_auto=0.8), dry_run=True, tell=said.append)
    assert said == ["--batch auto: got cpu, expected a GPU, whose memory it measures: it keeps 3"]
    assert found["config"]["batch"] == 3
    assert found["batch_auto"] == {"share": 0.8, "memory_bytes": None, "measured": []}


@pytest.mark.parametrize("changes", [{"batch_auto": 0.0}, {"batch_auto": 1.5}, {"batch_auto": float("nan")}])
def test_a_share_is_of_one(changes):
    with pytest.raises(UsageError, match=r"--batch: got auto:.*, expected a share of the memory above 0, up to 1"):
        TrainConfig(data="d.yaml", student="yolov5n", out="run", **changes)


def test_several_gpus_want_a_number():
    with pytest.raises(UsageError, match=r"--batch: got auto on 2 GPUs, .* --device 0 --batch auto --dry-run says"):
        TrainConfig(data="d.yaml", student="yolov5n", out="run", batch_auto=0.8, device="0,1")


@pytest.mark.parametrize("student", ["yolov5n", "classic/yolov5n", "given"])
def test_a_run_that_has_not_begun_leaves_a_checkpoint_of_its_classes(tmp_path, data, student):
    given = student == "given"
    spec = save_detector(tmp_path / "given.pt", {0: "a", 1: "b", 2: "c"}) if given else student
    write_untrained(tiny_config(data, tmp_path / "run", student=spec, batch_auto=0.8), tmp_path / "batches" / "t.pt")
    model = models.load_model(str(tmp_path / "batches" / "t.pt"))
    assert model.names == {0: "red", 1: "green"}
    assert model.model.model[-1].nc == 2
    assert not (tmp_path / "run").exists()


def test_the_images_with_the_most_objects_come_first():
    dataset = SimpleNamespace(labels=[{"cls": [0] * count} for count in (1, 5, 0, 3)])
    steps = Steps(SimpleNamespace(train_loader=SimpleNamespace(dataset=dataset)))
    assert steps._order == [1, 3, 0, 2]
