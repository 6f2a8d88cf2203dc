"""Boxes and pixels agree: an image that says it is turned is refused by name, in every format and at every door."""

import cv2
import numpy as np
import pytest
from dtld_data import image, light, random_raw, write_v2
from PIL import Image

from dtld_tools.errors import ImageError
from dtld_tools.images import image_size, orientation, read_image

TURNED = (2, 3, 4, 5, 6, 7, 8)


def save(path, tag, size_wh=(64, 32)):
    """An image of the kind that its ending says, with the tag, or without one for None."""
    rng = np.random.default_rng(0)
    width, height = size_wh
    if path.suffix == ".tiff":
        pixels = random_raw(rng, width, height)
        Image.fromarray(pixels).save(path, tiffinfo={} if tag is None else {274: tag})
        return pixels
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    exif = Image.Exif()
    if tag is not None:
        exif[0x0112] = tag
    Image.fromarray(pixels).save(path, exif=exif, **({"quality": 95} if path.suffix == ".jpg" else {}))
    return pixels


@pytest.mark.parametrize("ending", [".tiff", ".jpg", ".png"])
@pytest.mark.parametrize("tag", TURNED)
def test_a_turned_image_is_refused_by_its_tag(tmp_path, ending, tag):
    path = tmp_path / f"a{ending}"
    save(path, tag)
    assert orientation(path) == tag
    for door in (image_size, read_image):
        with pytest.raises(ImageError, match=rf"a{ending}: got an image that says it is turned \(Orientation {tag}\)"):
            door(path)


@pytest.mark.parametrize("ending", [".tiff", ".jpg", ".png"])
@pytest.mark.parametrize("tag", [None, 1])
def test_an_upright_image_is_read_as_it_is_stored(tmp_path, ending, tag):
    path = tmp_path / f"a{ending}"
    pixels = save(path, tag)
    assert orientation(path) == 1
    found = read_image(path)
    if ending == ".png":
        assert (found[..., ::-1] == pixels).all()
    elif ending == ".tiff":
        assert (found == (cv2.cvtColor(pixels, cv2.COLOR_BAYER_GB2BGR) >> 4).astype(np.uint8)).all()
    assert found.shape[:2] == (32, 64)


def test_big_endian_tiff(tmp_path):
    """Byte order MM, the tag among others: as cameras write it."""
    header = b"MM\0*" + (8).to_bytes(4, "big")
    tags = [(256, 3, 1, 7 << 16), (274, 3, 1, 6 << 16), (277, 3, 1, 1 << 16)]
    entries = b"".join(
        tag.to_bytes(2, "big") + kind.to_bytes(2, "big") + count.to_bytes(4, "big") + value.to_bytes(4, "big")
        for tag, kind, count, value in tags
    )
    (tmp_path / "a.tiff").write_bytes(header + len(tags).to_bytes(2, "big") + entries + bytes(4))
    assert orientation(tmp_path / "a.tiff") == 6


@pytest.mark.parametrize(
    "content", [b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff", b"\xff\xd8\xff\xe1"]
)
def test_a_damaged_header_is_left_to_the_decoder(tmp_path, content):
    (tmp_path / "a.tiff").write_bytes(content)
    assert orientation(tmp_path / "a.tiff") == 1


def test_prepare_leaves_turned_frames_out_by_name(tmp_path, dtld):
    """One frame of four is turned: skipped, counted, its lights too; the three others are as without it."""
    folder, images = tmp_path / "raw", []
    for number in range(4):
        name = f"Aachen/Aachen1/2015-04-0{number + 1}_10-50-05/f{number}_k0.tiff"
        (folder / name).parent.mkdir(parents=True)
        save(folder / name, 3 if number == 2 else 1, (128, 64))
        images.append(image(f"./{name}", light(10, 10, 8, 20, number)))
    labels = write_v2(folder / "all.json", images)
    out = tmp_path / "out"
    code, printed, told = dtld("convert", labels, "--root", folder, "--out", out, "--val", "0", "--test", "0")
    assert code == 0
    assert "skipped: Aachen/Aachen1/2015-04-03_10-50-05/f2_k0.tiff: unreadable: got an image that says" in told
    assert "lights: 4 in = 3 kept + 0 dropped + 1 in skipped frames" in printed
    code, _, told = dtld("convert", labels, "--root", folder, "--out", tmp_path / "b", "--strict")
    assert (code, told.count("\n")) == (1, 1)
    assert "Orientation 3" in told
