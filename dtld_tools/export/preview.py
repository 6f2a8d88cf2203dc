"""A dataset in, one contact sheet out: images of a split with the boxes that their label files hold.

The boxes are read from the label files, not from frames.jsonl, so the sheet shows what a trainer will see.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dtld_tools.dataset.consistency import read_classes
from dtld_tools.dataset.names import files_of, image_path, label_path
from dtld_tools.dataset.reading import read_images
from dtld_tools.errors import DatasetError, UsageError
from dtld_tools.files import refuse_inputs, whole_file
from dtld_tools.pixels.images import read_image
from dtld_tools.types import SUFFIXES, Box, ImageRecord, Split

CELL_WIDTH = 480
MARGIN = 10
CAPTION_HEIGHT = 40
LEGEND_END = 110  # pixels at the right of the classes' names, for how many more there are
BACKGROUND, INK, FAINT = "#16181d", "#f2f2f2", "#9aa0aa"
COLOURS = ("#39ff88", "#ff8a3c", "#4db8ff", "#ff5ca8", "#ffe14d")


def preview(root: Path, out: Path, *, count: int = 16, split: Split = "train") -> dict[str, int]:
    """Write a sheet of up to ``count`` images of a split, spread evenly; images with lights go first.

    Returns how many images and boxes it shows. Raises DatasetError if the split has no images.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--out: got the ending {out.suffix!r}, expected {', '.join(SUFFIXES)}")
    refuse_inputs(out, files_of(root))
    class_names = read_classes(root)
    images = [image for image in read_images(root) if image.split == split]
    if not images:
        raise DatasetError(f"{root}: no images in {split}, choose another --split")
    chosen = _spread(images, count)
    columns = min(len(chosen), max(1, round(math.sqrt(len(chosen)))))
    cells = [_cell(root, image, len(class_names)) for image in chosen]
    row_height = max(cell.height for cell, _ in cells) + CAPTION_HEIGHT + MARGIN
    rows = math.ceil(len(cells) / columns)
    header = 64
    sheet = Image.new("RGB", (columns * (CELL_WIDTH + MARGIN) + MARGIN, header + rows * row_height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    _draw_header(draw, f"{root.resolve().name} / {split}: {len(chosen)} of {len(images):,} images", class_names)
    boxes = 0
    for index, (image, (cell, found)) in enumerate(zip(chosen, cells, strict=True)):
        x = MARGIN + index % columns * (CELL_WIDTH + MARGIN)
        y = header + index // columns * row_height
        sheet.paste(cell, (x, y))
        stem, changes = Path(image.name).stem, " + ".join(image.augmentation or ())
        draw.text((x, y + cell.height + 4), stem[-62:], fill=INK, font=_font(12))
        note = f"boxes: {found}" + (f", slivers: {len(image.slivers)}" if image.slivers else "")
        draw.text((x, y + cell.height + 20), note + (f", {changes}" if changes else ""), fill=FAINT, font=_font(12))
        boxes += found
    with whole_file(out) as path:
        sheet.save(path)
    return {"images": len(chosen), "boxes": boxes}


def _spread(images: list[ImageRecord], count: int) -> list[ImageRecord]:
    """Evenly spaced images with targets; if they do not suffice, images without fill up."""
    with_targets = [image for image in images if image.targets]
    empty = [image for image in images if not image.targets]
    chosen = _every(with_targets, count)
    return sorted(chosen + _every(empty, count - len(chosen)), key=lambda image: image.name)


def _every(images: list[ImageRecord], count: int) -> list[ImageRecord]:
    if len(images) <= count:
        return images
    return [images[math.floor((index + 0.5) * len(images) / count)] for index in range(count)]


def _cell(root: Path, image: ImageRecord, class_count: int) -> tuple[Image.Image, int]:
    """The image at the cell's width with its boxes drawn around the lights, and how many there are."""
    pixels = read_image(image_path(root, image))
    height, width = pixels.shape[:2]
    scale = CELL_WIDTH / width
    cell = Image.fromarray(np.ascontiguousarray(pixels[..., ::-1]))
    cell = cell.resize((CELL_WIDTH, round(height * scale)), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(cell)
    boxes = read_boxes(label_path(root, image), (width, height))
    for class_id, box in boxes:
        if class_id >= class_count:
            path = label_path(root, image)
            raise DatasetError(f"{path}: got class {class_id}, expected 0 to {class_count - 1}; see dtld validate")
        colour = COLOURS[class_id % len(COLOURS)]
        x1, y1, x2, y2 = (round(value * scale) for value in box)
        draw.rectangle((x1 - 2, y1 - 2, x2 + 1, y2 + 1), outline=colour, width=2)
    return cell, len(boxes)


def read_boxes(path: Path, size_wh: tuple[int, int]) -> list[tuple[int, Box]]:
    """Class and box in pixels of every line of a YOLO label file. Raises DatasetError with the line's number."""
    width, height = size_wh
    boxes = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                class_id, (xc, yc, w, h) = int(line.split()[0]), map(float, line.split()[1:])
                if class_id < 0 or not all(0 <= value <= 1 for value in (xc, yc, w, h)):
                    raise ValueError
            except (ValueError, IndexError):
                raise DatasetError(
                    f"{path}: line {number}: got {line[:100]!r}, expected 'class xc yc w h', a number and shares "
                    "from 0 to 1"
                ) from None
            left, top = (xc - w / 2) * width, (yc - h / 2) * height
            boxes.append((class_id, Box.from_xywh(left, top, w * width, h * height)))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is no text"
        raise DatasetError(f"{path}: {reason}, expected a label file; see dtld validate") from error
    return boxes


def _draw_header(draw: ImageDraw.ImageDraw, title: str, class_names: tuple[str, ...]) -> None:
    draw.text((MARGIN, 8), title, fill=INK, font=_font(20))
    x = MARGIN
    for index, name in enumerate(class_names):
        if x + 40 + draw.textlength(name, font=_font(14)) > draw.im.size[0] - LEGEND_END:
            draw.text((x, 38), f"and {len(class_names) - index:,} more", fill=FAINT, font=_font(14))
            break
        draw.rectangle((x, 40, x + 14, 54), outline=COLOURS[index % len(COLOURS)], width=3)
        draw.text((x + 22, 38), name, fill=INK, font=_font(14))
        x += 40 + round(draw.textlength(name, font=_font(14)))


def _font(size_px: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib ships it: present wherever this project is installed."""
    spec = find_spec("matplotlib")
    assert spec  # it is a requirement
    assert spec.origin
    return ImageFont.truetype(Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf", size_px)
