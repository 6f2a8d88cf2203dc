"""YAML and JSON that a user hands us in, plain values out: dict, list, str, int, float, bool, None.

What the usual readers let pass is refused here: a key that stands twice (one of the two would win without a word),
aliases that stand for millions of values, lists without end in each other, tags, a second document, NUL, text that is
not UTF-8, NaN and infinity, whole numbers beyond 64 bits. Bare words mean what YAML 1.2 says: `off`, `yes` and
`2015-04-17` are text, and so is `007`.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import yaml

MAX_YAML_BYTES = 8 * 2**20  # a data.yaml with 100,000 names has 2 MiB
MAX_JSON_BYTES = 2 * 2**30  # COCO's train2017 instances have 450 MB
MAX_DEPTH = 20  # lists and objects in each other; the deepest file of ours, a plan, needs 6
MAX_REPEATED = 1_000_000  # values that the aliases of a YAML file may stand for: a few lines can ask for billions

_PLAIN_TAGS = (None, "tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map")
_WHOLE = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,999})")
_REAL = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_NO_NUMBER = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_WORDS = {
    **dict.fromkeys(("~", "null", "Null", "NULL", ""), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


class StrictError(ValueError):
    """A file is no YAML or JSON as this module reads it; the message is one line and does not name the file."""


def read_yaml(path: Path) -> Any:
    """The one value of a YAML file. Raises StrictError, and OSError where the file cannot be read."""
    return load_yaml(_read(path, MAX_YAML_BYTES))


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises StrictError, and OSError where the file cannot be read."""
    return load_json(_read(path, MAX_JSON_BYTES))


def read_document(path: Path) -> Any:
    """The value of a file that is JSON by its ending, else YAML. Raises StrictError and OSError."""
    return read_json(path) if path.suffix.lower() == ".json" else read_yaml(path)


def load_yaml(text: bytes | str, bare: Callable[[str], Any] | None = None) -> Any:
    """The one value of a YAML text; None of an empty one. ``bare`` gives the words without quotes their meaning.

    Raises StrictError.

    >>> load_yaml("{names: [red, off], epochs: 3, lr0: 1e-3, soft: true}")
    {'names': ['red', 'off'], 'epochs': 3, 'lr0': 0.001, 'soft': True}
    """
    text = _text(text)
    if len(text) > MAX_YAML_BYTES:
        raise StrictError(f"got {len(text)} characters, expected at most {MAX_YAML_BYTES}")
    try:
        events = yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        next(events)  # of the stream
        if type(next(events)) is yaml.StreamEndEvent:
            return None
        value = Builder(events, bare or word).value(next(events))
        if any(type(event) is yaml.DocumentStartEvent for event in events):
            raise StrictError("got a second document, expected one")
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise StrictError(f"{where}got no YAML: {' '.join(str(reason).split())}") from error
    return value


def load_json(text: bytes | str) -> Any:
    """The value of a JSON text. Raises StrictError.

    >>> load_json('{"a": [1, 2.5, null]}')
    {'a': [1, 2.5, None]}
    """
    text = _text(text)
    try:
        value = orjson.loads(text)
        # Of two equal keys one would be lost: written again, the value has fewer colons.
        if orjson.dumps(value).count(b":") != text.count(":"):
            json.loads(text, object_pairs_hook=refuse_repeated_keys)
    except StrictError:
        raise
    except (ValueError, RecursionError, orjson.JSONEncodeError) as error:
        raise StrictError(f"got no JSON: {' '.join(str(error).split())}") from error
    return value


def refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> None:
    """A hook for `json.loads` that raises StrictError for a key that an object has twice; builds nothing."""
    for key, times in Counter(key for key, _ in pairs).items():
        if times > 1:
            raise StrictError(f"got the key {_short(key)} {times} times in one object, expected it once")


def word(text: str) -> Any:
    """What a YAML word without quotes means. Raises StrictError for NaN, infinity and numbers beyond 64 bits.

    >>> word("12"), word("1.5"), word("~"), word("007"), word("off"), word("true")
    (12, 1.5, None, '007', 'off', True)
    """
    if text in _WORDS:
        return _WORDS[text]
    if _NO_NUMBER.fullmatch(text):
        raise StrictError(f"got {text}, expected a finite number; for the text put it in quotes")
    if _WHOLE.fullmatch(text):
        number = int(text)
        if not -(2**63) <= number < 2**63:
            raise StrictError(f"got {_short(text)}, expected a whole number of 64 bits")
        return number
    if _REAL.fullmatch(text) and not text.lstrip("+-").isdecimal():
        real = float(text)
        if not math.isfinite(real):
            raise StrictError(f"got {_short(text)}, expected a number below 1.8e308")
        return real
    return text


class Builder:
    """Plain values out of YAML's events: no other objects, not deep, and not much more than what is written.

    ``bare`` says what a word without quotes means, ``merges`` whether `<<` brings in the keys of other objects.
    """

    def __init__(self, events: Iterator[yaml.Event], bare: Callable[[str], Any], *, merges: bool = True) -> None:
        self._events, self._bare, self._merges = events, bare, merges
        self._anchors: dict[str, tuple[Any, int]] = {}  # a value and of how many it is made, itself included
        self._values = self._repeated = 0

    def value(self, event: yaml.Event, depth: int = 0) -> Any:
        """The value that begins with ``event``. Raises StrictError."""
        if type(event) is yaml.AliasEvent:
            return self._alias(event)
        if event.tag not in _PLAIN_TAGS:
            raise _wrong(event, f"got the tag {event.tag[:60]}, expected plain data")
        if depth > MAX_DEPTH:
            raise _wrong(event, f"got more than {MAX_DEPTH} lists in each other, expected fewer")
        before = self._values
        self._values += 1
        if type(event) is yaml.ScalarEvent:
            value = self._word(event) if event.implicit[0] else event.value
        else:
            value = [] if type(event) is yaml.SequenceStartEvent else {}
            if event.anchor:
                self._anchors[event.anchor] = (value, 0)  # not yet: a value that holds itself has no end
            self._fill(value, depth + 1)
        if event.anchor:
            self._anchors[event.anchor] = (value, self._values - before)
        return value

    def _word(self, event: yaml.ScalarEvent) -> Any:
        try:
            return self._bare(event.value)
        except StrictError as error:
            raise _wrong(event, str(error)) from None

    def _fill(self, value: list[Any] | dict[Any, Any], depth: int) -> None:
        merged: list[dict[Any, Any]] = []
        for event in self._events:
            if type(event) is yaml.SequenceEndEvent or type(event) is yaml.MappingEndEvent:
                break
            item = self.value(event, depth)
            if type(value) is list:
                value.append(item)
            elif self._merges and item == "<<" and event.implicit[0]:
                merged += self._merge(next(self._events), depth)
            elif isinstance(item, (list, dict)) or item in value:
                raise _wrong(event, f"got {_short(item)} as a key, expected a text that is no other key of this object")
            else:
                value[item] = self.value(next(self._events), depth)
        if isinstance(value, dict):
            for key, item in (pair for other in merged for pair in other.items()):
                value.setdefault(key, item)

    def _merge(self, event: yaml.Event, depth: int) -> list[dict[Any, Any]]:
        found = self.value(event, depth)
        found = found if isinstance(found, list) else [found]
        if not all(isinstance(other, dict) for other in found):
            raise _wrong(event, "got << with something else, expected an object or a list of objects to take keys from")
        return found

    def _alias(self, event: yaml.AliasEvent) -> Any:
        value, size = self._anchors.get(event.anchor, (None, 0))
        if not size:
            raise _wrong(event, f"got the alias *{event.anchor}, expected one of an anchor before it")
        self._values += size
        self._repeated += size
        if self._repeated > MAX_REPEATED:
            raise _wrong(event, f"got aliases for more than {MAX_REPEATED} values, expected them written out")
        return value


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as stream:
        text = stream.read(limit + 1)
    if len(text) > limit:
        raise StrictError(f"got more than {limit >> 20} MiB, expected less")
    return text


def _text(text: bytes | str) -> str:
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise StrictError(f"byte {error.start}: got what is no UTF-8, expected text in UTF-8") from error
    if "\0" in text:
        raise StrictError(f"character {text.index(chr(0))}: got NUL, expected text; the file is damaged, copy it again")
    return text


def _wrong(event: yaml.Event, what: str) -> StrictError:
    return StrictError(f"line {event.start_mark.line + 1}: {what}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
