"""Options as frozen values: parsed, defaulted, refused."""

from __future__ import annotations

import json

import pytest

from kd.config import DEFAULT_WEIGHTS, FgfiConfig, TrainConfig, parse_methods, parse_settings
from kd.errors import UsageError

BASE = {"data": "d.yaml", "student": "yolov5n", "out": "run"}


def test_methods_take_their_weight_from_the_text_then_the_option_then_the_default():
    assert parse_methods(["fgfi"]) == (("fgfi", DEFAULT_WEIGHTS["fgfi"]),)
    assert parse_methods(["fgfi=0.5"]) == (("fgfi", 0.5),)
    assert parse_methods(["fgfi"], weight=2) == (("fgfi", 2.0),)


@pytest.mark.parametrize(
    ("texts", "weight", "expected"),
    [
        (["fgf"], None, "expected fgfi"),
        (["fgfi=x"], None, "got 'x'"),
        (["fgfi=1"], 2.0, "--weight"),
        ([], 1.0, "--weight"),
    ],
)
def test_methods_that_make_no_sense_are_refused(texts, weight, expected):
    with pytest.raises(UsageError, match=expected):
        parse_methods(texts, weight)


def test_settings_are_typed_and_sorted():
    known = dict.fromkeys(["lr0", "cos_lr", "optimizer", "classes", "cache", "freeze"])
    texts = ["optimizer=SGD", "lr0=1e-2", "cos_lr=True", "classes=[0, 2]", "cache=none"]
    assert parse_settings(texts, known) == (
        ("cache", None), ("classes", [0, 2]), ("cos_lr", True), ("lr0", 0.01), ("optimizer", "SGD"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr", "expected KEY=VALUE"),
        ("lrO=1", "did you mean lr0"),
        ("epochs=3", "expected --epochs"),
        ("task=segment", "kd decides"),
        ("zzzzzz=1", "docs.ultralytics.com"),
    ],
)
def test_settings_that_make_no_sense_are_refused(text, expected):
    with pytest.raises(UsageError, match=expected):
        parse_settings([text], {"lr0": 0.01, "epochs": 100, "task": "detect"})


def test_a_setting_given_twice_is_refused():
    with pytest.raises(UsageError, match="twice"):
        parse_settings(["lr0=1", "lr0=2"], {"lr0": 0.01})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"epochs": 0}, "--epochs: got 0"),
        ({"batch": 1.5}, "--batch: got 1.5"),
        ({"imgsz": 16}, "--imgsz"),
        ({"seed": -1}, "--seed"),
        ({"methods": (("fgfi", 0.0),)}, "weight: got 0.0"),
        ({"methods": (("fgfi", float("nan")),)}, "weight: got nan"),
        ({"methods": (("cwd", 1.0),)}, "expected one of: fgfi"),
        ({"methods": (("fgfi", 1.0), ("fgfi", 2.0))}, "each method once"),
        ({"methods": (), "teachers": ("t.pt",)}, "expected at least one"),
        ({"teachers": ("a.pt", "b.pt")}, "got 2 teachers"),
        ({"device": "0,1"}, "one GPU"),
    ],
)
def test_values_out_of_range_are_refused(changes, expected):
    with pytest.raises(UsageError, match=expected):
        TrainConfig(**BASE, **changes)


@pytest.mark.parametrize("changes", [{"threshold": 0.0}, {"threshold": 1.0}, {"kernel": 2}])
def test_mask_options_out_of_range_are_refused(changes):
    with pytest.raises(UsageError, match="fgfi: "):
        FgfiConfig(**changes)


def test_a_configuration_survives_json():
    config = TrainConfig(**BASE, teachers=("t.pt",), settings=(("classes", (0, 1)), ("lr0", 0.1)))
    assert json.loads(json.dumps(config.to_json())) == config.to_json()


def test_a_plain_configuration_says_nothing_of_methods():
    values = TrainConfig(**BASE).to_json()
    assert values["methods"] == {}
    assert "fgfi" not in values
