"""A teacher's rows are moved as labels are, and leave labels, images and draws as they are without them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

from ultralytics.cfg import get_cfg
from ultralytics.data import augment
from ultralytics.data.build import build_yolo_dataset

import kd.ultra  # noqa: F401  before Ultralytics
from kd.distillation.cache import StudentClasses
from kd.distillation.cache_file import Detections, TeacherCache, image_sha256
from kd.distillation.rows import ROWS, _adapt, teach
from kd.errors import DistillationError
from kd.ultra import session
from kd.ultra.data import resolve_data, ultralytics_view
from tests.kd_fixtures import write_dataset

NAMES = ("red", "green")
ALL = {
    "mosaic": 0.7, "mixup": 0.4, "cutmix": 0.6, "copy_paste": 0.5, "degrees": 12.0, "translate": 0.2, "scale": 0.5,
    "flipud": 0.5, "fliplr": 0.5, "hsv_h": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    """Images with boxes; every third has none."""
    return write_dataset(tmp_path_factory.mktemp("boxes"), train=9)


@pytest.fixture(scope="module")
def polygons(tmp_path_factory):
    """The same objects as polygons of their four corners."""
    data = write_dataset(tmp_path_factory.mktemp("polygons"), train=9)
    for label in data.parent.glob("labels/*/*.txt"):
        lines = []
        for kind, x, y, w, h in (map(float, line.split()) for line in label.read_text().splitlines()):
            corners = [(x + i * w / 2, y + j * h / 2) for i, j in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
            lines.append(" ".join([f"{kind:.0f}", *(f"{value:.6f}" for corner in corners for value in corner)]))
        label.write_text("\n".join(lines))
    return data


PLAIN = dict.fromkeys(("mosaic", "translate", "scale", "fliplr", "hsv_h", "hsv_s", "hsv_v"), 0.0)


def dataset_of(data, **settings):
    """The training dataset of a plain run, at 64 px, and its arguments."""
    args = get_cfg(overrides={**PLAIN, **settings, "imgsz": 64, "task": "detect"})
    view = ultralytics_view(resolve_data(data))
    with session.silence():
        return build_yolo_dataset(args, view["train"], 3, view, mode="train"), args


def copying(dataset):
    """A cache in which the teacher says what the labels say, sure of it."""
    said = {}
    for label in dataset.labels:
        scores = np.eye(len(NAMES), dtype=np.float32)[label["cls"][:, 0].astype(int)]
        said[image_sha256(Path(label["im_file"]))] = Detections(label["bboxes"], scores)
    return TeacherCache.of("0" * 64, 64, NAMES, said.items())


def drawn(dataset, seed):
    """Every sample once."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return [dataset[i] for i in range(len(dataset))]


def ordered(table):
    return table[np.lexsort(np.round(table, 2).T)]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", ["boxes", "polygons"])
def test_with_rows_the_same_images_and_labels_are_drawn(kind, seed, request):
    data = request.getfixturevalue(kind)
    plain = drawn(dataset_of(data, **ALL)[0], seed)
    dataset = dataset_of(data, **ALL)[0]
    teach(dataset, copying(dataset), StudentClasses((0, 1)))
    for one, other in zip(plain, drawn(dataset, seed), strict=True):
        assert one.keys() | {ROWS} == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in ("img", "cls", "bboxes"))
        assert not len(other[ROWS]) or other[ROWS].shape[1] == 6


@pytest.mark.parametrize(
    "settings",
    [
        {"scale": 0.0},
        {"translate": 0.3, "scale": 0.5, "degrees": 20.0, "shear": 5.0, "fliplr": 0.5, "flipud": 0.5},
        {"mosaic": 1.0, "scale": 0.5, "fliplr": 0.5},
        {"mosaic": 0.5, "mixup": 1.0, "fliplr": 0.5},
        {"cutmix": 1.0, "scale": 0.2},
        {"mosaic": 0.5, "cutmix": 1.0, "mixup": 0.5, "flipud": 0.5},
        {"perspective": 0.0005, "scale": 0.2},
    ],
    ids=" ".join,
)
def test_what_the_labels_say_stays_what_they_say(boxes, settings):
    dataset = dataset_of(boxes, **settings)[0]
    teach(dataset, copying(dataset), StudentClasses((0, 1)))
    objects = 0
    for sample in drawn(dataset, 3):
        labels = torch.cat((sample["bboxes"], torch.eye(2)[sample["cls"][:, 0].long()]), 1).numpy()
        np.testing.assert_allclose(ordered(sample[ROWS].numpy()), ordered(labels), atol=2e-3)
        objects += len(labels)
    assert objects > 8


def test_polygons_and_what_is_pasted(polygons):
    dataset = dataset_of(polygons, mosaic=1.0, copy_paste=1.0, fliplr=0.5)[0]
    teach(dataset, copying(dataset), StudentClasses((0, 1)))
    more = 0
    for sample in drawn(dataset, 2):
        for row in sample[ROWS][:, :4]:
            assert (sample["bboxes"] - row).abs().amax(1).min() < 2e-3  # each is of a label; the pasted have none
        more += len(sample["bboxes"]) - len(sample[ROWS])
    assert more > 0


def test_closing_mosaic_keeps_the_rows(boxes):
    dataset, args = dataset_of(boxes, mosaic=1.0)
    teach(dataset, copying(dataset), StudentClasses((0, 1)))
    dataset.close_mosaic(args)
    assert all(len(sample[ROWS]) == len(sample["cls"]) for sample in drawn(dataset, 0))


def test_images_without_objects_or_rows_are_batched(boxes):
    dataset, _ = dataset_of(boxes)
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros((0, 2), np.float32))
    empty = {image_sha256(Path(label["im_file"])): nothing for label in dataset.labels}
    teach(dataset, TeacherCache.of("0" * 64, 64, NAMES, empty.items()), StudentClasses((0, 1)))
    batch = dataset.collate_fn(drawn(dataset, 0))
    assert [tuple(rows.shape) for rows in batch[ROWS]] == [(0, 6)] * 9
    assert len(batch["cls"]) == len(batch["bboxes"]) == 12


def test_a_transform_of_which_nothing_is_known_is_refused():
    class Rotate90(augment.BaseTransform):
        pass

    with pytest.raises(DistillationError, match="got the transform Rotate90 of Ultralytics"):
        _adapt(augment.Compose([augment.RandomHSV(), Rotate90()]))
