"""Sequences in, splits out: whole groups only, so that neighbouring frames are never apart.

Invariant: no sequence is in two splits, and the answer depends on the seed and the names alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dtld_tools.errors import DatasetError, UsageError
from dtld_tools.types import SPLITS, SequenceId, Split

GroupBy = Literal["sequence", "route", "city"]


@dataclass(frozen=True, slots=True)
class SplitSpec:
    """Which sequences go where: a file decides alone; else label files and cities first, then shares of frames.

    ``val_labels`` and ``test_labels`` are label files whose sequences make up that split, beside those of a selection.
    """

    val: float = 0.1
    test: float = 0.2
    by: GroupBy = "sequence"
    val_cities: tuple[str, ...] = ()
    test_cities: tuple[str, ...] = ()
    split_file: Path | None = None
    val_labels: tuple[Path, ...] = ()
    test_labels: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        for option, share in (("--val", self.val), ("--test", self.test)):
            if not 0 <= share < 1:
                raise UsageError(f"{option}: got {share}, expected a share of the frames from 0 to below 1")
        if self.val + self.test >= 1:
            raise UsageError(f"--val + --test: got {self.val + self.test:g}, expected below 1: train needs frames")
        if both := set(self.val_cities) & set(self.test_cities):
            raise UsageError(f"--val-cities, --test-cities: {', '.join(sorted(both))} stands in both")
        if self.split_file and (self.val_cities or self.test_cities or self.val_labels or self.test_labels):
            raise UsageError("--split-file: decides alone; leave out the options with cities and labels")


def assign_splits(
    frames_per_sequence: Mapping[SequenceId, int],
    spec: SplitSpec,
    seed: int,
    decided: Mapping[SequenceId, Split] | None = None,
) -> dict[SequenceId, Split]:
    """The split of every sequence, given how many frames each has; label files have ``decided`` some of them.

    Groups are drawn in a seeded order until a share is reached; a split that asked for a share gets at least
    one group. Raises DatasetError if there are fewer groups than splits, or a listed city or sequence is missing.
    """
    if spec.split_file:
        return _from_file(frames_per_sequence, spec.split_file)
    chosen = _from_cities(frames_per_sequence, spec)
    decided = decided or {}
    for sequence in sorted(set(frames_per_sequence) & set(decided)):
        if chosen.setdefault(sequence, decided[sequence]) != decided[sequence]:
            raise DatasetError(
                f"{sequence}: is in {chosen[sequence]} by its city and in {decided[sequence]} by its label file; "
                "leave out one of the two options"
            )
    groups: dict[tuple[str, ...], list[SequenceId]] = {}
    for sequence in frames_per_sequence:
        if sequence not in chosen:
            depth = {"city": 1, "route": 2, "sequence": 3}[spec.by]
            groups.setdefault(sequence[:depth], []).append(sequence)

    # A split whose cities or label files are listed has what it asked for; the others share the rest.
    shares: dict[Split, float] = {}
    if spec.test and not (spec.test_cities or spec.test_labels):
        shares["test"] = spec.test
    if spec.val and not (spec.val_cities or spec.val_labels):
        shares["val"] = spec.val
    if len(groups) < len(shares) + 1:
        raise DatasetError(
            f"got {len(groups)} group(s) by {spec.by} for {', '.join(('train', *shares))}, "
            f"expected at least {len(shares) + 1}; "
            "set --val 0 or --test 0, choose a finer --split-by, or give more labels (of an import, or --sequence-from)"
        )
    total = sum(frames_per_sequence.values())
    order = sorted(groups, key=lambda group: _rank(seed, group))
    waiting = len(shares)  # splits after the current one that still need a group, train included
    for split, share in shares.items():
        drawn = 0
        while drawn == 0 or (drawn < share * total - 1e-9 and len(order) > waiting):
            for sequence in groups[order.pop(0)]:
                chosen[sequence] = split
                drawn += frames_per_sequence[sequence]
        waiting -= 1
    for group in order:
        chosen.update(dict.fromkeys(groups[group], "train"))
    return chosen


def from_label_files(
    sequences_of: Mapping[Split, Mapping[SequenceId, int]], all_frames: Mapping[SequenceId, int]
) -> dict[SequenceId, Split]:
    """The split of each sequence of the splits' label files, given how many frames each has there and in all.

    Raises DatasetError for a sequence that is divided: its frames are nearly the same picture.
    """
    decided: dict[SequenceId, Split] = {}
    for split, counts in sequences_of.items():
        for sequence, count in counts.items():
            if count != all_frames[sequence] or sequence in decided:
                others = f"{decided[sequence]} labels" if sequence in decided else "labels of other splits"
                raise DatasetError(
                    f"{sequence}: stands in the {split} labels and in {others}, expected in one split alone; "
                    "its frames are nearly the same picture"
                )
            decided[sequence] = split
    return decided


def _from_cities(frames_per_sequence: Mapping[SequenceId, int], spec: SplitSpec) -> dict[SequenceId, Split]:
    cities = {sequence.city for sequence in frames_per_sequence}
    chosen: dict[SequenceId, Split] = {}
    listed_cities: tuple[tuple[str, Split, tuple[str, ...]], ...] = (
        ("--test-cities", "test", spec.test_cities),
        ("--val-cities", "val", spec.val_cities),
    )
    for option, split, listed in listed_cities:
        if unknown := set(listed) - cities:
            raise DatasetError(
                f"{option}: no frames of {', '.join(sorted(unknown))}, expected some of {', '.join(sorted(cities))}"
            )
        chosen.update({sequence: split for sequence in frames_per_sequence if sequence.city in listed})
    return chosen


def _from_file(frames_per_sequence: Mapping[SequenceId, int], path: Path) -> dict[SequenceId, Split]:
    """Lines ``City/Route/Sequence split``; blank lines and lines that begin with # are skipped."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DatasetError(f"{path}: {reason}; expected lines 'City/Route/Sequence train'") from error
    listed: dict[SequenceId, Split] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, _, split = line.strip().rpartition(" ")
        parts = name.strip().split("/")
        if split not in SPLITS or len(parts) != 3:
            raise DatasetError(
                f"{path}: line {number}: got {line.strip()!r}, expected 'City/Route/Sequence train|val|test'"
            )
        sequence = SequenceId(*parts)
        if listed.setdefault(sequence, split) != split:
            raise DatasetError(f"{path}: line {number}: {sequence} is in {listed[sequence]} and in {split}")
    if missing := sorted(set(frames_per_sequence) - set(listed)):
        raise DatasetError(f"{path}: no line for {missing[0]} ({len(missing)} missing in all); add one for each")
    return {sequence: listed[sequence] for sequence in frames_per_sequence}


def _rank(seed: int, group: tuple[str, ...]) -> bytes:
    return hashlib.sha256(f"{seed}/{'/'.join(group)}".encode()).digest()
