"""The options that several commands of `dtld` share, and how their texts become the values of the stages.

A group (`schemas.option_groups`) holds options that go together and makes one value of them; what only some commands
have is in a second group that adds it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from dtld_tools.pipeline.stages import Run, Selection
    from dtld_tools.pixels.augment import AugmentSpec
    from dtld_tools.pixels.disparity import Stereo
    from dtld_tools.planning.split import SplitSpec
    from dtld_tools.types import Split, TileSpec

LARGEST = 2**63 - 1  # what a whole number in report.json may be
MOST_WORKERS = 1024  # more than any machine's cores; each is a process

# --- single options --------------------------------------------------------------------------------------

Labels = Annotated[list[Path], typer.Argument(help="Label files: v2.0 .json or v1.0 .yml.", show_default=False)]
Sources = Annotated[
    list[Path],
    typer.Argument(
        metavar="LABELS...",
        help="Label files of DTLD: v2.0 .json or v1.0 .yml. Or a dataset to import: a YOLO data.yaml or a COCO .json.",
        show_default=False,
    ),
]
Dataset = Annotated[Path, typer.Argument(help="A dataset made by dtld.", show_default=False)]
Root = Annotated[
    Path,
    typer.Option(help="The folder that holds City/Route/Sequence/..., or an import's images.", show_default=False),
]
Out = Annotated[Path, typer.Option(help="The folder to write the dataset into.", show_default=False)]
Rules = Annotated[
    Path | None,
    typer.Option(
        metavar="paper|states|states-and-pictograms|FILE",
        help="Which lights are which class: a table by name (paper without the option), or your own in JSON or YAML.",
    ),
]
Format = Annotated[
    Literal["jpg", "png"],
    typer.Option(help="JPEG (quality 95) or PNG (lossless); an import keeps its own unless this is given."),
]
Symlinks = Annotated[bool, typer.Option("--follow-symlinks", help="Allow links that lead out of --root.")]
AugmentSplits = Annotated[str, typer.Option(metavar="train[,val]", help="Splits that get copies.")]
Workers = Annotated[int | None, typer.Option(help="Processes; the result does not depend on it.  [default: cores]")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


def _take_preset(context: typer.Context, name: str | None) -> str | None:
    if name:
        context.default_map = PRESETS[name]  # an option on the line decides before it
    return name


PRESETS: dict[str, dict[str, object]] = {
    # The seed paper: 24,520 / 800 / 4,345 images of 5 cities, which it does not name; halves resized to 640 px,
    # CLAHE and blur on training and validation images.
    "paper": {
        "layout": "halves",
        "tile_size": 640,
        "empty_ratio": "all",
        "val": 800 / 29665,
        "test": 4345 / 29665,
        "max_images": "train=24520,val=800,test=4345",
        "augment_splits": "train,val",
    }
}
Preset = Annotated[
    Literal["paper"] | None,
    typer.Option(is_eager=True, callback=_take_preset, help="Other defaults: the seed paper's dataset."),
]

# --- groups of options -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frames:
    """Which frames of the label files."""

    cities: Annotated[str, typer.Option(metavar="A,B", help="Only frames of these cities.")] = ""
    limit: Annotated[int | None, typer.Option(max=LARGEST, help="Only the first N frames in sorted order.")] = None
    val_labels: Annotated[
        list[Path] | None,
        typer.Option(
            help="A label file whose sequences are the validation split, or its COCO .json to import; repeatable."
        ),
    ] = None
    test_labels: Annotated[
        list[Path] | None,
        typer.Option(help="A label file whose sequences are the test split, or its COCO .json to import; repeatable."),
    ] = None
    sequence_from: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX", help="Imports: its first group is an image's sequence.  [default: the image's folder]"
        ),
    ] = None
    crowd: Annotated[
        Literal["drop", "keep"], typer.Option(help="COCO's boxes around many objects: dropped, or objects too.")
    ] = "drop"

    def selection(
        self, labels: list[Path], root: Path, rules: Path | None, follow_symlinks: bool, stereo: Stereo | None
    ) -> Selection:
        """These frames of these label files."""
        from dtld_tools.pipeline.stages import Selection

        return Selection(
            tuple(labels),
            root,
            rules,
            _names(self.cities),
            self.limit,
            follow_symlinks,
            self.sequence_from,
            self.crowd,
            stereo,
            tuple(self.val_labels or ()),
            tuple(self.test_labels or ()),
        )


@dataclass(frozen=True)
class Distances:
    """Whether lights get distances, and by which pair of cameras."""

    disparity: Annotated[
        bool, typer.Option("--disparity", help="Write each light's distance, from DTLD's disparity images.")
    ] = False
    baseline: Annotated[float, typer.Option(help="Metres between the cameras; as DTLD's calibration has it.")] = (
        0.208828
    )
    focal_length: Annotated[
        float, typer.Option(help="Of the rectified frame, in its pixels; as DTLD's calibration has it.")
    ] = 2269.699585

    def stereo(self, context: typer.Context) -> Stereo | None:
        """The pair of cameras, None without --disparity. Raises UsageError."""
        from dtld_tools.pixels.disparity import Stereo

        if not self.disparity:
            refuse_without("--disparity", context, "baseline", "focal_length")
            return None
        return Stereo(self.baseline, self.focal_length)


@dataclass(frozen=True)
class Splitting:
    """Which sequences go where."""

    val: Annotated[float, typer.Option(help="Share of the frames for validation.")] = 0.1
    test: Annotated[float, typer.Option(help="Share of the frames for test.")] = 0.2
    split_by: Annotated[
        Literal["sequence", "route", "city"], typer.Option(help="What is never divided between splits.")
    ] = "sequence"
    val_cities: Annotated[str, typer.Option(metavar="A,B", help="Cities for validation; decides before shares.")] = ""
    test_cities: Annotated[str, typer.Option(metavar="A,B", help="Cities for test; decides before shares.")] = ""
    split_file: Annotated[Path | None, typer.Option(help="Lines 'City/Route/Sequence split'; decides alone.")] = None

    def spec(self) -> SplitSpec:
        """The options as the stages take them. Raises UsageError."""
        from dtld_tools.planning.split import SplitSpec

        cities = _names(self.val_cities), _names(self.test_cities)
        return SplitSpec(self.val, self.test, self.split_by, *cities, self.split_file)

    def given(self, context: typer.Context) -> SplitSpec | None:
        """`spec`, or None where none of the options is given. Raises UsageError."""
        return self.spec() if any(is_given(context, option.name) for option in fields(self)) else None


@dataclass(frozen=True)
class Tiling:
    """How frames become tiles."""

    tile_size: Annotated[int, typer.Option(help="Side of a tile in pixels.")] = 640
    overlap: Annotated[float, typer.Option(help="Least overlap of neighbouring tiles (grid).")] = 0.2
    layout: Annotated[Literal["grid", "halves"], typer.Option(help="Native windows, or two squares resized.")] = "grid"
    min_visible: Annotated[float, typer.Option(help="Least visible share of a box that becomes a target.")] = 0.4
    min_side: Annotated[float, typer.Option(help="Least shorter side of a target, in tile pixels.")] = 2

    def spec(self) -> TileSpec:
        """The options as the stages take them. Raises UsageError."""
        from dtld_tools.types import TileSpec

        return TileSpec(self.layout, self.tile_size, self.overlap, self.min_visible, self.min_side)


@dataclass(frozen=True)
class Tiles(Tiling):
    """The same, and which tiles are kept in a dataset."""

    mask_partial: Annotated[
        bool, typer.Option("--mask-partial", help="Paint slivers over: lights seen, but left unlabelled.")
    ] = False
    empty_ratio: Annotated[
        str, typer.Option(metavar="SHARE|all", help="Empty training tiles kept, as a share of those with targets.")
    ] = "0.1"
    max_images: Annotated[
        str, typer.Option(metavar="train=N[,val=N]", help="At most so many originals of a split, drawn by the seed.")
    ] = ""

    def spec(self) -> TileSpec:
        """The options as the stages take them. Raises UsageError."""
        return replace(super().spec(), mask_partial=self.mask_partial)

    def kept(self) -> dict[str, Any]:
        """``empty_ratio``, None for all, and ``max_images`` by split, as the stages take them. Raises UsageError."""
        return {"empty_ratio": _empty_ratio(self.empty_ratio), "max_images": _max_images(self.max_images)}


@dataclass(frozen=True)
class Copies:
    """Which changed copies are made."""

    clahe: Annotated[float, typer.Option(help="Probability of CLAHE on lightness, per copy.")] = 0.5
    blur: Annotated[float, typer.Option(help="Probability of Gaussian or motion blur, per copy.")] = 0.3
    copies: Annotated[int, typer.Option(help="Changed copies tried per image.")] = 1

    def spec(self, splits: str) -> AugmentSpec:
        """Copies of the images of these splits. Raises UsageError."""
        from dtld_tools.pixels.augment import AugmentSpec

        return AugmentSpec(self.clahe, self.blur, self.copies, _names(splits))


@dataclass(frozen=True)
class Work:
    """By which seed and with what means a dataset is made."""

    seed: Annotated[int, typer.Option(min=-LARGEST, max=LARGEST, help="Decides splits, empty tiles and copies.")] = 0
    workers: Workers = None
    executor: Annotated[Literal["local", "ray"], typer.Option(help="Processes of this machine, or a Ray cluster.")] = (
        "local"
    )
    ray_address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="A running cluster, such as auto.  [default: this machine]")
    ] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another dataset in --out.")] = False

    def run(self, context: typer.Context) -> Run:
        """How to carry a plan out. Raises UsageError."""
        from dtld_tools.pipeline.stages import Run
        from dtld_tools.pipeline.workers import Executor

        executor = Executor(cores(self.workers), self.executor, self.ray_address)
        return Run(executor, self.overwrite, quiet=quiet(context))


@dataclass(frozen=True)
class StrictWork(Work):
    """The same, where frames are decoded."""

    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first frame that cannot be read.")] = False

    def run(self, context: typer.Context) -> Run:
        """How to carry a plan out. Raises UsageError."""
        return replace(super().run(context), strict=self.strict)


# --- texts to values -------------------------------------------------------------------------------------


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def split_names(texts: list[str] | None) -> tuple[Split, ...]:
    """``--split``, given once or several times, as names in the order of train, val, test. Raises UsageError."""
    from dtld_tools.errors import UsageError
    from dtld_tools.types import SPLITS

    chosen = [name for text in texts or [",".join(SPLITS)] for name in _names(text)]
    if not chosen or not set(chosen) <= set(SPLITS):
        raise UsageError(f"--split: got {', '.join(chosen) or 'nothing'}, expected some of {', '.join(SPLITS)}")
    return tuple(split for split in SPLITS if split in chosen)


def is_given(context: typer.Context, name: str) -> bool:
    """Whether a parameter has its value from the line, or from a preset, and not by default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def refuse_without(needed: str, context: typer.Context, *names: str) -> None:
    """Raise UsageError if one of these parameters was given, though it matters only with the option ``needed``."""
    from dtld_tools.errors import UsageError

    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"--{name.replace('_', '-')}: got it without {needed}, expected both or neither")


def cores(workers: int | None) -> int:
    """``--workers``, or the cores that this process may use. Raises UsageError."""
    from dtld_tools.errors import UsageError

    if workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not 1 <= workers <= MOST_WORKERS:
        raise UsageError(f"--workers: got {workers}, expected 1 to {MOST_WORKERS}")
    return workers


def quiet(context: typer.Context) -> bool:
    """Whether ``--quiet`` stands on the line."""
    return (context.obj or {}).get("quiet", False)


def _empty_ratio(text: str) -> float | None:
    """``--empty-ratio``: a share, or None for all. Raises UsageError."""
    from dtld_tools.errors import UsageError

    try:
        ratio = None if text == "all" else float(text)
    except ValueError:
        ratio = -1
    if ratio is not None and not 0 <= ratio <= 1e6:
        raise UsageError(f"--empty-ratio: got {text!r}, expected a share such as 0.1, or all")
    return ratio


def _max_images(text: str) -> dict[Split, int]:
    """``--max-images``: split -> number. Raises UsageError."""
    from dtld_tools.errors import UsageError
    from dtld_tools.types import SPLITS

    most: dict[Split, int] = {}
    for part in _names(text):
        split, _, number = part.partition("=")
        if split not in SPLITS or split in most or not number.isdecimal() or len(number) > len(str(LARGEST)) - 1:
            raise UsageError(f"--max-images: got {part[:100]!r}, expected each split once, as in train=24520,val=800")
        most[split] = int(number)
    return most
