"""A run as a frozen value: defaulted, refused, carried through JSON."""

from __future__ import annotations

import json

import jsonschema
import pytest

import schemas
from kd.config import TrainConfig, require_side
from kd.errors import UsageError
from kd.methods.fgfi_config import FgfiConfig

BASE = {"data": "d.yaml", "student": "yolov5n", "out": "run"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"epochs": 0}, "--epochs: got 0"),
        ({"batch": 1.5}, "--batch: got 1.5"),
        ({"imgsz": 16}, "--imgsz"),
        ({"seed": -1}, "--seed"),
        ({"seed": 2**31}, "--seed: got 2147483648, expected a whole number from 0 to 2147483647"),
        ({"seed": 2**200}, "--seed: got a number of 201 bits, expected a whole number"),
        ({"seed": 10**5000}, "--seed: got a number of 16610 bits"),
        ({"epochs": 100_001}, "--epochs: got 100001, expected a whole number from 1 to 100000"),
        ({"batch": 2**200}, "--batch: got a number of"),
        ({"batch": True}, "--batch: got True"),
        ({"freeze": 2**200}, "--freeze: got a number of"),
        ({"imgsz": 2**200}, "--imgsz: got a number of"),
        ({"imgsz": 8224}, "--imgsz: got 8224, expected a whole number from 32 to 8192"),
        ({"imgsz": 33}, "--imgsz: got 33, expected a multiple of 32, .* choose 32 or 64"),
        ({"imgsz": 640.0}, "--imgsz: got 640.0"),
        ({"imgsz": 8190}, "--imgsz: got 8190, expected a multiple of 32, .* choose 8160 or 8192"),
        ({"teachers": ("a.pt",), "teacher_imgsz": 100}, "--teacher-imgsz: got 100, .* choose 96 or 128"),
        ({"settings": (("nbs", 2**200),)}, "--set nbs: got a number of 201 bits, expected at most 9007199254740992"),
        ({"settings": (("classes", (0, -(2**54))),)}, "--set classes: got -18014398509481984, expected at most"),
        ({"methods": (("fgfi", 1e308),)}, "weight: got 1e[+]308, expected a number above 0, from 1e-06 to 1e[+]06"),
        ({"teachers": ("a.pt",), "balance": 1e308}, "--balance: got 1e[+]308"),
        ({"teachers": ("a", "b"), "teacher_weights": (1e308, 1e308)}, "weights: got"),
        ({"teachers": ("a", "b"), "teacher_weights": (1e-320, 1.0)}, "weights: got"),
        ({"methods": (("fgfi", 0.0),)}, "weight: got 0.0"),
        ({"methods": (("fgfi", float("nan")),)}, "weight: got nan"),
        ({"methods": (("mgd", 1.0),)}, "expected one of: fgfi, cwd"),
        (
            {"methods": (("cwd", 1.0),), "teachers": ("t.pt",), "fgfi": FgfiConfig(priors=((8, ((4.0, 9.0),)),))},
            "--priors: got it with cwd",
        ),
        ({"methods": (("cwd", 1.0),), "teachers": ("t.pt",), "fgfi": FgfiConfig(soft=True)}, "--fgfi: got it with cwd"),
        ({"methods": (("fgfi", 1.0), ("fgfi", 2.0))}, "each method once"),
        ({"methods": (("cwd", 1.0),)}, "--method: got cwd without --teacher, expected a teacher to imitate"),
        ({"device": "0,0", "batch": 2}, "each GPU once"),
        ({"teachers": ("a.pt",), "teacher_weights": (1.0, 2.0)}, "weights: got"),
        ({"teachers": ("a.pt",), "teacher_weights": (0.0,)}, "weights: got"),
        ({"teachers": ("a.pt",), "combine": "worst"}, "--combine: got 'worst'"),
        ({"teachers": ("a", "b"), "teacher_weights": (1.0, 2.0), "combine": "best"}, "expected none: their scores"),
        ({"teachers": ("a.pt",), "teacher_imgsz": 16}, "--teacher-imgsz: got 16"),
        ({"teacher_imgsz": 64}, "without a teacher"),
    ],
)
def test_values_out_of_range_are_refused(changes, expected):
    with pytest.raises(UsageError, match=expected):
        TrainConfig(**BASE, **changes)


def test_the_bounds_themselves_are_accepted():
    least = TrainConfig(**BASE, epochs=1, imgsz=32, batch=1, seed=0, freeze=0)
    most = TrainConfig(**BASE, epochs=100_000, imgsz=8192, batch=65_536, seed=2**31 - 1, freeze=10_000)
    for config in (least, most):
        jsonschema.validate(config.to_json(), schemas.load("run")["properties"]["config"])


def test_a_larger_stride_asks_for_its_own_multiples():
    require_side("imgsz", 96)
    require_side("imgsz", 128, 64)
    with pytest.raises(UsageError, match=r"--imgsz: got 96, expected a multiple of 64, .*: choose 64 or 128$"):
        require_side("imgsz", 96, 64)


@pytest.mark.parametrize(
    "changes",
    [
        {"mask": "cells"},
        {"mask": "boxes", "threshold": 0.3},
        {"mask": "boxes", "assigned": True},
        {"mask": "boxes", "priors": ((8, ((4.0, 9.0),)),)},
        {"threshold": 0.0},
        {"threshold": 1.0},
        {"kernel": 2},
        {"priors": ()},
        {"priors": ((8, ()),)},
        {"priors": ((0, ((4, 9),)),)},
        {"priors": ((8, ((4, 9), (4, 0))),)},
        {"priors": ((8, ((4, float("inf")),)),)},
        {"priors": ((8, (4, 9)),)},
    ],
)
def test_mask_options_out_of_range_are_refused(changes):
    with pytest.raises(UsageError, match=r"--(fgfi [a-z]+(=boxes)?|priors): got"):
        FgfiConfig(**changes)


def test_a_configuration_survives_json():
    config = TrainConfig(**BASE, teachers=("t.pt",), settings=(("classes", (0, 1)), ("lr0", 0.1)))
    assert json.loads(json.dumps(config.to_json())) == config.to_json()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"epochs": 3, "device": "0,1", "settings": (("classes", [0, 1]), ("lr0", 0.1)), "skip_bad_labels": True},
        {"teachers": ("t.pt",), "teacher_weights": (0.3,), "fgfi": FgfiConfig(priors=((8, ((4.5, 9.0),)),), kernel=3)},
        {"teachers": ("t.pt",), "fgfi": FgfiConfig(defects=("adapter", "level"))},
        {"teachers": ("a", "b", "c"), "teacher_weights": (0.1, 0.7, 3.0), "teacher_imgsz": 96},
        {"teachers": ("a", "b"), "combine": "best", "methods": (("cwd", 2.0), ("ld", 0.25))},
        {"teachers": ("t.pt",), "balance": 0.1, "schedules": ("warmup", "cosine"), "methods": (("pkd", 1.0),)},
        {"teachers": ("t.pt",), "unlabeled": "more", "methods": (("logits", 1.0),)},
        {"teachers": ("t.pt",), "methods": (("built-in", 6.0),)},
    ],
)
def test_a_configuration_comes_back_from_json(changes):
    config = TrainConfig(**BASE, **changes)
    values = json.loads(json.dumps(config.to_json()))
    back = TrainConfig.from_json({**values, "a key": "of another version"})
    assert back.to_json() == values
    assert (back.shares, back.settings, back.fgfi) == (config.shares, config.settings, config.fgfi)
    if config.distils and config.balance is None:
        assert back.methods == config.methods


def test_a_plain_configuration_says_nothing_of_methods():
    values = TrainConfig(**BASE).to_json()
    assert values["methods"] == {}
    assert not values.keys() & {"fgfi", "teacher_weights", "combine", "teacher_imgsz"}


# --- teachers --------------------------------------------------------------------------------------------


def test_weights_are_shares_and_tell_configurations_apart():
    both = {"teachers": ("a.pt", "b.pt")}
    equal, same, other = (TrainConfig(**BASE, **both, teacher_weights=w) for w in ((), (3.0, 3.0), (1.0, 3.0)))
    assert equal.shares == same.shares == (0.5, 0.5)
    assert other.shares == (0.25, 0.75)
    assert equal.to_json() == same.to_json() != other.to_json()
    assert json.loads(json.dumps(other.to_json())) == other.to_json()
    best = TrainConfig(**BASE, **both, combine="best", teacher_imgsz=960)
    for config in (other, best):
        jsonschema.validate(config.to_json(), schemas.load("run")["properties"]["config"])
    assert best.chooses
    assert not other.chooses


def test_one_teacher_has_the_form_that_it_always_had():
    plain = TrainConfig(**BASE, teachers=("t.pt",)).to_json()
    weighted = TrainConfig(**BASE, teachers=("t.pt",), teacher_weights=(0.3,), combine="best")
    assert weighted.to_json() == plain
    assert not weighted.chooses
    assert not plain.keys() & {"teacher_weights", "combine", "teacher_imgsz"}


def test_the_course_of_a_run_survives_json_and_is_left_out_where_there_is_none(tmp_path):
    plain = TrainConfig(**BASE, teachers=("t.pt",)).to_json()
    assert not plain.keys() & {"schedules", "balance", "unlabeled"}  # as before there were any
    course = {"schedules": ("warmup", "cosine"), "balance": 0.1, "unlabeled": str(tmp_path)}
    values = TrainConfig(**BASE, teachers=("t.pt",), methods=(("fgfi", 0.01), ("cwd", 1.0)), **course).to_json()
    assert values == json.loads(json.dumps(values))
    assert values["methods"] == {"fgfi": None, "cwd": None}  # the weights that come out are in run.json's kd
    assert (values["schedules"], values["balance"]) == (["warmup", "cosine"], 0.1)
    jsonschema.validate(values, schemas.load("run")["properties"]["config"])


# --- priors ----------------------------------------------------------------------------------------------

PRIORS = ((8, ((4.5, 9.0), (8.0, 17.0))), (16, ((11.0, 30.0),)))


def test_priors_survive_json_and_tell_configurations_apart():
    plain = TrainConfig(**BASE, teachers=("t.pt",))
    own, other = (TrainConfig(**BASE, teachers=("t.pt",), fgfi=FgfiConfig(priors=p)) for p in (PRIORS, PRIORS[:1]))
    texts = [json.loads(json.dumps(config.to_json())) for config in (plain, own, other)]
    assert texts == [config.to_json() for config in (plain, own, other)]
    assert texts[1]["fgfi"]["priors"] == {"8": [[4.5, 9.0], [8.0, 17.0]], "16": [[11.0, 30.0]]}
    assert texts[0]["fgfi"] == {"threshold": 0.5, "assigned": False, "kernel": 1}  # as before there were any
    assert texts[0] != texts[1] != texts[2]
    assert hash(own) != hash(other)
    for text in texts:
        jsonschema.validate(text, schemas.load("run")["properties"]["config"])


def test_a_run_says_how_fgfi_was_varied():
    configs = [
        TrainConfig(**BASE, teachers=("t.pt",), fgfi=FgfiConfig(**options))
        for options in ({}, {"mask": "boxes"}, {"soft": True, "kernel": 3})
    ]
    texts = [json.loads(json.dumps(config.to_json())) for config in configs]
    assert [text["fgfi"].keys() - {"threshold", "assigned", "kernel"} for text in texts] == [set(), {"mask"}, {"soft"}]
    for text in texts:
        jsonschema.validate(text, schemas.load("run")["properties"]["config"])
    assert [config.needs_head for config in configs] == [False, False, True]
