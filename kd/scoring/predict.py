"""Detections of one or two models side by side: Figure A1 of the paper, for any images.

In: image files and detectors. Out: one PNG (a column per model, a row per image) and a dict of counts and times.
Invariant: the boxes in the picture are exactly the detections counted in the dict.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean, median

import cv2
import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from kd.errors import DataError, ModelError, UsageError
from kd.files import require_no_input, write_all
from kd.scoring.evaluate import channels_of, image_size
from kd.ultra import model_files
from kd.ultra.exported import Exported, load_runnable
from kd.ultra.session import TORCH_THREADS, check_device, device_name, silence
from schemas.text import one_line

CONFIDENCE = 0.25  # from which on a detection is drawn
TEXT, NAME = 120, 40  # characters of a title or a caption, of a class
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

# A class called by a colour is drawn in it; the others take the palette's in turn (Okabe and Ito's, for every eye).
COLOUR_OF_NAME = {"red": "#e6322b", "yellow": "#f4c20d", "green": "#13a55b"}
PALETTE = ("#00b7eb", "#ff8c1a", "#e066c7", "#f0e442", "#009e73", "#0072b2", "#d55e00", "#a0a0a0")
INK, GREY, PAPER = "#1a1a1a", "#6b6b6b", "#ffffff"


@dataclass(frozen=True)
class Detection:
    """One box: corners (x1, y1, x2, y2) in pixels of its image, class name, confidence in 0..1."""

    box_xyxy: tuple[float, float, float, float]
    name: str
    confidence: float


@dataclass(frozen=True)
class Column:
    """What one model made of the images: a list of detections per image, milliseconds per image.

    An exported file does not tell its parameters.
    """

    name: str
    params: int | None
    class_names: tuple[str, ...]
    imgsz: int
    device: str
    times_ms: tuple[float, ...]
    detections: tuple[tuple[Detection, ...], ...]


def predict(
    images: Sequence[str | Path],
    models: Sequence[str | Path],
    out: str | Path,
    *,
    imgsz: int | None = None,
    conf: float = CONFIDENCE,
    device: str | None = None,
    limit: int = 6,
    tell: Callable[[str], None] = lambda line: None,
    quiet: bool = False,
) -> dict:
    """Draw what one or two models find in the images, and time them.

    A folder stands for its first ``limit`` images in sorted order. ``imgsz`` is by default each model's own.
    Every image runs twice at batch 1: the first pass warms up and finds the boxes, the second is timed (the
    network's forward pass alone, without reading, resizing and non-maximum suppression). ``tell`` gets a line about an
    exported file whose checkpoint has changed.
    Returns ``{models: [{name, params, mean_ms, median_ms, detections}], images: n, device, out}``.
    Raises DataError for what is no 8-bit image, ModelError for what is no detector, UsageError for other options.
    """
    out = Path(out)
    if not 1 <= len(models) <= 2:
        raise UsageError(f"--model: got {len(models)} models, expected one or two (give --model once or twice)")
    if out.suffix.lower() != ".png":
        raise UsageError(f"--out: got '{out}', expected a file name that ends in .png")
    check_device(device)
    paths = expand(images, limit)
    inside = [path for given in map(Path, images) if given.is_dir() for path in given.iterdir()]
    require_no_input("--out", [out], [*paths, *inside, *map(Path, models)])
    pictures = [read_image(path) for path in paths]
    options = {"imgsz": imgsz, "conf": conf, "device": device, "tell": tell, "quiet": quiet}
    columns = [detect(model, pictures, **options) for model in models]
    png = io.BytesIO()
    draw(columns, pictures, [path.name for path in paths], conf).save(png, format="PNG")
    write_all({out: png.getvalue()})
    return {
        "models": [
            {
                "name": column.name,
                "params": column.params,
                "mean_ms": fmean(column.times_ms),
                "median_ms": median(column.times_ms),
                "detections": sum(len(found) for found in column.detections),
            }
            for column in columns
        ],
        "images": len(paths),
        "device": columns[0].device,
        "out": str(out),
    }


def expand(images: Sequence[str | Path], limit: int | None) -> list[Path]:
    """Files as they are, folders as their first ``limit`` images in sorted order; DataError when one gives none."""
    paths: list[Path] = []
    for given in map(Path, images):
        if given.is_dir():
            inside = sorted(path for path in given.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise DataError(f"{given}: got a folder without images, expected {', '.join(sorted(IMAGE_SUFFIXES))}")
            paths += inside[:limit]
        elif given.is_file():
            paths.append(given)
        else:
            raise DataError(f"{given}: no such file or folder, expected an image or a folder of images")
    if not paths:
        raise UsageError("got no image, expected at least one image or folder of images")
    return paths


def read_image(path: Path) -> np.ndarray:
    """An image as OpenCV reads it: uint8 [H, W, 3] in BGR; DataError for anything that is not 8-bit colour or grey."""
    encoded = np.fromfile(path, dtype=np.uint8)
    raw = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED) if encoded.size else None
    if raw is None:
        raise DataError(f"{path}: got {encoded.size} bytes that OpenCV cannot decode, expected an image")
    if raw.dtype != np.uint8:
        hint = "a raw DTLD frame? run `dtld convert` first" if raw.ndim == 2 else "convert it to 8 bits first"
        channels = "one channel" if raw.ndim == 2 else f"{raw.shape[2]} channels"
        raise DataError(f"{path}: got {raw.dtype} in {channels}, expected an 8-bit image; {hint}")
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR)


def detect(
    model: str | Path,
    pictures: Sequence[np.ndarray],
    *,
    imgsz: int | None = None,
    conf: float = CONFIDENCE,
    device: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
    quiet: bool = False,
) -> Column:
    """Run one model over BGR pictures [H, W, 3]: once to find (and to warm up), once more to time."""
    yolo = load_runnable(str(model), device, tell)
    if (channels := channels_of(yolo)) not in (1, 3):
        raise ModelError(
            f"{model}: got a model of {channels} channels, expected 3, or 1 for grey: pictures have no more"
        )
    params = None
    if not isinstance(yolo, Exported):
        model_files.require_names(yolo.model, str(model))
        params = sum(weight.numel() for weight in yolo.model.parameters())
    imgsz = image_size(yolo, imgsz)
    with silence(), tqdm(total=2 * len(pictures), desc=model_title(model), leave=False, disable=quiet or None) as bar:

        def run(picture: np.ndarray) -> object:
            bar.update()
            return yolo.predict(picture, imgsz=imgsz, conf=conf, device=device, save=False, verbose=False)[0]

        found = [run(picture) for picture in pictures]
        torch.set_num_threads(TORCH_THREADS)  # Ultralytics has taken one core away: time with all of them
        times_ms = tuple(run(picture).speed["inference"] for picture in pictures)
    return Column(
        name=model_title(model),
        params=params,
        class_names=tuple(yolo.names.values()),
        imgsz=imgsz,
        device=device_name(yolo.predictor.device),
        times_ms=times_ms,
        detections=tuple(
            tuple(
                Detection(tuple(box), yolo.names[int(class_id)], confidence)
                for box, class_id, confidence in zip(
                    result.boxes.xyxy.tolist(), result.boxes.cls.tolist(), result.boxes.conf.tolist(), strict=True
                )
            )
            for result in found
        ),
    )


def model_title(model: str | Path) -> str:
    """A name a reader knows the model by: the run's for a run's weights, else the file's.

    >>> model_title("runs/student-fgfi/weights/best.pt"), model_title("yolo11n.pt")
    ('student-fgfi', 'yolo11n')
    """
    path = Path(model).resolve()
    return path.parent.parent.name if path.parent.name == "weights" and path.stem in {"best", "last"} else path.stem


# ---------------------------------------------------------------- the picture


def draw(
    columns: Sequence[Column], pictures: Sequence[np.ndarray], captions: Sequence[str], conf: float
) -> Image.Image:
    """Lay the detections out: a column per model, a row per BGR picture, titles above, legend and method below.

    A column is as wide as the widest picture, within 640 to 1280 px; text and lines grow with it.
    """
    width = min(max(max(picture.shape[1] for picture in pictures), 640), 1280)
    unit = width / 640  # every measure below is given for a column of 640 px
    gap, margin, line = round(16 * unit), round(24 * unit), round(20 * unit)
    heights = [round(width * picture.shape[0] / picture.shape[1]) for picture in pictures]
    colours = _colours(columns)
    head = margin + round(62 * unit)
    foot = line * 3 + margin
    page_width = 2 * margin + len(columns) * width + (len(columns) - 1) * gap
    page_height = head + sum(heights) + len(heights) * (line + gap) + foot
    page = Image.new("RGB", (page_width, page_height), PAPER)
    pen = ImageDraw.Draw(page)

    for i, column in enumerate(columns):
        left = margin + i * (width + gap)
        size = "exported" if column.params is None else f"{_million(column.params)} parameters"
        subtitle = f"{size}  \N{MIDDLE DOT}  {_milliseconds(fmean(column.times_ms))} per image"
        name = one_line(column.name, TEXT)
        pen.text((left, margin), name, INK, _fit(name, 22 * unit, width, bold=True))
        pen.text((left, margin + 30 * unit), subtitle, GREY, _fit(subtitle, 16 * unit, width))
        top = head
        for picture, height, caption, found in zip(pictures, heights, captions, column.detections, strict=True):
            cell = Image.fromarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)).resize((width, height), Image.LANCZOS)
            draw_detections(cell, found, width / picture.shape[1], unit, colours)
            page.paste(cell, (left, top))
            note = f"{one_line(caption, TEXT)}  \N{MIDDLE DOT}  {len(found)} detection{'' if len(found) == 1 else 's'}"
            pen.text((left, top + height + 3 * unit), note, GREY, _fit(note, 12 * unit, width))
            top += height + line + gap

    bottom = page.height - foot
    _draw_legend(pen, colours, (margin, bottom), unit, page.width - 2 * margin)
    method = _method(columns, len(pictures), conf)
    pen.text((margin, bottom + line * 1.5), method, GREY, _fit(method, 12 * unit, page.width - 2 * margin))
    return page


def draw_detections(
    cell: Image.Image, found: Sequence[Detection], scale: float, unit: float, colours: dict[str, str]
) -> None:
    """Outline each box from outside, so that a light of a few pixels stays visible; label it where there is room."""
    pen, font = ImageDraw.Draw(cell), _font(13 * unit)
    stroke = max(2, round(2 * unit))
    outlines = [
        (
            round(x1 * scale) - stroke,
            round(y1 * scale) - stroke,
            round(x2 * scale) + stroke - 1,  # Pillow's rectangles include their last pixel
            round(y2 * scale) + stroke - 1,
        )
        for x1, y1, x2, y2 in (detection.box_xyxy for detection in found)
    ]
    labels: list[tuple[int, ...]] = []
    for detection, box in zip(found, outlines, strict=True):
        pen.rectangle((box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1), outline=INK)
        pen.rectangle(box, outline=colours[detection.name], width=stroke)
    # The surest are labelled first: they get the best places.
    for detection, box in sorted(zip(found, outlines, strict=True), key=lambda pair: -pair[0].confidence):
        text = f"{one_line(detection.name, NAME)} {detection.confidence:.2f}"
        label = _place(box, _text_size(text, font, pad=3 * unit), cell.size, outlines, labels)
        labels.append(label)
        pen.rectangle(label, fill=colours[detection.name])
        middle = ((label[0] + label[2]) / 2, (label[1] + label[3]) / 2)
        pen.text(middle, text, _ink_on(colours[detection.name]), font, anchor="mm")


def _place(
    box: tuple[int, ...],
    size_wh: tuple[int, int],
    page_wh: tuple[int, int],
    boxes: Sequence[tuple[int, ...]],
    labels: Sequence[tuple[int, ...]],
) -> tuple[int, int, int, int]:
    """The label's rectangle: of eight places around the box, the first that hides least of labels, then of boxes."""
    (x1, y1, x2, y2), (w, h) = box, size_wh
    corners = [
        (x1, y1 - h - 1), (x2 - w, y1 - h - 1), (x1, y2 + 1), (x2 - w, y2 + 1),
        (x2 + 1, y1), (x1 - w - 1, y1), (x2 + 1, y2 - h), (x1 - w - 1, y2 - h),
    ]  # fmt: skip
    inside = [(min(max(x, 0), page_wh[0] - w), min(max(y, 0), page_wh[1] - h)) for x, y in corners]
    places = [(x, y, x + w, y + h) for x, y in inside]
    return min(places, key=lambda place: tuple(sum(_overlap(place, o) for o in others) for others in (labels, boxes)))


def _overlap(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _draw_legend(
    pen: ImageDraw.ImageDraw, colours: dict[str, str], at: tuple[int, int], unit: float, width: int
) -> None:
    (x, y), font, side = at, _font(14 * unit), 14 * unit
    right = x + width
    for name, colour in ((one_line(name, NAME), colour) for name, colour in colours.items()):
        step = 1.6 * side + pen.textlength(name, font) + 24 * unit
        if x + step > right:
            pen.text((x, y), "...", INK, font)
            return
        pen.rectangle((x, y + unit, x + side, y + unit + side), fill=colour)
        pen.text((x + 1.6 * side, y), name, INK, font)
        x += step


def _method(columns: Sequence[Column], images: int, conf: float) -> str:
    sizes = " and ".join(str(size) for size in dict.fromkeys(column.imgsz for column in columns))
    return (
        f"Times: mean forward pass over {images} image{'' if images == 1 else 's'} after warm-up, batch 1, "
        f"{sizes} px, {columns[0].device}. Boxes: confidence of at least {conf:g}."
    )


def _colours(columns: Sequence[Column]) -> dict[str, str]:
    """A colour per class, the same in all columns: of every class if they are few, else of those found."""
    names = dict.fromkeys(name for column in columns for name in column.class_names)
    found = {detection.name for column in columns for image in column.detections for detection in image}
    return colours_of(name for name in names if len(names) <= len(PALETTE) or name in found)


def colours_of(names: Iterable[str]) -> dict[str, str]:
    """A colour per class name: its own if it is called by one, else of the palette in turn."""
    return {name: COLOUR_OF_NAME.get(name, PALETTE[i % len(PALETTE)]) for i, name in enumerate(names)}


def _ink_on(colour: str) -> str:
    """Black or white, whichever reads better on the colour (ITU-R BT.601 luma)."""
    r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return INK if 0.299 * r + 0.587 * g + 0.114 * b > 128 else PAPER


def _million(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count / 1e3:.1f} k"


def _milliseconds(ms: float) -> str:
    return f"{ms:.0f} ms" if ms >= 100 else f"{ms:.1f} ms"


def _text_size(text: str, font: ImageFont.FreeTypeFont, pad: float) -> tuple[int, int]:
    ascent, descent = font.getmetrics()
    return round(font.getlength(text) + 2 * pad), round(ascent + descent + pad / 2)


def _fit(text: str, size_px: float, width: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font at this size, or at the smaller one with which the text is no wider than ``width``."""
    length = _font(size_px, bold).getlength(text)
    return _font(size_px * min(1.0, width / length), bold) if length else _font(size_px, bold)


@lru_cache
def _font(size_px: float, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which Matplotlib brings along: crisp, and the same on every machine."""
    file = f"fonts/ttf/DejaVuSans{'-Bold' if bold else ''}.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / file), size_px)
