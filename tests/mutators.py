"""Damage to files by a seeded generator: bytes, lines, and the structure of JSON and YAML; what all fuzzers here share.

In: a `random.Random` and a file's bytes. Out: other bytes, that may be valid. Nothing here grows a file by more than
some tens of kilobytes, and nothing that it plants runs.
"""

from __future__ import annotations

import copy
import io
import json
import zipfile

import yaml

NASTY = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**400, 1e308, -1e308, 5e-324, 0.1, float("inf"),
    float("nan"), "", " ", "red", "0", "\0", "\ud7ff", "a" * 10_000, "../../../../etc/passwd", "/etc/passwd",
    "C:\\a\\b", "./a/b/c/d", "a/b/../d", "Köln/K/s/ä.tiff", "%s%n", [], {}, [[]], [None], {"": None}, {"x": {"y": []}},
)  # fmt: skip


def nodes(value, path=()):
    """The places of a tree of dicts and lists, the tree itself left out."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from nodes(child, (*path, key))


def mutate_structure(rng, document):
    """Replace, remove, repeat or rename up to three places of a tree."""
    document = copy.deepcopy(document)
    for _ in range(rng.randint(1, 3)):
        places = list(nodes(document))
        if not places:
            break
        *parents, key = rng.choice(places)
        holder = document
        for parent in parents:
            holder = holder[parent]
        change = rng.choice(("replace", "replace", "replace", "remove", "repeat", "rename", "wrap"))
        if change == "remove":
            del holder[key]
        elif change == "repeat" and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif change == "rename" and isinstance(holder, dict):
            holder[rng.choice(["", "x", str(key).upper(), f" {key}"])] = holder.pop(key)
        elif change == "wrap":
            holder[key] = rng.choice(([holder[key]], {"a": holder[key]}))
        else:
            holder[key] = rng.choice(NASTY)
    return document


def mutate_bytes(rng, data, most=4):
    """Flip, cut, repeat, insert or truncate in up to ``most`` places."""
    data = bytearray(data)
    for _ in range(rng.randint(1, most)):
        if not data:
            break
        at = rng.randrange(len(data))
        length = min(rng.choice((1, 1, 2, 5, 40)), len(data) - at)
        change = rng.choice(("flip", "flip", "flip", "cut", "repeat", "insert", "truncate"))
        if change == "flip":
            data[at] = rng.randrange(256)
        elif change == "cut":
            del data[at : at + length]
        elif change == "repeat":
            data[at:at] = data[at : at + length] * rng.choice((1, 3))
        elif change == "insert":
            data[at:at] = rng.choice(
                (b"\0", b"\xff\xfe", b"{", b"]", b'"', b"&a *a", b"!!python/name:os.system", b"\n")
            )
        else:
            del data[at:]
    return bytes(data)


# --- whole files -----------------------------------------------------------------------------------------

FORGED = "error: forged"  # no line of output may begin with it: a value with a line break would have made it
PLACE, KEY = "planted_value", "planted_key"

# What no library writes by itself, put into the text where a value was.
RAW_JSON = (
    "NaN", "-Infinity", "1e999", "1E-999", "9" * 5000, "-0", '"\\ud800"', '"\\u0000"', f'"a\\n{FORGED}"', "[" * 3000,
    "[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000, "", "01", "1.0", "'a'", '"\u202e"', "[1, 2", "{}}",
)  # fmt: skip
_BOMB = "[&a0 [x, x, x, x, x, x, x, x, x]" + "".join(f", &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9))
RAW_YAML = (
    "2020-01-01", "2020-13-45", "2001-12-14t21:59:43.10-05:00", '!!int ""', '!!int "x"', '!!float "x"', '!!bool "x"',
    '!!timestamp "x"', '!!binary "x"', "!!set {a, b}", "!!omap [a: 1]", '!!python/name:os.system ""', "!none x", ".nan",
    "-.inf", "0x_", "0b", "0o8", "1_0", "190:20:30", "~", "1e3", "9" * 5000, str(2**200), "[" * 3000,
    "[" * 3000 + "]" * 3000, "{a: " * 3000 + "1" + "}" * 3000, _BOMB + "]", "&a [*a]", "&a {b: *a}", "*gone", '"\\0"',
    f'"a\\n{FORGED}"', '"\\ud800"', "{<<: 1}", "{<<: [{a: 1}]}", "? [a]", "{[a]: b}", "[a, b", '"', "|", "\t",
    "@x", "%x", "yes", "", "'\u202e'", "--- 1", "...",
)  # fmt: skip
LINES = (
    b"", b" ", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"#", b"- ", b"a: b", b"---", b"nan nan nan nan nan", b"9" * 5000,
    b"0 0.5 0.5 0.1 0.1", b"7 0.5 0.5 0.1 0.1", b"0 0.5 0.5 0.1 0.1 0.9", b"../x.png", b"a,b,c", b"{", b"[]", b'"',
)  # fmt: skip


def mutate_lines(rng, data):
    """Repeat, drop, swap, cut or insert up to three lines."""
    lines = data.split(b"\n")
    for _ in range(rng.randint(1, 3)):
        at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
        change = rng.choice(("repeat", "drop", "swap", "cut", "insert"))
        if change == "repeat":
            lines.insert(other, lines[at])
        elif change == "drop" and len(lines) > 1:
            del lines[at]
        elif change == "swap":
            lines[at], lines[other] = lines[other], lines[at]
        elif change == "cut":
            lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)]
        else:
            lines.insert(at, rng.choice(LINES))
    return b"\n".join(lines)


def plant(rng, document, dump, raws):
    """A document's text with raw text in the place of a value, or with a key that stands there already."""
    document = copy.deepcopy(document)
    places = list(nodes(document)) or [()]
    *parents, key = rng.choice(places) or (None,)
    holder = document
    for parent in parents:
        holder = holder[parent]
    if isinstance(holder, dict) and rng.random() < 0.2:
        holder[KEY] = rng.choice((holder[key], *NASTY[:8]))
        return dump(document).replace(KEY, str(key))
    raw = rng.choice(raws)
    if not isinstance(holder, dict | list):
        return raw
    holder[key] = PLACE
    text = dump(document)
    return text.replace(f'"{PLACE}"' if f'"{PLACE}"' in text else PLACE, raw, 1)


def _dump_yaml(document):
    return yaml.dump(document, sort_keys=False)


def _mutate_document(rng, data, load, dump, raws):
    document = load(data)
    if rng.random() < 0.5:
        return dump(mutate_structure(rng, document)).encode(errors="surrogatepass")
    return plant(rng, document, dump, raws).encode(errors="surrogatepass")


def _mutate_jsonl(rng, data):
    lines = data.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = _mutate_document(rng, lines[at], json.loads, json.dumps, RAW_JSON)
    return b"\n".join(lines) + b"\n"


def _mutate_zip(rng, data):
    """Damage one entry of an archive, most often the pickle of a checkpoint, and write the archive anew."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        names = old.namelist()
        pickles = [name for name in names if name.endswith("data.pkl")]
        chosen = rng.choice(pickles or names) if rng.random() < 0.8 else rng.choice(names)
        for name in names:
            entry = old.read(name)
            new.writestr(name, mutate_bytes(rng, entry) if name == chosen else entry)
    return made.getvalue()


def _mutate_edge(rng, data):
    """Damage where a header is: the first or the last 300 bytes."""
    if rng.random() < 0.5:
        return mutate_bytes(rng, data[:300]) + data[300:]
    return data[:-300] + mutate_bytes(rng, data[-300:])


FORMS = {
    "image": (mutate_bytes, _mutate_edge),
    "text": (mutate_bytes, mutate_lines),
    "json": (
        mutate_bytes,
        mutate_lines,
        *[lambda rng, data: _mutate_document(rng, data, json.loads, json.dumps, RAW_JSON)] * 3,
    ),
    "jsonl": (mutate_bytes, mutate_lines, *[_mutate_jsonl] * 3),
    "yaml": (
        mutate_bytes,
        mutate_lines,
        *[lambda rng, data: _mutate_document(rng, data, yaml.safe_load, _dump_yaml, RAW_YAML)] * 3,
    ),
    "pt": (mutate_bytes, _mutate_edge, _mutate_zip, _mutate_zip),
}


def mutate(rng, data, form):
    """A file's bytes, damaged in a way that suits its form."""
    return rng.choice(FORMS[form])(rng, data)
