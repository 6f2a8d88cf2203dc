"""Logging to TensorBoard, MLflow or W&B: Ultralytics' own callbacks, for one run, and only when asked for."""

from __future__ import annotations

import importlib

import pytest

pytest.importorskip("torch", reason="needs the extra kd")

from ultralytics.utils import SETTINGS

from kd.errors import KdError, UsageError
from kd.training.run import train
from kd.ultra import session
from tests.kd_fixtures import tiny_config, write_dataset


@pytest.fixture
def data(tmp_path):
    return write_dataset(tmp_path / "set", train=3, val=1)


@pytest.mark.parametrize("name", session.LOGS)
def test_a_package_that_is_not_installed_is_one_line_and_no_run(data, tmp_path, monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(KdError, match=f"--log {name}: got no package {name}, expected .*: pip install {name}"):
        train(tiny_config(data, tmp_path / "run"), logs=(name,))
    with pytest.raises(UsageError, match="--log: got 'paper', expected tensorboard, mlflow, wandb"):
        train(tiny_config(data, tmp_path / "run"), logs=("paper",))
    assert not (tmp_path / "run").exists()


@pytest.mark.train
@pytest.mark.parametrize("asked", [True, False])
def test_callbacks_see_a_run_only_when_asked_for(data, tmp_path, monkeypatch, asked):
    seen = []
    module = importlib.import_module("ultralytics.utils.callbacks.tensorboard")
    events = ("on_pretrain_routine_start", "on_fit_epoch_end", "teardown")
    recorders = {event: lambda trainer, event=event: seen.append((event, trainer.save_dir.name)) for event in events}
    monkeypatch.setattr(module, "callbacks", recorders)
    monkeypatch.setattr(session, "check_logs", lambda names: None)
    settings = dict(SETTINGS)
    train(tiny_config(data, tmp_path / "run"), logs=("tensorboard",) if asked else ())
    assert ({"on_pretrain_routine_start", "on_fit_epoch_end"} <= {event for event, _ in seen}) == asked
    assert {name for _, name in seen} == ({"run"} if asked else set())
    assert dict(SETTINGS) == settings
    seen.clear()
    train(tiny_config(data, tmp_path / "plan"), logs=("tensorboard",), dry_run=True)
    assert seen == []  # a plan is no run
