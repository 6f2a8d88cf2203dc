"""schemas/label_v2.schema.json and the parser agree, both ways, on values made from the schema.

Three rules are the parser's alone, for JSON Schema cannot say them or says them clumsily: a path ends in
City/Route/Sequence/file, numbers are within 1e15 and ids within 2^63, and no key stands twice.
"""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator

import schemas
from dtld_tools.errors import LabelError
from dtld_tools.labels.parse import read_labels

SCHEMA = schemas.load("label_v2")
CHECK = Draft7Validator(SCHEMA)
PATH = "Berlin/Berlin1/2015-04-17_10-50-05/a_k0.tiff"
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
NUMBERS = st.integers(-(2**40), 2**40) | st.floats(-1e15, 1e15)
ODD = st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from([0.5, 1.0, "1", "", [], {}, [1], {"x": 1}])


def values_of(schema):
    """A strategy of values that satisfy a schema: of the keywords that the label schema has, no more."""
    assert set(schema) <= {
        "$schema", "title", "description", "type", "required", "properties", "items", "minItems", "examples",
        "additionalProperties",
    }  # fmt: skip
    if "type" not in schema:
        return ODD
    kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    return st.one_of(*(_of_kind(kind, schema) for kind in kinds))


def _of_kind(kind, schema):
    if kind == "object":
        required = {name: values_of(schema["properties"][name]) for name in schema.get("required", ())}
        optional = {name: values_of(part) for name, part in schema["properties"].items() if name not in required}
        made = st.fixed_dictionaries(required, optional=optional)
        further = schema.get("additionalProperties", {"type": "string"})
        return st.builds(
            lambda more, known: {**more, **known}, st.dictionaries(TEXTS, values_of(further), max_size=1), made
        )
    if kind == "array":
        return st.lists(values_of(schema["items"]), min_size=schema.get("minItems", 0), max_size=2)
    if kind == "integer":
        return st.integers(-(2**63) + 1, 2**63 - 1) | st.sampled_from([1.0, -2.0, float(2**53)])
    if kind == "string":
        return TEXTS | st.sampled_from(schema.get("examples", [""]))
    return {"number": NUMBERS, "boolean": st.booleans(), "null": st.none()}[kind]


def places(value, at=()):
    """Every place of a tree, as keys from its top."""
    yield at
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*at, key))


def read(tmp_path_factory, document):
    """Whether the parser takes the document, with a path that it takes under each image of the right kind."""
    if isinstance(document, dict) and isinstance(document.get("images"), list):
        for number, entry in enumerate(document["images"]):
            if isinstance(entry, dict) and isinstance(entry.get("image_path"), str):
                entry["image_path"] = PATH.replace("a_k0", f"a{number}_k0")
    path = tmp_path_factory.mktemp("labels") / "all.json"
    path.write_text(json.dumps(document))
    try:
        read_labels([path])
    except LabelError:
        return False
    return True


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(document=values_of(SCHEMA))
def test_what_the_schema_allows_is_read(tmp_path_factory, document):
    assert CHECK.is_valid(document)
    assert read(tmp_path_factory, document)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(document=values_of(SCHEMA), odd=ODD, data=st.data())
def test_one_odd_value_is_judged_alike(tmp_path_factory, document, odd, data):
    *parents, last = data.draw(st.sampled_from([place for place in places(document) if place]))
    part = document
    for key in parents:
        part = part[key]
    part[last] = odd
    assert read(tmp_path_factory, document) == CHECK.is_valid(document)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(document=values_of(SCHEMA), data=st.data())
def test_one_missing_key_is_judged_alike(tmp_path_factory, document, data):
    *parents, last = data.draw(st.sampled_from([place for place in places(document) if place]))
    part = document
    for key in parents:
        part = part[key]
    del part[last]
    assert read(tmp_path_factory, document) == CHECK.is_valid(document)


@pytest.mark.parametrize("number", [1.0, -3.0])
def test_a_whole_number_with_a_point_is_one_to_both(tmp_path_factory, number):
    assert CHECK.is_valid(
        {
            "images": [
                {
                    "image_path": PATH,
                    "labels": [{"x": 1, "y": 2, "w": 3, "h": 4, "attributes": {}, "unique_id": number}],
                }
            ]
        }
    )
