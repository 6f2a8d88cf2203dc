"""The one reader of YAML and JSON that users hand us: what it reads, and what it refuses in one line."""

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from schemas import strict

ROOT = Path(__file__).resolve().parents[1]
OURS = sorted([*ROOT.glob("kd/*/*.yaml"), *ROOT.glob("benchmarks/**/*.yaml")])
BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "\n".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]" for i in range(10)
)


@pytest.mark.parametrize("path", OURS, ids=[path.stem for path in OURS])
def test_our_own_files_mean_what_pyyaml_says(path):
    assert strict.read_yaml(path) == yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("[red, off, yes, no]", ["red", "off", "yes", "no"]),
        (
            "[007, 0x1F, 1:30, 1_000, 2015-99-99, !!str 3, '4']",
            ["007", "0x1F", "1:30", "1_000", "2015-99-99", "3", "4"],
        ),
        ("[1e-3, 1., .5, -2, +3, -0]", [0.001, 1.0, 0.5, -2, 3, 0]),
        ("x: &x {b: 1, c: 3}\ny: {<<: *x, b: 2}", {"x": {"b": 1, "c": 3}, "y": {"b": 2, "c": 3}}),
        ("y: {<<: [{a: 1}, {a: 2, b: 3}]}", {"y": {"a": 1, "b": 3}}),
        ("a: &a [1]\nb: *a", {"a": [1], "b": [1]}),
        ("\ufeffa: 1".encode(), {"a": 1}),
    ],
)
def test_yaml(text, value):
    assert strict.load_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: got 'a' as a key"),
        ("a: {b: 1, b: 1}", "line 1: got 'b' as a key"),
        ("{1: a, true: b}", "got True as a key"),  # one key to Python: the second would win
        ("<<: 3", "got << with something else"),
        ("a: &a [*a]", r"got the alias \*a"),
        ("a: *b", r"got the alias \*b"),
        (BOMB, "aliases for more than 1000000 values"),
        ("[" * 3000, "nesting|in each other"),
        ("[" * 30 + "]" * 30, "more than 20 lists in each other"),
        ("a: .nan", "got .nan, expected a finite number"),
        ("a: -.inf", "got -.inf, expected a finite number"),
        ("a: 1e999", "expected a number below"),
        ("a: 9223372036854775808", "whole number of 64 bits"),
        ("a: !!int ''", "line 1: got the tag"),
        ("a: !!python/name:os.system x", "got the tag"),
        ("--- 1\n--- 2", "second document"),
        ("a: [1", "line 2: got no YAML"),
        ("? [1]\n: 2", "as a key"),
        ("a: b\0", "character 4: got NUL"),
        (b"a: \xff", "byte 3: got what is no UTF-8"),
    ],
)
def test_yaml_that_is_refused(text, reason):
    with pytest.raises(strict.StrictError, match=reason) as caught:
        strict.load_yaml(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a":1,"b":{"c":1,"c":2}}', "got the key 'c' 2 times"),
        ('{"a":"x:y","a":2}', "got the key 'a' 2 times"),
        ("[" * 3000, "depth"),
        ("[" * 300 + "]" * 300, "got no JSON"),
        ("NaN", "got no JSON"),
        ("[Infinity]", "got no JSON"),
        ("1e999", "got no JSON"),
        ('"\\ud800"', "got no JSON"),
        ("", "got no JSON"),
        ("[1", "got no JSON"),
        ('"a\0"', "character 2: got NUL"),
        (b'"\xff"', "byte 1: got what is no UTF-8"),
    ],
)
def test_json_that_is_refused(text, reason):
    with pytest.raises(strict.StrictError, match=reason) as caught:
        strict.load_json(text)
    assert str(caught.value).isprintable()


def test_json():
    assert strict.load_json('\ufeff{"a": "x:y", "b": [1, 2.5, null, true]}'.encode()) == {
        "a": "x:y",
        "b": [1, 2.5, None, True],
    }


def test_files(tmp_path, monkeypatch):
    (tmp_path / "a.JSON").write_text("{}")
    assert strict.read_document(tmp_path / "a.JSON") == {}
    (tmp_path / "a.yaml").write_text("a: 1")
    assert strict.read_document(tmp_path / "a.yaml") == {"a": 1}
    monkeypatch.setattr(strict, "MAX_YAML_BYTES", 3)
    with pytest.raises(strict.StrictError, match="expected less"):
        strict.read_yaml(tmp_path / "a.yaml")
    with pytest.raises(FileNotFoundError):
        strict.read_yaml(tmp_path / "b.yaml")


def is_text(word):
    """Whether a bare word means itself: PyYAML writes 1e3 and 0E0 without quotes, texts in YAML 1.1, not in 1.2."""
    try:
        return strict.word(word) == word
    except strict.StrictError:
        return False


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=8).filter(is_text)
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS,
    lambda part: st.lists(part, max_size=4) | st.dictionaries(WORDS, part, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_what_pyyaml_writes_is_read_as_it_was(value):
    written = yaml.safe_dump(value, allow_unicode=True)
    assert strict.load_yaml(written) == value


@given(st.text("0123456789.eE+-_:xnaif~", max_size=6))
def test_a_word_is_never_a_number_that_is_not_finite(text):
    try:
        found = strict.word(text)
    except strict.StrictError:
        return
    assert not isinstance(found, float) or math.isfinite(found)
