"""Options as frozen values: parsed, defaulted, refused."""

from __future__ import annotations

import json

import jsonschema
import pytest

import schemas
from kd.config import (
    DEFAULT_WEIGHTS,
    FgfiConfig,
    TrainConfig,
    parse_methods,
    parse_settings,
    parse_teachers,
    read_priors,
)
from kd.errors import DataError, UsageError

BASE = {"data": "d.yaml", "student": "yolov5n", "out": "run"}


def test_methods_take_their_weight_from_the_text_then_the_option_then_the_default():
    assert parse_methods(["fgfi"]) == (("fgfi", DEFAULT_WEIGHTS["fgfi"]),)
    assert parse_methods(["fgfi=0.5"]) == (("fgfi", 0.5),)
    assert parse_methods(["fgfi"], weight=2) == (("fgfi", 2.0),)
    assert parse_methods(["cwd=2", "score-l2", "logits=0.5"]) == (("cwd", 2.0), ("score-l2", 6.0), ("logits", 0.5))


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
        ({"methods": (("mgd", 1.0),)}, "expected one of: fgfi, cwd"),
        (
            {"methods": (("cwd", 1.0),), "teachers": ("t.pt",), "fgfi": FgfiConfig(priors=((8, ((4.0, 9.0),)),))},
            "--priors: got it with cwd",
        ),
        ({"methods": (("fgfi", 1.0), ("fgfi", 2.0))}, "each method once"),
        ({"methods": (), "teachers": ("t.pt",)}, "expected at least one"),
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


@pytest.mark.parametrize(
    "changes",
    [
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
    with pytest.raises(UsageError, match="fgfi: "):
        FgfiConfig(**changes)


def test_a_configuration_survives_json():
    config = TrainConfig(**BASE, teachers=("t.pt",), settings=(("classes", (0, 1)), ("lr0", 0.1)))
    assert json.loads(json.dumps(config.to_json())) == config.to_json()


def test_a_plain_configuration_says_nothing_of_methods():
    values = TrainConfig(**BASE).to_json()
    assert values["methods"] == {}
    assert not values.keys() & {"fgfi", "teacher_weights", "combine", "teacher_imgsz"}


# --- teachers --------------------------------------------------------------------------------------------


def test_teachers_take_a_weight_behind_the_last_equals_sign():
    assert parse_teachers([]) == ((), ())
    assert parse_teachers(["a.pt", "b.pt=0.5", "yolov5n=2"]) == (("a.pt", "b.pt", "yolov5n"), (1.0, 0.5, 2.0))
    assert parse_teachers(["lr=0.1/best.pt", "lr=0.1/best.pt=3"]) == (("lr=0.1/best.pt",) * 2, (1.0, 3.0))
    for no_weight in ("a=0", "a=-1", "a=nan", "a=inf", "a=", "=2"):
        assert parse_teachers([no_weight]) == ((no_weight,), (1.0,))


def test_a_file_may_end_like_a_weight(tmp_path):
    (tmp_path / "lr=0.1").touch()
    assert parse_teachers([f"{tmp_path}/lr=0.1"]) == ((f"{tmp_path}/lr=0.1",), (1.0,))


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


def write(folder, content):
    (folder / "priors.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder / "priors.json"


def test_priors_are_read_by_stride(tmp_path):
    anchors = {"16": [[11, 30]], "8": [[4.5, 9], [8, 17]]}
    assert read_priors(write(tmp_path, {"anchors": anchors})) == PRIORS
    assert read_priors(write(tmp_path, {"frames": 3, "anchors": anchors, "anchor_fit": {}})) == PRIORS


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "got no JSON"),
        ("{", "got no JSON"),
        ([], "anchors: got none"),
        ({"8": [[4, 9]]}, "anchors: got none"),
        ({"anchors": {}}, "anchors: got none"),
        ({"anchors": [[4, 9]]}, "anchors: got none"),
        ({"anchors": {"8": []}}, r"anchors\.8: got \[\]"),
        ({"anchors": {"8": {}}}, r"anchors\.8: got \{\}"),
        ({"anchors": {"8": [[4]]}}, r"anchors\.8: got \[\[4\]\]"),
        ({"anchors": {"8": [4, 9]}}, r"anchors\.8: got \[4, 9\]"),
        ({"anchors": {"8": [[4, 9], [0, 9]]}}, r"anchors\.8: got .* pixels above 0"),
        ({"anchors": {"8": [[4, "9"]]}}, r"anchors\.8: "),
        ({"anchors": {"8": [[4, True]]}}, r"anchors\.8: "),
        ('{"anchors": {"8": [[4, NaN]]}}', r"anchors\.8: "),
        ('{"anchors": {"8": [[4, Infinity]]}}', r"anchors\.8: "),
        ({"anchors": {"P3": [[4, 9]]}}, r"anchors\.P3: .*under a stride such as 8"),
        ({"anchors": {"0": [[4, 9]]}}, r"anchors\.0: "),
        ({"anchors": {"-8": [[4, 9]]}}, r"anchors\.-8: "),
    ],
)
def test_a_file_without_priors_is_refused_by_its_place(tmp_path, content, expected):
    with pytest.raises(DataError, match=expected) as caught:
        read_priors(write(tmp_path, content))
    assert str(caught.value).startswith(f"{tmp_path / 'priors.json'}: ")
    assert "\n" not in str(caught.value)


def test_no_file_of_priors(tmp_path):
    with pytest.raises(DataError, match=r"no\.json: No such file.*expected the output of dtld inspect"):
        read_priors(tmp_path / "no.json")


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
