"""The values that travel between the stages: frozen dataclasses, standard library only.

Coordinates are pixels with the origin at the top left; boxes and windows are half-open (x1 <= x < x2).
A frame is a raw camera image (2048x1024 in DTLD); a tile is a window of it at the network's input size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from dtld_tools.errors import UsageError

Split = Literal["train", "val", "test"]
SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")  # of images that we read and write
SPLITS: tuple[Split, ...] = ("train", "val", "test")
Layout = Literal["frame", "grid", "halves"]

#: A light's ``unique_id``; a repetition of that number within one frame is ``"<unique_id>#<n>"``, n = 2, 3, ...
LightId = int | str
FOREIGN_ROUTE = "-"  # of an imported frame, whose sequence its folders need not tell


def numbered(ids: Sequence[int]) -> Sequence[LightId]:
    """The ids of a frame's lights, the n-th repetition of a number as ``<number>#<n>``.

    >>> numbered([7, 8, 7])
    [7, 8, '7#2']
    """
    if len(set(ids)) == len(ids):
        return ids
    seen: Counter[int] = Counter()
    light_ids: list[LightId] = []
    for number in ids:
        seen[number] += 1
        light_ids.append(number if seen[number] == 1 else f"{number}#{seen[number]}")
    return light_ids


class Box(NamedTuple):
    """An axis-aligned rectangle, corners in pixels; a width or height of zero or less has no area.

    >>> Box.from_xywh(10, 20, 5, 8)
    Box(x1=10, y1=20, x2=15, y2=28)
    """

    x1: float
    y1: float
    x2: float
    y2: float

    @classmethod
    def from_xywh(cls, x: float, y: float, w: float, h: float) -> Box:
        """Top-left corner and size, as the label files write it."""
        return cls(x, y, x + w, y + h)

    @property
    def width(self) -> float:
        """Pixels; negative for a degenerate box."""
        return self.x2 - self.x1

    @property
    def height(self) -> float:
        """Pixels; negative for a degenerate box."""
        return self.y2 - self.y1

    @property
    def area(self) -> float:
        """Square pixels; 0 for a degenerate box."""
        return max(self.width, 0) * max(self.height, 0)


class Window(NamedTuple):
    """A rectangle of whole frame pixels that becomes an image; it may reach beyond a small frame (padding)."""

    x: int
    y: int
    w: int
    h: int


class SequenceId(NamedTuple):
    """One approach to one intersection. Folder names repeat between cities, so all three parts count."""

    city: str
    route: str
    sequence: str

    def __str__(self) -> str:
        return "/".join(self)


@dataclass(frozen=True, slots=True)
class Light:
    """One labelled traffic light of a label file, as written: the box may leave the frame on any side."""

    box: Box
    attributes: Mapping[str, str]
    unique_id: LightId
    track_id: str


@dataclass(frozen=True, slots=True)
class Frame:
    """One image of a label file; ``image_path`` is ``City/Route/Sequence/file`` whatever the file says before.

    ``disparity_path`` is as written, unchecked: few read it.
    Of an import it is the path below ROOT, ``dropped`` is what is no light from the start (a crowd), ``size_wh`` the
    image's size as the labels say it, and boxes ``in_shares`` are shares of the image's size in place of pixels.
    """

    image_path: str
    sequence: SequenceId
    timestamp_s: float | None
    lights: tuple[Light, ...]
    dropped: tuple[Dropped, ...] = ()
    size_wh: tuple[int, int] | None = None
    in_shares: bool = False
    disparity_path: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """A box to learn: in frame pixels in a `FrameRecord`, in image pixels in a `Tile`.

    A frame's also has the ``attributes`` of its light where the labels name some, and its distance where it was
    measured.
    """

    class_id: int
    box: Box
    light_id: LightId
    attributes: Mapping[str, str] | None = None
    distance_m: float | None = None


@dataclass(frozen=True, slots=True)
class Dropped:
    """A light that is in no image, and the one reason; class and box where the light still has them."""

    light_id: LightId
    reason: str
    class_id: int | None = None
    box: Box | None = None
    attributes: Mapping[str, str] | None = None
    distance_m: float | None = None


@dataclass(frozen=True, slots=True)
class TileSpec:
    """How frames become images; checked when made.

    ``frame`` is the whole frame as one image, ``grid`` native-resolution windows that overlap by at least
    ``overlap``, ``halves`` squares of the frame's height resized to ``size_px``. A box is a target of an image
    if at least ``min_visible`` of its area inside the frame is visible there and its shorter side there is at
    least ``min_side_px``; else it is a sliver, which ``mask_partial`` paints over.
    """

    layout: Layout = "grid"
    size_px: int = 640
    overlap: float = 0.2
    min_visible: float = 0.4
    min_side_px: float = 2.0
    mask_partial: bool = False

    def __post_init__(self) -> None:
        if self.layout not in ("frame", "grid", "halves"):
            raise UsageError(f"--layout: got {self.layout!r}, expected grid or halves")
        if not 32 <= self.size_px <= 8192:
            raise UsageError(f"--tile-size: got {self.size_px}, expected 32 to 8192 pixels")
        if not 0 <= self.overlap <= 0.9:
            raise UsageError(f"--overlap: got {self.overlap}, expected a share from 0 to 0.9")
        if not 0 <= self.min_visible <= 1:
            raise UsageError(f"--min-visible: got {self.min_visible}, expected a share from 0 to 1")
        if not 0 <= self.min_side_px < self.size_px:
            raise UsageError(f"--min-side: got {self.min_side_px}, expected 0 to {self.size_px} pixels")


@dataclass(frozen=True, slots=True)
class Tile:
    """One window of one frame: its targets in image pixels, and its slivers, the lights seen but left unlabelled.

    A sliver comes with the rule that it fails: ``min_visible`` or ``min_side``.
    """

    window: Window
    scale: float
    targets: tuple[Target, ...]
    slivers: Mapping[LightId, str]


@dataclass(frozen=True, slots=True)
class FrameRecord:
    """A line of ``frames.jsonl``: every light of the frame stands once, in ``lights`` or in ``dropped``."""

    frame: str
    sequence: SequenceId
    split: Split
    width: int
    height: int
    lights: tuple[Target, ...]
    dropped: tuple[Dropped, ...]


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """A line of ``manifest.jsonl``: where an image of the dataset comes from and which lights it shows.

    The image is ``window`` of the frame times ``scale``; ``augmentation`` is the recipe of a changed copy
    (see `dtld_tools.pixels.augment`), None for an original; ``masked`` are the slivers that were painted over.
    """

    name: str
    split: Split
    frame: str
    sequence: SequenceId
    window: Window
    scale: float
    augmentation: Mapping[str, Any] | None
    targets: tuple[LightId, ...]
    slivers: tuple[LightId, ...]
    masked: tuple[LightId, ...] = ()
