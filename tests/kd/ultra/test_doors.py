"""Every door through which an image comes into kd: what is not 8-bit is refused, and no file of the data changes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra kd")
import cv2
import numpy as np
from PIL import Image
from ultralytics.data.dataset import YOLODataset
from ultralytics.utils.patches import imread

from kd.distillation.unlabeled import check_unlabeled
from kd.errors import DataError, ModelError
from kd.reports.figures import _draw_detections
from kd.runs.record import Run
from kd.scoring.evaluate import evaluate
from kd.scoring.predict import predict
from kd.training.run import train
from kd.ultra import session
from kd.ultra.data import resolve_data, ultralytics_view
from kd.ultra.depth import bits_per_channel
from kd.ultra.labels import check_splits
from tests.kd_fixtures import tiny_config, write_dataset
from tests.kd_models import save_detector

REFUSAL = r"got 1 of \d+ images that are not 8-bit \(.* has (16|32) bits\), expected 8 bits .*dtld convert"


@pytest.fixture
def data(tmp_path):
    return write_dataset(tmp_path / "d", train=3, val=3, test=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_detector(tmp_path_factory.mktemp("model") / "m.pt", {0: "red", 1: "green"})


def deep(path: Path, channels: int = 1, dtype: type = np.uint16) -> Path:
    """A raw frame of 12 bits in 16, or the like, in place of an image."""
    values = np.random.default_rng(0).integers(0, 4096, (96, 96, channels)).astype(dtype)
    assert cv2.imwrite(str(path), values.squeeze())
    return path


# --- not 8-bit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["tiff", "png", "jp2"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_bits_are_read_from_the_header(tmp_path, ending, channels):
    if (ending, channels) == ("jp2", 4):
        pytest.skip("OpenCV writes no such file")
    assert bits_per_channel(deep(tmp_path / f"a.{ending}", channels)) == 16
    assert bits_per_channel(deep(tmp_path / f"b.{ending}", channels, np.uint8)) == 8


def test_bits_of_odd_files(tmp_path):
    assert bits_per_channel(deep(tmp_path / "float.tiff", 1, np.float32)) == 32
    shape = (40, 40)
    for name, image in {
        "1.png": Image.new("1", shape), "p.png": Image.new("P", shape), "la.png": Image.new("LA", shape),
        "1.tiff": Image.new("1", shape), "c.jpg": Image.new("CMYK", shape), "w.webp": Image.new("RGB", shape),
        "b.bmp": Image.new("RGB", shape), "a.avif": Image.new("RGB", shape),
    }.items():  # fmt: skip
        image.save(tmp_path / name)
        assert bits_per_channel(tmp_path / name) <= 8, name
        assert imread(tmp_path / name).dtype == np.uint8
    for depth, dtype in ((8, np.uint8), (16, np.uint16)):
        Image.fromarray(np.zeros(shape, dtype)).save(tmp_path / "bare.j2k")
        assert bits_per_channel(tmp_path / "bare.j2k") == depth
    big = tmp_path / "big.tiff"
    Image.fromarray(np.zeros(shape, np.uint16)).save(big, big_tiff=True)
    assert bits_per_channel(big) == 16
    for content in (b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"II+\0", b"\x89PNG\r\n\x1a\n", b"\0\0\0\x0cjP  ihdr"):
        (tmp_path / "damaged.tiff").write_bytes(content)
        assert bits_per_channel(tmp_path / "damaged.tiff") == 8
    assert bits_per_channel(tmp_path / "none.png") == 8


def test_a_raw_frame_is_black_to_ultralytics(tmp_path):
    """Why all of this: it keeps the high byte, of which 12 bits fill four."""
    assert imread(deep(tmp_path / "raw.tiff")).max() <= 15


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_training_and_scoring_take_8_bits_alone(data, model, tmp_path, split):
    image = data.parent / "images" / split / "000.png"
    deep(image.with_suffix(".tiff"))
    (image.with_suffix(".tiff")).rename(image) if split == "val" else image.unlink()  # the ending is not asked
    for dry_run in (True, False):
        with pytest.raises(DataError, match=rf"{split}: {REFUSAL}"):
            train(tiny_config(data, tmp_path / "run", skip_bad_labels=True), dry_run=dry_run, quiet=True)
    assert not (tmp_path / "run").exists()
    with pytest.raises(DataError, match=rf"{split}: {REFUSAL}"):
        evaluate(data, model, split=split, device="cpu", skip_bad_labels=True, quiet=True)


def test_unlabelled_images_and_predict_take_8_bits_alone(data, model, tmp_path):
    images = tmp_path / "more"
    images.mkdir()
    deep(images / "a.tiff")
    with pytest.raises(DataError, match=rf"--unlabeled .*{REFUSAL}"):
        check_unlabeled(images, resolve_data(data))
    with pytest.raises(DataError, match=r"a\.tiff: got uint16 in one channel, expected an 8-bit image; .*dtld convert"):
        predict([images], [model], tmp_path / "out.png", device="cpu", quiet=True)
    record = {"config": {"data": str(data), "imgsz": 96, "seed": 0}}
    for name in ("000", "001"):
        deep(data.parent / "images" / "test" / f"{name}.png")
    with pytest.raises(DataError, match=r"expected an 8-bit image; a raw DTLD frame"):
        _draw_detections(Run(tmp_path, "run", record), [Path(model)], ["a"], 2)


# --- the data stay as they are ----------------------------------------------------------------------------


def state(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Names, content, times and inodes of all files below a folder, hidden ones too."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
            path.stat().st_mtime_ns,
            path.stat().st_ino,
        )
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def phone(tmp_path):
    """JPEGs as phones write them, with bytes behind their end, one with an EXIF turn, and stray files beside them."""
    data = write_dataset(tmp_path / "phone", train=3, val=3, test=2)
    for png in sorted((tmp_path / "phone" / "images").rglob("*.png")):
        image = Image.open(png)
        exif = Image.Exif()
        exif[274] = 3 if png.stem == "001" else 1
        image.save(png.with_suffix(".jpg"), quality=90, exif=exif)
        png.unlink()
        if png.stem != "002":
            with png.with_suffix(".jpg").open("ab") as file:
                file.write(b"\0SEFT trailer of a phone")
    (tmp_path / "phone" / "labels" / "train.cache").write_bytes(b"of another program")
    first = tmp_path / "phone" / "images" / "train" / "000"
    np.save(first.with_suffix(".npy"), np.zeros((5, 5, 1), np.uint8))  # of other channels: Ultralytics writes it anew
    first.with_name("001.npy").write_bytes(b"damaged")  # Ultralytics deletes it
    return data


def test_no_file_of_the_data_changes(phone, model, tmp_path):
    folder = phone.parent
    before = state(folder)
    config = tiny_config(phone, tmp_path / "run", settings=(("mosaic", 1.0), ("cache", "ram")))
    train(config, dry_run=True, quiet=True)
    assert state(folder) == before
    train(config, quiet=True)
    assert state(folder) == before
    train(tiny_config(phone, tmp_path / "kd", teachers=(model,)), allow_weak_teacher=True, quiet=True)
    assert state(folder) == before
    evaluate(phone, model, device="cpu", quiet=True)
    predict([folder / "images" / "val"], [model], tmp_path / "out.png", device="cpu", quiet=True)
    assert state(folder) == before


def test_an_image_with_bytes_behind_its_end_is_read_as_it_is(phone):
    """Pixels are those of the file, not of one saved anew, and not of a stray array beside it."""
    view = ultralytics_view(resolve_data(phone))
    with session.silence():
        dataset = YOLODataset(img_path=view["train"], data=view, task="detect", augment=False, imgsz=96)
    assert len(dataset) == 3
    for i, file in enumerate(dataset.im_files):
        np.testing.assert_array_equal(dataset.load_image(i)[0], cv2.imread(file))


def test_a_jpeg_that_is_cut_off_is_unusable(phone):
    image = phone.parent / "images" / "val" / "002.jpg"
    image.write_bytes(image.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"val/002\.jpg: .*truncated"):
        check_splits(phone, resolve_data(phone), ["val"], needed=["val"])


def test_a_dataset_that_cannot_be_written_to_is_enough(data, model, tmp_path):
    folder = data.parent
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert evaluate(data, model, device="cpu", quiet=True)["images"] == 2
    finally:
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)


# --- grey images and others -------------------------------------------------------------------------------


def test_grey_images_are_distilled_by_a_teacher_of_grey_images_alone(data, model, tmp_path):
    data.write_text(data.read_text() + "channels: 1\n")
    train(tiny_config(data, tmp_path / "plain"), quiet=True)
    grey = str(tmp_path / "plain" / "weights" / "last.pt")
    assert evaluate(data, grey, device="cpu", quiet=True)["images"] == 2
    for teacher in (model, "yolov5s"):
        config = tiny_config(data, tmp_path / "kd", teachers=(teacher,))
        with pytest.raises(ModelError, match=r"channels: got a model of 3, expected 1 as .*data.yaml has them"):
            train(config, allow_weak_teacher=True, quiet=True)
    with pytest.raises(ModelError, match="channels: got a model of 3, expected 1"):
        evaluate(data, model, device="cpu", quiet=True)
    config = tiny_config(data, tmp_path / "kd", teachers=(grey,), student=model)
    result = train(config, allow_weak_teacher=True, quiet=True)
    assert result["kd"]["teachers"][0]["worth"]["student_map50"] is None


def test_images_of_other_channels_than_the_data_say_are_refused(data, tmp_path):
    data.write_text(data.read_text() + "channels: 4\n")
    with pytest.raises(DataError, match=r"train: got 000.png of 3 channels, expected channels: 4"):
        train(tiny_config(data, tmp_path / "run"), quiet=True)
