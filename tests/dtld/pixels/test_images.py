"""The one opener of images: bit-identical to DTLD's official recipe, and a named error for all that is broken."""

import cv2
import numpy as np
import pytest

from dtld_tools.errors import ImageError
from dtld_tools.pixels.images import (
    PAD_GREY,
    crop,
    decode_bayer,
    encode_image,
    image_size,
    read_image,
)
from tests.dtld_data import REAL, needs_real, random_raw, write_raw


def official_recipe(raw):
    """dtld_parsing/driveu_dataset.py, DriveuImage.get_image: demosaic, then shift, then 8 bits."""
    image = cv2.cvtColor(raw, cv2.COLOR_BAYER_GB2BGR)
    image = image >> 4
    return image.astype(np.uint8)


@pytest.fixture
def raw():
    return random_raw(np.random.default_rng(0), 256, 128)


@pytest.fixture
def colour():
    return np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def write(path, image):
    assert cv2.imwrite(str(path), image)
    return path


# --- Bayer -----------------------------------------------------------------------------------------------


def test_bayer_is_decoded_as_the_official_parser_does(tmp_path, raw):
    decoded = read_image(write(tmp_path / "a.tiff", raw))
    assert decoded.dtype == np.uint8
    assert decoded.shape == (128, 256, 3)
    np.testing.assert_array_equal(decoded, official_recipe(raw))
    np.testing.assert_array_equal(decode_bayer(raw), official_recipe(raw))


def test_every_value_of_12_bits_and_beyond_is_shifted_as_the_official_parser_does():
    for most in (2**12, 2**16):  # beyond 12 bits the official recipe wraps around, and so do we
        flat = np.arange(most, dtype=np.uint16).repeat(16).reshape(-1, 256)
        np.testing.assert_array_equal(decode_bayer(flat), official_recipe(flat))
        noise = np.random.default_rng(0).integers(0, most, (64, 96), dtype=np.uint16)
        np.testing.assert_array_equal(decode_bayer(noise), official_recipe(noise))


def test_decoded_images_do_not_share_their_memory(raw):
    first = decode_bayer(raw)
    before = first.copy()
    decode_bayer(4095 - raw)
    np.testing.assert_array_equal(first, before)


def test_shifting_first_would_differ(raw):
    """Why the order matters: the mean of neighbours, rounded, is not the mean of rounded neighbours."""
    shifted_first = cv2.cvtColor((raw >> 4).astype(np.uint16), cv2.COLOR_BAYER_GB2BGR).astype(np.uint8)
    difference = np.abs(shifted_first.astype(int) - decode_bayer(raw).astype(int))
    assert difference.max() == 1
    assert 0 < (difference > 0).mean() < 1


def test_the_raw_array_stays_as_it_is(raw):
    before = raw.copy()
    decode_bayer(raw)
    np.testing.assert_array_equal(raw, before)


def test_colours_come_out_in_bgr_order():
    """A Bayer pattern filled with one value per colour gives that colour back (GB in OpenCV's name: G R / B G)."""
    raw = np.zeros((16, 16), np.uint16)
    raw[0::2, 0::2] = raw[1::2, 1::2] = 100 << 4  # green
    raw[0::2, 1::2] = 200 << 4  # red
    raw[1::2, 0::2] = 50 << 4  # blue
    assert decode_bayer(raw)[8, 8].tolist() == [50, 100, 200]


def test_the_real_photographs(tmp_path):
    needs_real()
    for path in sorted(REAL.rglob("*_k0.tiff"))[::8]:
        raw = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert (raw.dtype, raw.shape) == (np.uint16, (1024, 2048))
        np.testing.assert_array_equal(read_image(path), official_recipe(raw))
        assert image_size(path) == (2048, 1024)


# --- colour ----------------------------------------------------------------------------------------------


def test_a_png_is_read_as_it_is(tmp_path, colour):
    np.testing.assert_array_equal(read_image(write(tmp_path / "a.png", colour)), colour)


def test_a_jpeg_is_read_as_it_is(tmp_path, colour):
    path = write(tmp_path / "a.jpg", colour)
    np.testing.assert_array_equal(read_image(path), cv2.imread(str(path)))


def test_grey_becomes_three_equal_channels(tmp_path, colour):
    grey = colour[..., 0]
    np.testing.assert_array_equal(read_image(write(tmp_path / "a.png", grey)), np.dstack([grey] * 3))


def test_alpha_is_left_out(tmp_path, colour):
    with_alpha = np.dstack([colour, np.full(colour.shape[:2], 7, np.uint8)])
    np.testing.assert_array_equal(read_image(write(tmp_path / "a.png", with_alpha)), colour)


def test_an_unexpected_kind_is_named(tmp_path, colour):
    path = write(tmp_path / "a.png", colour.astype(np.uint16) << 8)
    with pytest.raises(ImageError, match=r"a\.png: got uint16 with 3 channels, expected 8-bit colour or a 16-bit raw"):
        read_image(path)


# --- broken files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["tiff", "png", "jpg"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.995])
def test_a_truncated_file_is_an_error_at_every_length(tmp_path, raw, colour, ending, share):
    path = write(tmp_path / f"a.{ending}", raw if ending == "tiff" else colour)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageError, match=rf"a\.{ending}"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"II*\x00\x08\x00\x00\x00", bytes(5000)])
def test_what_is_no_image_is_an_error(tmp_path, content):
    path = tmp_path / "a.tiff"
    path.write_bytes(content)
    for function in (read_image, image_size):
        with pytest.raises(ImageError, match=r"a\.tiff"):
            function(path)


@pytest.mark.parametrize("function", [read_image, image_size])
def test_a_missing_file_and_a_folder(tmp_path, function):
    with pytest.raises(ImageError, match=r"nowhere\.png: No such file"):
        function(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match="Is a directory"):
        function(tmp_path)


def test_a_header_that_claims_too_much_is_refused(tmp_path, colour):
    path = write(tmp_path / "a.png", colour)
    data = bytearray(path.read_bytes())
    data[16:24] = (100_000).to_bytes(4, "big") * 2  # width and height in IHDR
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"a\.png"):
        image_size(path)


@pytest.mark.parametrize("ending", ["tiff", "png", "jpg"])
def test_size_from_the_header(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    write_raw(path, np.random.default_rng(0), 96, 48) if ending == "tiff" else write(
        path, np.zeros((48, 96, 3), np.uint8)
    )
    assert image_size(path) == (96, 48)


# --- crop and write --------------------------------------------------------------------------------------


def test_crop_inside(colour):
    np.testing.assert_array_equal(crop(colour, 10, 5, 20, 15, (20, 15)), colour[5:20, 10:30])


def test_crop_beyond_the_edge_is_grey_there(colour):
    part = crop(colour, 0, 0, 100, 60, (100, 60))
    np.testing.assert_array_equal(part[:48, :64], colour)
    assert (part[48:] == PAD_GREY).all()
    assert (part[:, 64:] == PAD_GREY).all()


def test_crop_resizes(colour):
    small = crop(colour, 0, 0, 48, 48, (24, 24))
    # Halving by area is the mean of 2x2 pixels.
    means = colour[:48, :48].reshape(24, 2, 24, 2, 3).mean((1, 3))
    assert np.abs(small - means).max() <= 0.5
    assert crop(colour, 0, 0, 48, 48, (96, 96)).shape == (96, 96, 3)


def test_png_is_lossless_and_jpeg_is_quality_95(colour):
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(encode_image(colour, ".png"), np.uint8), 1), colour)
    _, expected = cv2.imencode(".jpg", colour, [cv2.IMWRITE_JPEG_QUALITY, 95])
    assert encode_image(colour, ".jpg") == expected.tobytes()
