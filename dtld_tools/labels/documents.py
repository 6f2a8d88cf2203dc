"""A JSON or YAML file in, the items of its one list out, one at a time: the only expert in how label files are written.

What comes out is plain: dict, list, str, int, float, bool, None. No more than one item exists at a time, so memory
depends on the largest item (and, in JSON, on the file's size in bytes), not on how many there are.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from reprlib import Repr
from typing import Any

import msgspec
import orjson
import yaml

from dtld_tools.errors import LabelError
from schemas import strict

# What YAML 1.1 reads from a bare word, as far as labels need it. The rest (yes, 0x1F, 1:30, dates) stays text, as do
# leading zeros, which make a number octal in YAML 1.1 and not in 1.2.
_BARE = re.compile(
    r"(?P<whole>[-+]?(?:0|[1-9][0-9]{0,999}))"
    r"|(?P<real>[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]+)?)"
    r"|(?P<null>~|null|Null|NULL|)"
)

_repr = Repr()  # bounded: a wrong value may be as large as its file, or hold itself
_repr.maxlevel, _repr.maxstring, _repr.maxother = 2, 60, 60


def json_items(path: Path, key: str) -> Iterator[bytes]:
    """The items of the list under ``key`` of a JSON file, as text: msgspec finds where each begins and ends.

    Raises LabelError.
    """
    try:
        text = path.read_bytes().removeprefix(codecs.BOM_UTF8)
        if not text or text.isspace():
            raise _empty(path)
        try:
            items = getattr(msgspec.json.decode(text, type=msgspec.defstruct("_Top", [(key, list[msgspec.Raw])])), key)
        except msgspec.ValidationError:  # JSON, but of another form
            as_list(get(as_object(orjson.loads(text), path.name), key, path.name), f"{path.name}: {key}")
            raise
        if text.count(b'"%b"' % key.encode()) > 1:
            json.loads(text, object_pairs_hook=strict.refuse_repeated_keys)
        yield from map(bytes, items)
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, RecursionError) as error:  # ValueError: also what msgspec and orjson raise
        raise LabelError(f"{path}: {error}, expected a whole v2.0 JSON file; copy it again") from error


def json_value(text: bytes) -> Any:
    """The value of an item of `json_items`. Raises LabelError, also for a key that an object has twice."""
    try:
        value = orjson.loads(text)
        # Of two equal keys one would be lost without a word: written again, the value has fewer colons.
        if orjson.dumps(value).count(b":") != text.count(b":"):
            json.loads(text, object_pairs_hook=strict.refuse_repeated_keys)
    except (ValueError, RecursionError, orjson.JSONEncodeError) as error:
        raise LabelError(f": {error}, expected a whole v2.0 JSON file; copy it again") from error
    return value


def yaml_items(path: Path) -> Iterator[Any]:
    """The items of the list that a YAML file is. Raises LabelError."""
    try:
        with path.open("rb") as stream:
            events = yaml.parse(stream, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            _, _, first = next(events), next(events), next(events, None)  # of the stream, its document, the list
            if first is None:
                raise _empty(path)
            if type(first) is not yaml.SequenceStartEvent:
                got = short(first.value) if type(first) is yaml.ScalarEvent else "an object with named keys"
                raise LabelError(f"{path.name}: got {got}, expected a list")
            builder = strict.Builder(events, _bare, merges=False)
            for event in events:
                if type(event) is yaml.SequenceEndEvent:
                    break
                yield builder.value(event)
            if any(type(event) is yaml.DocumentStartEvent for event in events):
                raise ValueError("got a second document, expected one")
    except OSError as error:
        raise _unreadable(path, error) from error
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise LabelError(f"{path}: {reason}; expected a whole v1.0 YAML file; copy it again") from error


def _bare(word: str) -> str | int | float | None:
    """What a word without quotes means.

    >>> _bare("12"), _bare("1.5"), _bare("~"), _bare("007"), _bare("off")
    (12, 1.5, None, '007', 'off')
    """
    match = _BARE.fullmatch(word)
    kind = match.lastgroup if match else None
    return int(word) if kind == "whole" else float(word) if kind == "real" else None if kind == "null" else word


def as_object(value: Any, where: str) -> dict[Any, Any]:
    """``value`` if it is a dict. Raises LabelError, as all of these."""
    if not isinstance(value, dict):
        raise LabelError(f"{where}: got {short(value)}, expected an object with named keys")
    return value


def as_list(value: Any, where: str) -> list[Any]:
    """``value`` if it is a list."""
    if not isinstance(value, list):
        raise LabelError(f"{where}: got {short(value)}, expected a list")
    return value


def get(values: dict[Any, Any], key: str, where: str) -> Any:
    """The value of a key that must be there."""
    try:
        return values[key]
    except KeyError:
        found = ", ".join(str(name)[:60] for name in list(values)[:20]) or "nothing"
        raise LabelError(f"{where}: missing key '{key}'; found {found}") from None


def short(value: Any) -> str:
    """A value as Python writes it, cut to what fits in an error line."""
    try:
        text = _repr.repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _empty(path: Path) -> LabelError:
    return LabelError(f"{path}: the file is empty, expected DTLD labels; copy it again")


def _unreadable(path: Path, error: OSError) -> LabelError:
    return LabelError(f"{path}: {error.strerror or error}, expected a label file (.json or .yml)")
