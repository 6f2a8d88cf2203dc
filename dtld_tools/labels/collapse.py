"""Attributes in, class out: the rule table is data (rules.json), this module only applies it.

Invariant: every light gets exactly one class number, or is dropped by a rule that says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import fastjsonschema

import schemas
from dtld_tools.errors import RulesError
from dtld_tools.labels.attributes import VOCABULARY
from dtld_tools.types import Light
from schemas.strict import StrictError, load_yaml

DROP = "drop"
#: The tables that come with the package, by name; paper is the seed paper's two classes.
SHIPPED = {
    "paper": "rules.json",
    "states": "rules_states.json",
    "states-and-pictograms": "rules_states_and_pictograms.json",
}


class Rules:
    """An ordered table of conditions on attributes; the first rule that holds names the class.

    A missing attribute and a value that neither the vocabulary nor the table lists count as ``unknown``.
    """

    def __init__(self, table: Mapping[str, Any], source: str) -> None:
        """Check and compile a table of the form of schemas/rules.schema.json. Raises RulesError."""
        _check(table, source)
        self.table = table
        self.class_names: tuple[str, ...] = tuple(table["classes"])
        self._rules = [(rule["class"], _conditions(rule.get("when", {}))) for rule in table["rules"]]
        self._values = {name: set(values) for name, values in VOCABULARY.items()}
        for _, conditions in self._rules:
            for name, values, _ in conditions:
                self._values[name] |= values
        self._cache: dict[int, tuple[Mapping[str, str], int | None]] = {}

    def class_of(self, light: Light) -> int | None:
        """The light's class number; None if a rule drops it."""
        # Lights share their attribute mappings (parse), so an identity cache answers nearly every call.
        cached = self._cache.get(id(light.attributes))
        if cached is None or cached[0] is not light.attributes:
            cached = self._cache[id(light.attributes)] = (light.attributes, self._decide(light.attributes))
        return cached[1]

    def attributes_of(self, light: Light) -> dict[str, str]:
        """The light's attributes as the label file has them; a dict, for lines of JSON and other processes."""
        return dict(light.attributes)

    def _decide(self, attributes: Mapping[str, str]) -> int | None:
        for class_name, conditions in self._rules:
            if all((self._value(attributes, name) in values) == expected for name, values, expected in conditions):
                return None if class_name == DROP else self.class_names.index(class_name)
        raise AssertionError("unreachable: the last rule has no conditions")

    def _value(self, attributes: Mapping[str, str], name: str) -> str:
        value = attributes.get(name, "unknown")
        return value if value in self._values[name] else "unknown"


def load_rules(path: Path | None) -> Rules:
    """The table in a JSON or YAML file, or one that is `SHIPPED` (None: paper). Raises RulesError."""
    file = rules_file(path)
    source = file or files("dtld_tools").joinpath(SHIPPED[str(path or "paper")])
    try:
        # JSON is YAML, too. Every word is text: a bare `off`, which is a state here, or a value that is called 1.
        table = load_yaml(source.read_bytes(), bare=str)
    except OSError as error:
        raise RulesError(
            f"{source}: {error.strerror or error}; expected {', '.join(SHIPPED)}, or a rule table in JSON or YAML"
        ) from error
    except StrictError as error:
        raise RulesError(f"{source}: {error}; expected a rule table in JSON or YAML") from error
    return Rules(table, str(source))


def rules_file(path: Path | None) -> Path | None:
    """The file of a user's own table; None for one that is `SHIPPED`."""
    return None if path is None or str(path) in SHIPPED else path


def _conditions(when: Mapping[str, Any]) -> list[tuple[str, set[str], bool]]:
    """(attribute, values, True if the value must be one of them or False if it must not)."""
    return [
        (name, set(test["not"]), False) if isinstance(test, Mapping) else (name, set(test), True)
        for name, test in when.items()
    ]


def _check(table: Any, source: str) -> None:
    try:
        fastjsonschema.validate(schemas.load("rules"), table)
    except fastjsonschema.JsonSchemaValueException as error:
        raise RulesError(f"{source}: {error.message.replace('data', 'table', 1)}; see rules.schema.json") from error
    for index, rule in enumerate(table["rules"]):
        if rule["class"] not in (*table["classes"], DROP):
            expected = ", ".join((*table["classes"], DROP))
            raise RulesError(f"{source}: rules[{index}].class: got {rule['class']!r}, expected {expected}")
        for name in rule.get("when", {}):
            if name not in VOCABULARY:
                raise RulesError(
                    f"{source}: rules[{index}].when: got the attribute {name!r}, expected {', '.join(VOCABULARY)}"
                )
    if table["rules"][-1].get("when"):
        raise RulesError(
            f"{source}: the last rule has conditions, expected none, so that every light finds a class; "
            "add a last rule with a class (or drop) alone"
        )
