"""Every student's family and every teacher's, in a real training step of kd's trainer; students that are refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

import cli
from kd.commands import app
from kd.errors import KdError, UsageError
from kd.training.build import build_trainer
from kd.ultra import models, session
from tests.kd_fixtures import tiny_config, write_dataset
from tests.kd_pairs import DECODERS, PAIRS, REFUSED, table

PAGE = Path(__file__).parents[3] / "docs" / "distilling.md"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.mark.train
@pytest.mark.parametrize(("student", "teacher"), [(s, t) for s, teachers in PAIRS.items() for t in teachers])
def test_a_pair_trains_for_a_step(data, tmp_path, student, teacher):
    methods = (("fgfi", 0.01), ("cwd", 1.0)) + (() if {student, teacher} & DECODERS else (("box", 1.0),))
    config = tiny_config(data, tmp_path, student=student, teachers=(teacher,), methods=methods)
    with session.silence():
        trainer = build_trainer(config, models._packaged(student), tmp_path, None)
        trainer._setup_train()
    (link,) = trainer.distillation.links
    adapters = {key: value.clone() for key, value in link.adapters.state_dict().items()}
    frozen = {key: value.clone() for key, value in link.teacher.model.state_dict().items()}
    batch = trainer.preprocess_batch(next(iter(trainer.train_loader)))
    loss, items = trainer.model.train()(batch)  # as Ultralytics' loop calls it
    assert {key for key in items if key.startswith("kd_")} == {"kd_loss", *(f"kd_{name}_loss" for name, _ in methods)}
    assert all(value.isfinite() and value > 0 for key, value in items.items() if key.startswith("kd_"))
    loss.sum().backward()
    trainer.optimizer_step()
    assert {int(key.split(".")[1]) for key in adapters if key.startswith("cwd")} == set(PAIRS[student][teacher])
    assert not any(torch.equal(value, adapters[key]) for key, value in link.adapters.state_dict().items())
    assert all(torch.equal(v, frozen[key]) for key, v in link.teacher.model.state_dict().items())


def test_the_docs_have_the_table_of_pairs():
    assert table() in PAGE.read_text(encoding="utf-8"), f"{PAGE.name}: expected the table\n{table()}"


def test_every_student_has_two_teachers_and_every_teacher_a_student():
    assert all(len(teachers) == 2 for teachers in PAIRS.values())
    assert set(PAIRS) <= {teacher for teachers in PAIRS.values() for teacher in teachers}


@pytest.mark.parametrize("student", REFUSED)
def test_what_is_no_student_is_one_line_and_exit_1(data, tmp_path, capfd, student):
    arguments = ["train", "--data", str(data), "--student", student, "--out", str(tmp_path / "run"), "--device", "cpu"]
    with pytest.raises(SystemExit) as end:
        cli.run("kd", app, KdError, UsageError, arguments)
    out, err = capfd.readouterr()
    assert (end.value.code, out) == (1, "")
    assert re.fullmatch(rf"error: {student}: .*got a .*expected a .*detector.*\n", err), err
    assert not (tmp_path / "run").exists()
