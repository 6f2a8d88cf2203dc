"""Splits: whole groups only, a group for every share, the same answer whatever the order."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtld_tools.errors import DatasetError, UsageError
from dtld_tools.planning.split import SplitSpec, assign_splits
from dtld_tools.types import SequenceId


def sequences(cities=3, routes=2, per_route=4, frames=10):
    return {
        SequenceId(f"City{c}", f"City{c}{r}", f"2015-{s:02d}"): frames
        for c in range(cities)
        for r in range(routes)
        for s in range(per_route)
    }


def shares(chosen, frames):
    total = Counter()
    for sequence, split in chosen.items():
        total[split] += frames[sequence]
    return total


def test_shares_are_of_frames():
    frames = sequences(per_route=20)  # 120 sequences of 10 frames
    assert shares(assign_splits(frames, SplitSpec(0.1, 0.2), 0), frames) == {"train": 840, "val": 120, "test": 240}


def test_a_long_sequence_counts_by_its_frames():
    frames = {SequenceId("A", "A1", str(n)): 1 for n in range(50)} | {SequenceId("A", "A1", "long"): 50}
    chosen = assign_splits(frames, SplitSpec(0.0, 0.3), 3)
    assert shares(chosen, frames)["test"] in (30, *range(50, 80))  # thirty short ones, or until the long one fills it


def test_zero_shares_leave_all_in_train():
    frames = sequences()
    assert set(assign_splits(frames, SplitSpec(0, 0), 0).values()) == {"train"}


def test_the_same_folder_name_in_two_cities_is_two_sequences():
    frames = {SequenceId(city, "1", "2015"): 5 for city in "ABCDEFGH"}
    assert len(set(assign_splits(frames, SplitSpec(0.2, 0.2), 0).values())) == 3


@st.composite
def problems(draw):
    names = draw(st.lists(st.tuples(*[st.sampled_from("abcd")] * 3), min_size=3, max_size=30, unique=True))
    frames = {SequenceId(*name): draw(st.integers(1, 20)) for name in names}
    spec = SplitSpec(
        draw(st.sampled_from([0, 0.01, 0.3])),
        draw(st.sampled_from([0, 0.05, 0.6])),
        draw(st.sampled_from(["sequence", "route", "city"])),
    )
    return frames, spec, draw(st.integers(0, 5))


@given(problems())
def test_splits_never_divide_a_group_and_each_share_gets_one(problem):
    frames, spec, seed = problem
    depth = {"city": 1, "route": 2, "sequence": 3}[spec.by]
    groups = {sequence[:depth] for sequence in frames}
    wanted = {"train", *(["val"] if spec.val else []), *(["test"] if spec.test else [])}
    try:
        chosen = assign_splits(frames, spec, seed)
    except DatasetError:
        assert len(groups) < len(wanted)
        return
    assert set(chosen) == set(frames)
    assert set(chosen.values()) == wanted
    assert len({(sequence[:depth], split) for sequence, split in chosen.items()}) == len(groups)


@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_the_sequences_does_not_matter(problem, shuffler):
    frames, spec, seed = problem
    shuffled = list(frames.items())
    shuffler.shuffle(shuffled)
    try:
        assert assign_splits(dict(shuffled), spec, seed) == assign_splits(frames, spec, seed)
    except DatasetError:
        return


def test_the_seed_decides():
    frames = sequences()
    spec = SplitSpec(0.2, 0.2)
    assert assign_splits(frames, spec, 1) == assign_splits(frames, spec, 1)
    assert len({tuple(sorted(assign_splits(frames, spec, seed).items())) for seed in range(5)}) > 1


def test_a_share_is_met_as_soon_as_groups_allow():
    """Groups are drawn until the share is reached, never one more."""
    frames = sequences()
    for seed in range(20):
        random.Random(seed).shuffle(order := list(frames))
        counts = shares(assign_splits({s: frames[s] for s in order}, SplitSpec(0.1, 0.25), seed), frames)
        assert counts == {"train": 150, "val": 30, "test": 60}  # of 240: 24 -> 3 groups of 10, 60 -> 6 groups


@pytest.mark.parametrize(("by", "groups"), [("sequence", 1), ("route", 1), ("city", 2)])
def test_fewer_groups_than_splits_names_the_options(by, groups):
    frames = {SequenceId(f"City{n}", "r", "s"): 5 for n in range(groups)}
    with pytest.raises(DatasetError, match=rf"{groups} group.*by {by}.*--val 0 or --test 0.*--split-by"):
        assign_splits(frames, SplitSpec(0.1, 0.2, by), 0)


def test_listed_cities_decide_before_shares():
    frames = sequences(cities=4)
    chosen = assign_splits(frames, SplitSpec(0.1, 0.2, test_cities=("City1", "City3")), 0)
    assert all((split == "test") == (sequence.city in ("City1", "City3")) for sequence, split in chosen.items())
    assert set(chosen.values()) == {"train", "val", "test"}
    both = assign_splits(frames, SplitSpec(0.1, 0.2, val_cities=("City0",), test_cities=("City1",)), 0)
    assert {s.city: split for s, split in both.items()} == {
        "City0": "val",
        "City1": "test",
        "City2": "train",
        "City3": "train",
    }


def test_listed_cities_must_exist_and_leave_something():
    with pytest.raises(DatasetError, match="--test-cities: no frames of Atlantis, expected some of City0, City1"):
        assign_splits(sequences(cities=2), SplitSpec(test_cities=("Atlantis",)), 0)
    with pytest.raises(DatasetError, match=r"got 0 group"):
        assign_splits(sequences(cities=2), SplitSpec(test_cities=("City0",), val_cities=("City1",)), 0)


def test_a_split_file_decides_alone(tmp_path):
    frames = {SequenceId("A", "A1", "x"): 5, SequenceId("B B", "B1", "y"): 5}
    path = tmp_path / "splits.txt"
    path.write_text("# mine\n\nA/A1/x test\n  B B/B1/y   train  \nC/C1/unused val\n")
    assert assign_splits(frames, SplitSpec(split_file=path), 0) == {
        SequenceId("A", "A1", "x"): "test",
        SequenceId("B B", "B1", "y"): "train",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A/A1/x validation\n", r"line 1: got 'A/A1/x validation', expected 'City/Route/Sequence train\|val\|test'"),
        ("A/A1/x\n", "line 1"),
        ("\nA/x train\n", "line 2"),
        ("A/A1/x train\nA/A1/x val\n", "line 2: A/A1/x is in train and in val"),
        ("B/B1/y train\n", r"no line for A/A1/x \(1 missing in all\)"),
    ],
)
def test_a_wrong_split_file_is_named_by_its_line(tmp_path, text, message):
    path = tmp_path / "splits.txt"
    path.write_text(text)
    with pytest.raises(DatasetError, match=message):
        assign_splits({SequenceId("A", "A1", "x"): 5}, SplitSpec(split_file=path), 0)


def test_no_such_split_file(tmp_path):
    with pytest.raises(DatasetError, match=r"nowhere\.txt.*expected lines"):
        assign_splits({SequenceId("A", "A1", "x"): 5}, SplitSpec(split_file=tmp_path / "nowhere.txt"), 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val": -0.1}, "--val: got -0.1"),
        ({"test": 1.0}, "--test: got 1.0"),
        ({"val": float("nan")}, "--val: got nan"),
        ({"val": 0.5, "test": 0.5}, "--val \\+ --test: got 1"),
        ({"val_cities": ("A",), "test_cities": ("A", "B")}, "A stands in both"),
        ({"split_file": "x", "test_cities": ("A",)}, "--split-file"),
    ],
)
def test_a_spec_is_checked_when_made(changes, message):
    with pytest.raises(UsageError, match=message):
        SplitSpec(**changes)
