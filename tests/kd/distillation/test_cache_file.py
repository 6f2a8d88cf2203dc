"""The file of a teacher's detections: its way there and back, its size, and what is none."""

from __future__ import annotations

import hashlib
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd.distillation.cache_file import CLASSES, FULL, IMAGE_BYTES, Detections, TeacherCache, image_sha256, most_rows
from kd.errors import DistillationError

TEACHER = "ab" * 32


def key(i):
    return hashlib.sha256(str(i).encode()).hexdigest()


def drawn(counts, classes, seed=0):
    """Detections of so many images, as shares that 16 bits hold."""
    rng = np.random.default_rng(seed)
    shares = [rng.integers(1, FULL + 1, (n, 4 + classes)).astype(np.float32) / FULL for n in counts]
    return {key(i): Detections(one[:, :4], one[:, 4:]) for i, one in enumerate(shares)}


def cache_of(found, classes):
    return TeacherCache.of(TEACHER, 192, [f"c{i}" for i in range(classes)], found.items())


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(1, CLASSES + 4))
def test_there_and_back(tmp_path_factory, counts, classes):
    found = drawn(counts, classes)
    path = tmp_path_factory.mktemp("cache") / "t.npz"
    cache_of(found, classes).write(path)
    read = TeacherCache.read(path)
    assert (read.teacher_sha256, read.imgsz, len(read.names), list(read.index)) == (TEACHER, 192, classes, list(found))
    for image, (boxes, scores) in found.items():
        best = np.sort(scores, axis=1)[:, -CLASSES:][:, :1]  # of others it says nothing
        own = read.detections(image)
        np.testing.assert_array_equal(own.boxes_xywh, boxes)
        np.testing.assert_array_equal(own.scores, np.where(scores >= best, scores, 0))
    assert read.size(path) == {"images": len(counts), "rows": sum(counts), "bytes": path.stat().st_size}


@pytest.mark.parametrize("classes", [1, 2, 3, 16, 80, 1203])
def test_no_image_takes_more_than_two_kilobytes(tmp_path, classes):
    images = 40
    cache_of(drawn([most_rows(classes)] * images, classes), classes).write(tmp_path / "t.npz")
    about = 300 + 8 * classes  # names
    assert 0.5 * IMAGE_BYTES < ((tmp_path / "t.npz").stat().st_size - about) / images < 1.02 * IMAGE_BYTES
    assert most_rows(classes) >= 28


def test_the_same_content_makes_the_same_file(tmp_path):
    found = drawn([2, 0, 3], 2)
    for name in ("a.npz", "b.npz"):
        cache_of({**found}, 2).write(tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a.npz", "b.npz"}


def arrays(**changes):
    about = {"format": 1, "teacher_sha256": TEACHER, "imgsz": 64, "names": ["a", "b"], **changes.pop("about", {})}
    return {
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8), "images": np.zeros((1, 32), np.uint8),
        "counts": np.ones(1, np.uint16), "rows": np.zeros((1, 8), np.uint16), **changes,
    }  # fmt: skip


def archive(**content):
    file = io.BytesIO()
    np.savez(file, **{name: array for name, array in content.items() if array is not None})
    return file.getvalue()


WHOLE = archive(**arrays())
DAMAGED = {
    "empty": b"",
    "text": b"train: images\n",
    "cut off": WHOLE[: len(WHOLE) // 2],
    "one byte": WHOLE[:200] + bytes([WHOLE[200] ^ 255]) + WHOLE[201:],
    "other arrays": archive(a=np.zeros(3)),
    "no rows": archive(**arrays(rows=None)),
    "another format": archive(**arrays(about={"format": 2})),
    "no names": archive(**arrays(about={"names": []})),
    "rows of another width": archive(**arrays(rows=np.zeros((1, 6), np.uint16))),
    "other numbers": archive(**arrays(rows=np.zeros((1, 8), np.float32))),
    "rows without an image": archive(**arrays(rows=np.zeros((3, 8), np.uint16))),
    "an image without a count": archive(**arrays(images=np.zeros((2, 32), np.uint8))),
    "a class that is none": archive(**arrays(rows=np.full((1, 8), 2, np.uint16))),
    "no size": archive(**arrays(about={"imgsz": None})),
    "a list": archive(**{**arrays(), "about": np.frombuffer(b"[1]", np.uint8)}),
}


def test_the_whole_file_is_read(tmp_path):
    (tmp_path / "t.npz").write_bytes(WHOLE)
    assert TeacherCache.read(tmp_path / "t.npz").names == ("a", "b")


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_damaged_or_foreign_is_refused_in_a_line(tmp_path, name):
    path = tmp_path / "t.npz"
    path.write_bytes(DAMAGED[name])
    with pytest.raises(DistillationError, match="got no file of kd cache") as refusal:
        TeacherCache.read(path)
    assert len(str(refusal.value).splitlines()) == 1


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    np.savez(tmp_path / "t.npz", **{**arrays(), "rows": np.array([[Bomb()]], dtype=object)})
    with pytest.raises(DistillationError, match="got no file of kd cache"):
        TeacherCache.read(tmp_path / "t.npz")
    assert not (tmp_path / "exploded").exists()


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DistillationError, match=r"t\.npz: got No such file or directory"):
        TeacherCache.read(tmp_path / "t.npz")


def test_an_image_is_hashed_again_once_it_has_changed(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    before = image_sha256(path)
    path.write_bytes(b"other")
    assert (before, image_sha256(path)) == tuple(hashlib.sha256(text).hexdigest() for text in (b"one", b"other"))
