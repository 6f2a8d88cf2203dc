"""Attributes to class: the seed paper's rule against a plain sentence of Python, and tables of one's own."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtld_tools.errors import RulesError
from dtld_tools.labels.attributes import VOCABULARY
from dtld_tools.labels.collapse import load_rules
from dtld_tools.types import Box, Light
from tests.dtld_data import GREEN


def lamp(attributes):
    return Light(Box(0, 0, 1, 1), attributes, 1, "t")


def class_of(rules, **changes):
    return rules.class_of(lamp(GREEN | changes))


@pytest.fixture(scope="module")
def default():
    return load_rules(None)


def table(folder, document, name="rules.json"):
    path = folder / name
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


STATES = ("red", "yellow", "red_yellow", "green")


def test_shipped_tables_have_names():
    assert load_rules(Path("paper")).table == load_rules(None).table
    assert load_rules(Path("states")).class_names == (*STATES, "off")
    names = load_rules(Path("states-and-pictograms")).class_names
    assert set(names) == {f"{state}_{pictogram}" for state in STATES for pictogram in VOCABULARY["pictogram"]} | {"off"}
    with pytest.raises(RulesError, match="expected paper, states, states-and-pictograms, or a rule table"):
        load_rules(Path("colours"))


@pytest.mark.parametrize("state", VOCABULARY["state"])
@pytest.mark.parametrize("pictogram", VOCABULARY["pictogram"])
def test_shipped_tables_say_what_a_light_shows(state, pictogram):
    for name, expected in (("states", state), ("states-and-pictograms", f"{state}_{pictogram}")):
        rules = load_rules(Path(name))
        found = class_of(rules, state=state, pictogram=pictogram)
        expected = {"off": "off", "unknown": None}.get(state, expected)
        assert (None if found is None else rules.class_names[found]) == expected
        assert class_of(rules, state=state, pictogram=pictogram, reflection="reflected") is None


def test_the_names_of_the_two_classes(default):
    assert default.class_names == ("relevant", "not_relevant")


@pytest.mark.parametrize("state", ["red", "yellow", "red_yellow", "green"])
def test_a_defined_state_ahead_is_relevant(default, state):
    assert class_of(default, state=state) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"relevance": "not_relevant"},
        {"direction": "back"},
        {"direction": "left"},
        {"direction": "right"},
        {"occlusion": "occluded"},
        {"reflection": "reflected"},
        {"state": "off"},
        {"state": "unknown"},
        {"pictogram": "tram"},
        {"pictogram": "pedestrian"},
        {"pictogram": "bicycle"},
        {"pictogram": "pedestrian_bicycle"},
        {"state": "purple"},  # unlisted: unknown
        {"direction": "unknown"},  # an absent digit of v1.0
    ],
)
def test_one_failing_condition_is_enough(default, change):
    assert class_of(default, **change) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"pictogram": "arrow_straight_left"},
        {"pictogram": "unknown"},
        {"pictogram": "heart"},  # unlisted: unknown, which is not a pedestrian
        {"orientation": "horizontal"},
        {"aspects": "one_aspect"},
    ],
)
def test_what_the_rule_does_not_ask_about(default, change):
    assert class_of(default, **change) == 0


def test_a_missing_attribute_counts_as_unknown(default):
    assert default.class_of(lamp({k: v for k, v in GREEN.items() if k != "reflection"})) == 0
    assert default.class_of(lamp({k: v for k, v in GREEN.items() if k != "state"})) == 1
    assert default.class_of(lamp({})) == 1


@given(st.fixed_dictionaries({}, optional={k: st.sampled_from((*v, "unknown", "odd")) for k, v in VOCABULARY.items()}))
@settings(max_examples=250)
def test_the_rule_as_the_design_states_it(default, attributes):
    get = attributes.get
    relevant = (
        get("relevance") == "relevant"
        and get("direction") == "front"
        and get("occlusion") == "not_occluded"
        and get("reflection") != "reflected"
        and get("state") in {"red", "yellow", "red_yellow", "green"}
        and get("pictogram") not in {"pedestrian", "bicycle", "pedestrian_bicycle", "tram"}
    )
    assert default.class_of(lamp(attributes)) == (0 if relevant else 1)


def test_the_first_rule_that_holds_decides_and_drop_drops(tmp_path):
    rules = load_rules(
        table(
            tmp_path,
            {
                "classes": ["stop", "go", "other"],
                "rules": [
                    {"class": "drop", "when": {"direction": {"not": ["front"]}}},
                    {"class": "stop", "when": {"state": ["red", "red_yellow"]}},
                    {"class": "go", "when": {"state": ["green"]}},
                    {"class": "other"},
                ],
            },
        ),
    )
    assert rules.class_names == ("stop", "go", "other")
    assert class_of(rules, state="red") == 0
    assert class_of(rules, state="green") == 1
    assert class_of(rules, state="off") == 2
    assert class_of(rules, state="red", direction="back") is None


def test_a_table_may_list_a_value_that_dtld_does_not(tmp_path):
    document = {
        "classes": ["odd", "rest"],
        "rules": [{"class": "odd", "when": {"state": ["purple"]}}, {"class": "rest"}],
    }
    rules = load_rules(table(tmp_path, document))
    assert (class_of(rules, state="purple"), class_of(rules, state="pink")) == (0, 1)


def test_unknown_can_be_asked_for_and_catches_unlisted_values(tmp_path):
    document = {"classes": ["u", "rest"], "rules": [{"class": "u", "when": {"state": ["unknown"]}}, {"class": "rest"}]}
    rules = load_rules(table(tmp_path, document))
    assert (class_of(rules, state="pink"), class_of(rules, state="off")) == (0, 1)


def test_a_yaml_table_may_write_off_without_quotes(tmp_path):
    """YAML 1.1 reads a bare `off` as false; in a rule table it is a state."""
    text = "classes: [dark, lit]\nrules:\n- class: dark\n  when: {state: [off, unknown]}\n- class: lit\n"
    rules = load_rules(table(tmp_path, text, "rules.yaml"))
    assert (class_of(rules, state="off"), class_of(rules, state="red")) == (0, 1)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("", "see rules.schema.json"),
        ("{", "expected a rule table"),
        ([], "see rules.schema.json"),
        ({"classes": ["a"]}, "must contain .*rules"),
        ({"classes": [], "rules": [{"class": "a"}]}, "classes"),
        ({"classes": ["a", "a"], "rules": [{"class": "a"}]}, "classes"),
        ({"classes": ["drop"], "rules": [{"class": "drop"}]}, "classes"),
        ({"classes": ["a"], "rules": []}, "rules"),
        ({"classes": ["a"], "rules": [{"class": "b"}]}, r"rules\[0\]\.class: got 'b', expected a, drop"),
        (
            {"classes": ["a"], "rules": [{"class": "a", "when": {"mood": ["x"]}}, {"class": "a"}]},
            "the attribute 'mood'",
        ),
        ({"classes": ["a"], "rules": [{"class": "a", "when": {"state": ["red"]}}]}, "the last rule has conditions"),
        ({"classes": ["a"], "rules": [{"class": "a", "when": {"state": "red"}}, {"class": "a"}]}, "state"),
        ({"classes": ["a"], "rules": [{"class": "a", "if": {}}]}, "rules"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path, document, message):
    with pytest.raises(RulesError, match=message) as caught:
        load_rules(table(tmp_path, document))
    assert "rules.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_such_table(tmp_path):
    with pytest.raises(RulesError, match=r"nowhere\.json: No such file .*, or a rule table"):
        load_rules(tmp_path / "nowhere.json")
