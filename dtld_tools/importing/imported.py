"""What an import is made of: its frames, its classes, and the rule that says which images are one sequence."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Literal

from dtld_tools.errors import DatasetError, UsageError
from dtld_tools.types import FOREIGN_ROUTE, SPLITS, Frame, Light, SequenceId, Split

Form = Literal["yolo", "coco"]
Crowd = Literal["keep", "drop"]
CLASS = "class"  # the one attribute of an imported light


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes that the source names; a light's only attribute is the name of its own."""

    class_names: tuple[str, ...]
    _numbers: Mapping[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_numbers", {name: number for number, name in enumerate(self.class_names)})

    def class_of(self, light: Light) -> int:
        """The light's class number."""
        return self._numbers[light.attributes[CLASS]]

    def attributes_of(self, light: Light) -> None:
        """Nothing: an import's lights have a class alone."""

    def attributes(self) -> list[Mapping[str, str]]:
        """The attributes of lights by class number, one object for all lights of a class."""
        return [MappingProxyType({CLASS: name}) for name in self.class_names]


@dataclass(frozen=True, slots=True)
class Imported:
    """A dataset of others: frames in the order of their paths below ROOT, and the splits that it has each image in.

    One, as a rule; ``splits`` is empty for a source that does not divide its images.
    """

    form: Form
    classes: Classes
    frames: tuple[Frame, ...]
    splits: Mapping[str, Sequence[Split]]
    notes: tuple[str, ...] = ()

    def split_of_sequences(self) -> dict[SequenceId, Split]:
        """The source's own split of every sequence. Raises DatasetError if one lies in two: a leak."""
        counts: dict[SequenceId, Counter[Split]] = {}
        for frame in self.frames:
            counts.setdefault(frame.sequence, Counter()).update(self.splits[frame.image_path])
        leaks = {sequence: found for sequence, found in counts.items() if len(found) > 1}
        for sequence, found in leaks.items():
            there = " and ".join(f"{found[split]} in {split}" for split in SPLITS if found[split])
            raise DatasetError(
                f"{sequence}: has images in two of the source's splits ({there}; {len(leaks)} of {len(counts)} "
                "sequences have), expected a sequence in one: give --val and --test (or --split-file) to split anew by "
                r"whole sequences, or say by --sequence-from what a sequence is ('(.+)\.[^/]*': each image by itself)"
            )
        return {sequence: next(iter(found)) for sequence, found in counts.items()}


class Sequences:
    """Which sequence an image belongs to, by its path below ROOT: its folder, or what a regular expression finds.

    The expression is searched for in the file's name, or in the whole path if it has a ``/``; its first group is the
    sequence.

    >>> Sequences("set")("drive_a/front/1.jpg"), Sequences("set", r"(.+)_[0-9]+")("a/night_07.jpg")
    (SequenceId(city='set', route='-', sequence='drive_a_front'), SequenceId(city='set', route='-', sequence='night'))
    """

    def __init__(self, dataset: str, pattern: str | None = None) -> None:
        """``dataset`` is the city of all sequences. Raises UsageError."""
        self._city = dataset
        try:
            self._pattern = None if pattern is None else re.compile(pattern)
        except (re.error, RecursionError) as error:
            raise UsageError(f"--sequence-from: got {pattern!r} ({error}), expected a regular expression") from error
        if self._pattern is not None and not self._pattern.groups:
            raise UsageError(f"--sequence-from: got {pattern!r}, expected a group, as in '(.*)_[0-9]+'")
        self._of_path = pattern is not None and "/" in pattern

    def __call__(self, path: str) -> SequenceId:
        """The sequence of an image. Raises DatasetError if the expression does not find it."""
        folder, _, name = path.rpartition("/")
        if self._pattern is None:
            found = folder or "-"
        else:
            match = self._pattern.search(path if self._of_path else name)
            found = (match and match[1]) or ""
            if not found.strip("/."):
                raise DatasetError(
                    f"--sequence-from {self._pattern.pattern}: finds no sequence in {path if self._of_path else name}, "
                    "expected one in every image; a pattern with a / is searched for in the path below --root"
                )
        return SequenceId(self._city, FOREIGN_ROUTE, found.strip("/").replace("/", "_"))


def dataset_name(root: Path) -> str:
    """What the city of an import's sequences is called: the name of ROOT."""
    return root.resolve().name or "dataset"


def refuse_names(names: Sequence[str], where: str) -> None:
    """Raise DatasetError unless these are names of classes that differ and can be printed."""
    first: dict[str, int] = {}
    for number, name in enumerate(names):
        if not name.strip() or not name.isprintable():
            raise DatasetError(f"{where}: got {name[:60]!r}, expected a name that can be printed in a line")
        if first.setdefault(name, number) != number:
            raise DatasetError(
                f"{where}: got {name!r} for the classes {first[name]} and {number}, expected different names"
            )
    if not names:
        raise DatasetError(f"{where}: got no classes, expected at least one")


def is_plain(path: PurePosixPath) -> bool:
    """Whether a path below ROOT stays there, has a name with an ending, and can be printed."""
    return (
        not (path.is_absolute() or ".." in path.parts) and bool(path.stem and path.suffix) and str(path).isprintable()
    )
