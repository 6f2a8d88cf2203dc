"""Boxes and pixels agree or it is an error: what says that it is turned is refused, in every format and place."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from dtld_tools.errors import ImageError
from dtld_tools.pipeline import stages as pipeline
from dtld_tools.pipeline.stages import Run, Selection
from dtld_tools.pixels.augment import AugmentSpec
from dtld_tools.pixels.images import image_size, read_image
from dtld_tools.pixels.orientation import read_orientation
from dtld_tools.planning.split import SplitSpec
from dtld_tools.validation.validate import validate
from tests.dtld_data import frame_path, image, light, make_tree, random_raw, read_lines, write_v2

RAW = random_raw(np.random.default_rng(0), 64, 32)
COLOUR = np.random.default_rng(1).integers(0, 256, (32, 64, 3), dtype=np.uint8)


def ifd(*values, order="<", kind="H", big=False):
    """A TIFF file of a directory with nothing but Orientation tags: what an EXIF block is, too."""
    number, form = {"B": 1, "H": 3, "I": 4, "d": 12}[kind], ("HHQ8s" if big else "HHI4s")
    size = 8 if big else 4
    tags = b"".join(
        struct.pack(order + form, 0x0112, number, 1, struct.pack(order + kind, value)[:size].ljust(size, b"\0"))
        for value in values
    )
    mark = b"II" if order == "<" else b"MM"
    if big:
        return mark + struct.pack(order + "HHHQQ", 43, 8, 0, 16, len(values)) + tags
    return mark + struct.pack(order + "HIH", 42, 8, len(values)) + tags + bytes(4)


def tiff(pixels, orientation, **options):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "TIFF", tiffinfo={274: orientation}, **options)
    return data.getvalue()


def segment(exif):
    return b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + b"Exif\0\0" + exif


def jpeg(*exifs, before=b""):
    data = cv2.imencode(".jpg", COLOUR)[1].tobytes()
    return data[:20] + before + b"".join(map(segment, exifs)) + data[20:]  # behind JFIF's own segment


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(exif, *, behind_pixels=False, pixels=COLOUR):
    data = cv2.imencode(".png", pixels)[1].tobytes()
    at = len(data) - 12 if behind_pixels else 33
    return data[:at] + chunk(b"eXIf", exif) + data[at:]


TURNED = {
    **{f"raw tiff {n}": (".tiff", tiff(RAW, n), n) for n in range(2, 9)},
    **{f"colour tiff {n}": (".tiff", tiff(COLOUR, n), n) for n in (3, 6)},
    "packed tiff": (".tif", tiff(RAW, 3, compression="tiff_lzw"), 3),
    "big tiff": (".tiff", tiff(RAW, 6, big_tiff=True), 6),
    **{f"jpeg {n}": (".jpg", jpeg(ifd(n)), n) for n in range(2, 9)},
    "jpeg, big endian": (".jpg", jpeg(ifd(6, order=">")), 6),
    "jpeg, the second block": (".jpeg", jpeg(ifd(1), ifd(8)), 8),
    "jpeg, behind stray bytes": (".jpg", jpeg(ifd(3), before=b"12345"), 3),
    "jpeg, a long number": (".jpg", jpeg(ifd(3, kind="I")), 3),
    "jpeg, no number": (".jpg", jpeg(ifd(3.0, kind="d")), 0),
    "jpeg, no meaning": (".jpg", jpeg(ifd(9)), 9),
    "tag twice": (".jpg", jpeg(ifd(1, 6)), 6),
    **{f"png {n}": (".png", png(ifd(n)), n) for n in range(2, 9)},
    "png, 16 bits": (".png", png(ifd(3), pixels=RAW), 3),
    "jpeg named png": (".png", jpeg(ifd(3)), 3),
}
UPRIGHT = {
    "raw tiff": (".tiff", tiff(RAW, 1)),
    "colour tiff": (".tiff", tiff(COLOUR, 1)),
    "big tiff": (".tiff", tiff(RAW, 1, big_tiff=True)),
    "jpeg": (".jpg", jpeg(ifd(1))),
    "jpeg without": (".jpg", jpeg(ifd())),
    "jpeg, damaged block": (".jpg", jpeg(b"II*\0\xff\xff\xff\xff")),
    "png": (".png", png(ifd(1))),
    "png behind pixels": (".png", png(ifd(1), behind_pixels=True)),
}


@pytest.mark.parametrize("name", TURNED)
def test_what_is_turned_is_refused_with_its_number(tmp_path, name):
    ending, data, number = TURNED[name]
    path = tmp_path / f"a{ending}"
    path.write_bytes(data)
    for function in (image_size, read_image):
        with pytest.raises(ImageError, match=rf"a\{ending}: got Orientation {number}, expected 1 or none"):
            function(path)


@pytest.mark.parametrize("name", UPRIGHT)
def test_what_is_upright_is_read_as_stored(tmp_path, name):
    ending, data = UPRIGHT[name]
    path = tmp_path / f"a{ending}"
    path.write_bytes(data)
    assert image_size(path) == (64, 32)
    if "raw" in name or "big" in name:
        expected = (cv2.cvtColor(RAW, cv2.COLOR_BAYER_GB2BGR) >> 4).astype(np.uint8)
    elif "jpeg" in name:
        expected = cv2.imdecode(cv2.imencode(".jpg", COLOUR)[1], cv2.IMREAD_COLOR)
    else:
        expected = COLOUR if ending == ".png" else COLOUR[..., ::-1]
    np.testing.assert_array_equal(read_image(path), expected)


def test_a_png_whose_tag_stands_behind_the_pixels_is_refused_when_they_are_read(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(ifd(6), behind_pixels=True))
    assert image_size(path) == (64, 32)  # the way there would cost a hundred times the header
    with pytest.raises(ImageError, match="got Orientation 6"):
        read_image(path)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 1),
        (b"no image", 1),
        (ifd(6), 6),
        (ifd(6, order=">"), 6),
        (ifd(6, order=">", kind="B"), 6),
        (ifd(6, big=True), 6),
        (ifd(5, order=">", big=True), 5),
        (ifd(6)[:-8], 1),  # cut off within the tag
        (b"II*\0\x08\0\0\0\xff\xff", 1),
        (b"II+\0\x08\0\0\0" + b"\xff" * 8, 1),  # an offset that no file has
    ],
)
def test_the_reader_alone(data, expected):
    assert read_orientation(io.BytesIO(data)) == expected


@pytest.mark.parametrize("suffix", [".bmp", ".webp"])
def test_other_formats_are_refused_whatever_their_name(tmp_path, suffix):
    """Their Orientation is not looked for, and OpenCV would read them."""
    path = tmp_path / "a.png"
    path.write_bytes(cv2.imencode(suffix, COLOUR)[1].tobytes())
    for function in (image_size, read_image):
        with pytest.raises(ImageError, match="expected a TIFF, PNG or JPEG image"):
            function(path)


# --- through the commands ----------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    """Four frames, the second of which says that it is to be turned by 180 degrees."""
    images = make_tree(tmp_path, cities=("Aachen",), sequences=2, frames=2)
    path = tmp_path / images[1]["image_path"]
    path.write_bytes(tiff(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), 3))
    images[1]["labels"] = [light(10, 10, 20, 40, 77)]
    return tmp_path, write_v2(tmp_path / "all.json", images), images[1]["image_path"].removeprefix("./")


def test_a_turned_frame_is_skipped_by_name_with_its_lights(tree):
    root, labels, name = tree
    report = pipeline.convert(Selection((labels,), root), root / "out", SplitSpec(0, 0))
    (skip,) = report["frames_skipped"]
    assert (skip["frame"], skip["lights"]) == (name, 1)
    assert skip["reason"].startswith("unreadable: got Orientation 3, expected 1 or none")
    assert report["images"]["train"] == 3
    with pytest.raises(ImageError, match="got Orientation 3"):
        pipeline.convert(Selection((labels,), root), root / "strict", SplitSpec(0, 0), run=Run(strict=True))
    assert not (root / "strict").exists()


def test_a_png_frame_turned_behind_its_pixels_is_skipped_too(tmp_path):
    names = [frame_path("Aachen", 1, number).replace(".tiff", ".png") for number in (0, 1)]
    for name, number in zip(names, (1, 6), strict=True):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(ifd(number), behind_pixels=True))
    labels = write_v2(tmp_path / "all.json", [image(name, light(1, 2, 9, 9)) for name in names])
    report = pipeline.convert(Selection((labels,), tmp_path), tmp_path / "out", SplitSpec(0, 0))
    assert [skip["frame"] for skip in report["frames_skipped"]] == [names[1]]
    assert [line["frame"] for line in read_lines(tmp_path / "out/frames.jsonl")] == [names[0]]


def test_a_turned_image_of_a_dataset_is_a_defect_and_never_copied(full, tmp_path):
    """`augment` copies originals byte by byte, so it must look, too."""
    first = sorted((full / "images/train").iterdir())[0]
    before = first.read_bytes()
    first.write_bytes(before[:20] + segment(ifd(6)) + before[20:])
    try:
        defects = validate(full)["defects"]
        assert len(defects) == 1
        assert f"images/train/{first.name}: got Orientation 6" in defects[0]
        with pytest.raises(ImageError, match=f"{first.name}: got Orientation 6"):
            pipeline.augment(full, tmp_path / "copies", AugmentSpec(copies=0))
        with pytest.raises(ImageError, match=f"{first.name}: got Orientation 6"):
            pipeline.split(full, tmp_path / "split", SplitSpec(0.3, 0.3))
    finally:
        first.write_bytes(before)
