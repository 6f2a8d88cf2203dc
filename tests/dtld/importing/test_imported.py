"""Which images are one sequence, and which of the source's splits may be kept."""

import pytest

from dtld_tools.errors import DatasetError, UsageError
from dtld_tools.importing.imported import Classes, Imported, Sequences, refuse_names
from dtld_tools.types import Frame, numbered


@pytest.mark.parametrize(
    ("pattern", "path", "sequence"),
    [
        (None, "a.jpg", "-"),
        (None, "train/images/a.jpg", "train_images"),
        (r"(.*)_jpg\.rf", "valid/images/light-1_jpg.rf.3ae1.jpg", "light-1"),
        (r"(.*)_jpg\.rf", "train/images/light-1_jpg.rf.ffff.jpg", "light-1"),  # the name alone: leaks are seen
        (r"^([^/]+)/", "drive_a/front/1.jpg", "drive_a"),
        (r"(.+/.+)/", "drive_a/front/1.jpg", "drive_a_front"),
        (r"(.+)\.", "x/1.2.jpg", "1.2"),
    ],
)
def test_a_sequence_is_the_folder_or_the_first_group(pattern, path, sequence):
    assert Sequences("set", pattern)(path) == ("set", "-", sequence)


@pytest.mark.parametrize(
    ("pattern", "expected"), [("(", "expected a regular expression"), ("abc", "got 'abc', expected a group")]
)
def test_a_pattern_that_means_nothing_is_refused(pattern, expected):
    with pytest.raises(UsageError, match="--sequence-from: ") as error:
        Sequences("set", pattern)
    assert expected in str(error.value)


@pytest.mark.parametrize("pattern", ["(.*)_jpg", "(x*)", "(x)?", "^/(.*)"])
def test_an_image_without_a_sequence_is_refused(pattern):
    with pytest.raises(DatasetError, match=r"finds no sequence in .*, expected one in every image"):
        Sequences("set", pattern)("a/1.jpg")


def imported(splits, pattern=None):
    sequence_of = Sequences("set", pattern)
    frames = tuple(Frame(path, sequence_of(path), None, ()) for path in sorted(splits))
    return Imported("yolo", Classes(("a",)), frames, splits)


def test_the_source_decides_whole_sequences():
    own = imported({"a/1.jpg": ["train"], "a/2.jpg": ["train"], "b/1.jpg": ["val"]}).split_of_sequences()
    assert {sequence.sequence: split for sequence, split in own.items()} == {"a": "train", "b": "val"}


@pytest.mark.parametrize(
    ("splits", "counts"),
    [
        (
            {"a/1.jpg": ["train"], "a/2.jpg": ["train"], "a/3.jpg": ["val"], "b/1.jpg": ["val"]},
            "2 in train and 1 in val",
        ),
        ({"a/1.jpg": ["train", "test"], "b/1.jpg": ["val"]}, "1 in train and 1 in test"),
    ],
)
def test_a_leak_is_an_error_with_its_counts(splits, counts):
    with pytest.raises(DatasetError) as error:
        imported(splits).split_of_sequences()
    assert f"set/-/a: has images in two of the source's splits ({counts}; 1 of 2 sequences have)" in str(error.value)
    assert "give --val and --test" in str(error.value)


def test_every_image_by_itself_is_what_the_message_says():
    splits = {"a/1.jpg": ["train"], "b/1.jpg": ["val"], "1.jpg": ["val"], "a.b/c.d.jpg": ["test"]}
    assert len(imported(splits, r"(.+)\.[^/]*").split_of_sequences()) == 4


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], "got no classes"),
        (["a", "b", "a"], "got 'a' for the classes 0 and 2"),
        ([" "], "got ' '"),
        (["a\nb"], r"got 'a\\n"),
    ],
)
def test_names_differ_and_can_be_printed(names, expected):
    with pytest.raises(DatasetError, match=expected):
        refuse_names(names, "data.yaml: names")


def test_ids_that_repeat_are_numbered():
    assert numbered([]) == []
    assert numbered([3, 3, 5, 3]) == [3, "3#2", 5, "3#3"]
