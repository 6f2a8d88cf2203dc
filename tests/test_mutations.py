"""300 damaged files and hostile options through every reader of both tools: read, or refused in one line of ours.

The same with many more: `make bench-mutations`. The check itself is checked here: it must find what it is to find.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import time

import pytest

from tests.hostile import MOST_MIB, Answer, Unending, answer, complaint, snapshot
from tests.mutated_readers import READERS, Reader, damaged, hostile_options, undamaged, write_world
from tests.mutators import FORGED

SEED, FILES, OPTIONS = 0, 4, 52  # of each reader, of each tool

HAS_KD = importlib.util.find_spec("ultralytics") is not None
HAS_IMAGEHASH = importlib.util.find_spec("imagehash") is not None
TOOLS = ("dtld", "kd") if HAS_KD else ("dtld",)
OF_TOOLS = [reader for reader in READERS if reader.tool in TOOLS]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Sound inputs of every reader."""
    return write_world(tmp_path_factory.mktemp("mutations") / "world", TOOLS)


def name(reader: Reader) -> str:
    return f"{reader.tool}: {reader.name}"


@pytest.mark.parametrize("tool", TOOLS)
def test_a_sound_file_is_read(world, tool):
    for case in undamaged(world, tool):
        refused = "--near-duplicates" in case.words and not HAS_IMAGEHASH  # in one line that names the extra
        assert (case.found.code, case.defect) == (2 if refused else 0, None), (case.words, case.found)


@pytest.mark.parametrize("reader", OF_TOOLS, ids=name)
def test_a_damaged_file_is_read_or_refused_in_one_line(world, reader):
    for case in damaged(world, reader, SEED, FILES):
        assert case.defect is None, (case.words, case.content)


@pytest.mark.parametrize("tool", TOOLS)
def test_a_hostile_option_is_taken_or_refused_in_one_line(world, tool):
    codes = set()
    for case in hostile_options(world, tool, SEED, OPTIONS):
        assert case.defect is None, case.words
        codes.add(case.found.code)
    assert {0, 2} <= codes  # words are neither all refused nor all taken


def test_300_inputs_in_all():
    assert FILES * len(READERS) + OPTIONS * 2 == 300


# --- the check itself ------------------------------------------------------------------------------------

GOOD = Answer(1, "", "error: a.txt: got 1, expected 2\n", 0.1, 1.0)


def test_what_the_contract_allows():
    assert complaint(GOOD) is None
    assert complaint(Answer(0, "a: 3 images\n", "warning: b\nskipped: c\n", 0.1, 1.0)) is None
    assert complaint(Answer(2, "", "Usage: kd train\nError: Invalid value\n", 0.1, 1.0)) is None


@pytest.mark.parametrize(
    ("answered", "words"),
    [
        (Answer(1, "", "error: KeyError (a defect of kd; please report it with --debug): 3\n", 0, 0), "a defect line"),
        (Answer(1, "", "", 0, 0), "without an error line"),
        (Answer(3, "", GOOD.err, 0, 0), "exit 3"),
        (Answer(1, "", "libpng error: bad\n" + GOOD.err, 0, 0), "not ours"),
        (Answer(0, "", "Corrupt JPEG data\n", 0, 0), "not ours"),
        (Answer(1, "", "error: got \x1b[31mred\n", 0, 0), "not printable"),
        (Answer(0, "class \u202e: 3\n", "", 0, 0), "not printable"),
        (Answer(0, f"class a\n{FORGED}: 3\n", "", 0, 0), "forged"),
        (Answer(1, "", f"error: {'a' * 2000}\n", 0, 0), "letters"),
        (Answer(1, "", "error: MemoryError\n", 0, 0), "out of memory"),
        (Answer(0, "", "", 9.0, 0), "9.0 s"),
        (Answer(0, "", "", 0, MOST_MIB + 1), "1025 MiB"),
    ],
)
def test_what_the_contract_does_not_allow(answered, words):
    assert words in complaint(answered)


def test_a_command_that_never_ends_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.hostile.MOST_SECONDS", -0.8)  # a second on top

    def run(words):
        while True:
            with contextlib.suppress(Exception):  # as a command may have it somewhere
                time.time()

    found = answer(run, (), tmp_path)
    assert found.code == -1
    assert "still at work" in complaint(found)


def test_what_a_library_prints_from_python_is_heard_and_what_c_prints_is_lost(tmp_path):
    found = answer(lambda words: (os.write(2, b"from C\n"), print("from Python", file=sys.stderr)), (), tmp_path)
    assert (found.err, complaint(found) is None) == ("from Python\n", False)


def test_memory_is_measured(tmp_path):
    found = answer(lambda words: bytearray(b"x" * 200 * 2**20) and None, (), tmp_path)
    assert 150 < found.mib < 900


def test_a_touched_input_is_seen(tmp_path):
    (tmp_path / "a").write_text("1")
    before = snapshot(tmp_path)
    assert snapshot(tmp_path) == before
    (tmp_path / "a").write_text("2")
    assert snapshot(tmp_path) != before
    assert not issubclass(Unending, Exception)
