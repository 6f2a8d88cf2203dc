"""Words of the command line as values: parsed, typed, refused by their place."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from kd.config import TrainConfig
from kd.errors import DataError, UsageError
from kd.methods.facts import DEFAULT_WEIGHTS
from kd.methods.fgfi_config import FgfiConfig
from kd.options import (
    OF_THE_FOLDER,
    OPTIONS,
    TYPES,
    parse_fgfi,
    parse_methods,
    parse_settings,
    parse_teachers,
    read_priors,
    train_values,
)
from kd.train_options import TrainOptions

DEFAULTS = {field.name: field.default for field in fields(TrainOptions)}
IN_CONFIG = {field.name for field in fields(TrainConfig)}


def test_an_option_has_the_default_of_the_configuration_and_none_given_changes_nothing():
    alike = DEFAULTS.keys() & IN_CONFIG - {"data", "student", "out", "fgfi"}
    assert len(alike) >= 10
    assert {name: DEFAULTS[name] for name in alike} == {name: getattr(TrainConfig, name) for name in alike}
    assert train_values({}, {}) == train_values(dict.fromkeys(OPTIONS), {}) == {}


def test_every_field_of_the_configuration_comes_from_an_option(tmp_path):
    texts = {"data": "d", "student": "s", "combine": "best", "device": "cpu", "unlabeled": "u", "inherit": "i"}
    texts["teacher-cache"] = "c.npz"
    numbers = {name: 2 for name, kind in TYPES.items() if kind in (int, float) and name != "weight"}
    several = {"teacher": "t", "method": "cwd", "schedule": "cosine", "set": "lr0=1", "fgfi": "kernel=3"}
    values = train_values({**texts, **numbers, **several, "skip-bad-labels": True}, {"lr0": 0.01})
    assert values.keys() == IN_CONFIG - {"out"}
    assert DEFAULTS.keys() - {name.replace("-", "_") for name in OPTIONS} == OF_THE_FOLDER


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"epochs": 30}, {"epochs"}),
        ({"teacher": ["a.pt"]}, {"teachers", "teacher_weights"}),
        ({"method": "cwd"}, {"methods"}),
        ({"weight": 0.5}, {"methods"}),
        ({"balance": 0.1}, {"methods", "balance"}),
        ({"fgfi": ["soft=true"]}, {"fgfi"}),
        ({"schedule": "cosine"}, {"schedules"}),
        ({"set": {"lr0": 1}}, {"settings"}),
        ({"log": "wandb", "allow-overlap": True, "allow-weak-teacher": True}, set()),
    ],
)
def test_options_decide_their_own_fields_alone(options, fields):
    assert train_values(options, {"lr0": 0.01}).keys() == fields


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("data", 3, "a text"),
        ("device", True, "a text"),
        ("epochs", True, "a whole number"),
        ("epochs", 3.0, "a whole number"),
        ("teacher-imgsz", "64", "a whole number"),
        ("weight", "1", "a number"),
        ("balance", True, "a number"),
        ("allow-overlap", 1, "true or false"),
        ("method", 3, "a text, a list of them, or names with values"),
    ],
)
def test_a_value_of_another_type_is_refused(option, value, expected):
    with pytest.raises(UsageError) as caught:
        train_values({option: value}, {})
    assert str(caught.value) == f"--{option}: got {value}, expected {expected}"


def test_what_is_no_option_is_refused_by_its_nearest():
    for word in ("epoch", "out", "teacher_imgsz"):
        with pytest.raises(UsageError, match=f"got {word}, expected an option of kd train such as "):
            train_values({word: 3}, {})
    assert train_values({"device": 0}, {}) == {"device": "0"}


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


def test_teachers_take_a_weight_behind_the_last_equals_sign():
    assert parse_teachers([]) == ((), ())
    assert parse_teachers(["a.pt", "b.pt=0.5", "yolov5n=2"]) == (("a.pt", "b.pt", "yolov5n"), (1.0, 0.5, 2.0))
    assert parse_teachers(["lr=0.1/best.pt", "lr=0.1/best.pt=3"]) == (("lr=0.1/best.pt",) * 2, (1.0, 3.0))
    for no_weight in ("a=0", "a=-1", "a=nan", "a=inf", "a=", "=2"):
        assert parse_teachers([no_weight]) == ((no_weight,), (1.0,))


def test_a_file_may_end_like_a_weight(tmp_path):
    (tmp_path / "lr=0.1").touch()
    assert parse_teachers([f"{tmp_path}/lr=0.1"]) == ((f"{tmp_path}/lr=0.1",), (1.0,))


def test_options_of_fgfi_are_typed():
    assert parse_fgfi([]) == FgfiConfig()
    got = parse_fgfi(["threshold=0.3", "assigned=TRUE", "kernel = 3", "soft=true"], PRIORS)
    assert got == FgfiConfig(threshold=0.3, assigned=True, kernel=3, soft=True, priors=PRIORS)
    assert parse_fgfi(["mask=boxes"]).mask == "boxes"
    assert parse_fgfi(["defects=adapter, mask"]).defects == ("adapter", "mask")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["soft"], "got 'soft', expected KEY=VALUE"),
        (["level=8"], "got 'level=8', expected KEY=VALUE such as threshold=0.5"),
        (["priors=a.json"], "got 'priors=a.json'"),
        (["soft=true", "soft=true"], "twice"),
        (["threshold=half"], "got 'half', expected a value such as 0.5"),
        (["threshold=1"], "expected between 0 and 1"),
        (["threshold=true"], "got 'true'"),
        (["kernel=3.0"], "got '3.0', expected a value such as 3"),
        (["kernel=5"], "expected 1 or 3"),
        (["assigned=1"], "got '1', expected a value such as true"),
        (["mask=none"], "got 'none'"),
        (["defects=level,masks"], "got 'masks', expected each once of adapter, mask, level"),
        (["defects=mask,mask"], "got 'mask', expected each once"),
        (["defects=8"], "got '8', expected a value such as mask"),
        (["mask=cells"], "expected anchors or boxes"),
    ],
)
def test_options_of_fgfi_that_make_no_sense_are_refused(texts, expected):
    with pytest.raises(UsageError, match=f"--fgfi.*: .*{expected}"):
        parse_fgfi(texts)


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
        ('{"anchors": {"8": [[4, NaN]]}}', "got no JSON"),
        ('{"anchors": {"8": [[4, Infinity]]}}', "got no JSON"),
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
