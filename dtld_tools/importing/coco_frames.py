"""COCO JSON files in, all of their images as frames out: of one file, or of a file for each split.

Invariant: every annotation is a light of its image, or stands there as dropped with its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath

from dtld_tools.errors import DatasetError, UsageError
from dtld_tools.importing.coco import SPLIT_NAMES, Coco, box_of, folders_of, path_of, read_coco, split_of
from dtld_tools.importing.imported import Classes, Crowd, Imported, Sequences
from dtld_tools.labels.locate import locate
from dtld_tools.types import Dropped, Frame, Light, Split, numbered


def import_coco(
    files: Sequence[tuple[Path, Split | None]], root: Path, sequence_of: Sequences, crowd: Crowd
) -> Imported:
    """The images of COCO files as frames, in the split that their file is of; None: that a folder of theirs is called.

    Classes are equal by name: those of the first file in the order of their ids, then those that each other file adds.
    A light's id is its annotation's; where that has none, its place in the list. Raises DatasetError, or UsageError for
    a file that is given twice.
    """
    places = [path.resolve() for path, _ in files]
    for (path, _), place in zip(files, places, strict=True):
        if places.count(place) > 1:  # its names may be images of two folders, which no other check finds
            raise UsageError(f"{path}: is given twice, expected a COCO file of its own for each split")
    read = [read_coco(path) for path, _ in files]
    classes = Classes(tuple(dict.fromkeys(chain.from_iterable(coco.names for coco in read))))
    reader = _Reader(classes, sequence_of, crowd, Counter())
    found: dict[Path, dict[str, Frame]] = {}
    splits: dict[str, tuple[Split]] = {}
    for (path, own), coco in zip(files, read, strict=True):
        names = [path_of(image, f"{path}: images[{index}].") for index, image in enumerate(coco.images)]
        if own and names:
            folder = _folder_of(names, root, own, path)
            names = [folder / name for name in names]
        frames = reader.frames(path, coco, names)
        for other, known in found.items():
            _refuse_shared(path, frames, other, known)
        found[path] = frames
        splits |= {name: (split,) for name in frames if (split := own or _called(name))}
    frames = dict(chain.from_iterable(known.items() for known in found.values()))
    notes = reader.notes()
    if splits and len(splits) < len(frames):
        notes.append(
            f"{len(frames) - len(splits)} images lie in no folder called train, val or test: all are split anew"
        )
        splits = {}
    if partial := [name for name in classes.class_names if any(name not in coco.names for coco in read)]:
        notes.append(f"{len(partial)} classes are not in every file, such as {partial[0]}; they are classes of all")
    return Imported("coco", classes, tuple(frames[name] for name in sorted(frames)), splits, tuple(notes))


@dataclass(frozen=True, slots=True)
class _Reader:
    """Makes frames of files, and counts what became of the annotations that are not just boxes."""

    classes: Classes
    sequence_of: Sequences
    crowd: Crowd
    treated: Counter[str]

    def frames(self, path: Path, coco: Coco, names: Sequence[PurePosixPath]) -> dict[str, Frame]:
        """The images of a file, whose paths below ROOT are ``names``. Uses its annotations up. Raises DatasetError."""
        attributes = self.classes.attributes()
        numbers = {name: number for number, name in enumerate(self.classes.class_names)}
        class_of = {category: numbers[coco.names[number]] for category, number in coco.class_of.items()}
        lights: dict[int | str, list[Light]] = {image.id: [] for image in coco.images}
        dropped: dict[int | str, list[Dropped]] = {}
        ids = numbered([n if each.id is None else each.id for n, each in enumerate(coco.annotations)])
        coco.annotations.reverse()
        for light_id in ids:
            annotation = coco.annotations.pop()  # what has become a light makes room for the next
            box, class_id = box_of(annotation), class_of[annotation.category_id]
            if annotation.iscrowd and self.crowd == "drop":
                dropped.setdefault(annotation.image_id, []).append(Dropped(light_id, "crowd", class_id, box))
            elif box is None:
                dropped.setdefault(annotation.image_id, []).append(Dropped(light_id, "no_box", class_id))
            else:
                self.treated["crowds"] += bool(annotation.iscrowd)
                self.treated["polygons"] += not annotation.bbox
                lights[annotation.image_id].append(Light(box, attributes[class_id], light_id, ""))
        frames: dict[str, Frame] = {}
        for index, (image, name) in enumerate(zip(coco.images, names, strict=True)):
            if (text := name.as_posix()) in frames:
                raise DatasetError(f"{path}: images[{index}].file_name: got {text} a second time, expected it once")
            own, out = tuple(lights[image.id]), tuple(dropped.get(image.id, ()))
            frames[text] = Frame(text, self.sequence_of(text), None, own, out, image.size_wh)
        if not frames:
            raise DatasetError(f"{path}: images: got none, expected at least one")
        if ids and not any(lights.values()):
            raise DatasetError(
                f"{path}: annotations: got {len(ids)} crowds or annotations without a box and no other, "
                "expected some; pass --crowd keep to take crowds as objects"
            )
        return frames

    def notes(self) -> list[str]:
        """What of the annotations the counts of lights do not tell."""
        notes = []
        if polygons := self.treated["polygons"]:
            notes.append(f"{polygons} annotations have no bbox: theirs are the boxes around their polygons")
        if crowds := self.treated["crowds"]:
            notes.append(f"{crowds} crowds are taken as objects (--crowd keep)")
        return notes


def _called(name: str) -> Split | None:
    """The split that a folder of an image is called."""
    return split_of(*folders_of(PurePosixPath(name)))[0]


def _folder_of(names: Iterable[PurePosixPath], root: Path, split: Split, path: Path) -> PurePosixPath:
    """Where below ROOT the paths of a split's file begin: at ROOT, or in a folder there that is called as the split.

    The first image that is there decides. Raises DatasetError where none is, or where there are two such.
    """
    below = sorted((*root.glob("*"), *root.glob("images/*")))
    called = [folder for folder in below if SPLIT_NAMES[split].fullmatch(folder.name) and folder.is_dir()]
    folders = [PurePosixPath(folder.relative_to(root).as_posix()) for folder in (root, *called)]
    for name in names:
        there: dict[Path, PurePosixPath] = {}
        for folder in folders:
            if (image := locate((folder / name).as_posix(), root, follow_symlinks=True)) is not None:
                there.setdefault(image, folder)
        if len(there) > 1:
            raise DatasetError(
                f"{path}: {name} may be {' or '.join(map(str, there))}, expected one image of that name; "
                "write its folder into file_name, or give a --root that has one of them"
            )
        if there:
            return next(iter(there.values()))
    raise DatasetError(
        f"{path}: none of its images is in {' or '.join(str(root / folder) for folder in folders)}, expected them "
        f"below --root as file_name says, or in a folder there that is called as the split ({split}, {split}2017)"
    )


def _refuse_shared(path: Path, frames: Mapping[str, Frame], other: Path, known: Mapping[str, Frame]) -> None:
    """Raise DatasetError for an image that two files have."""
    if shared := frames.keys() & known.keys():
        raise DatasetError(
            f"{path}: {len(shared)} of its {len(frames)} images are in {other}, too, such as {min(shared)}; expected "
            "each in one file: what is in two splits is a leak; take it out of one"
        )
