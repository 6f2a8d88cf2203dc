"""Pascal VOC, Create ML and WebDataset: as independent readers find them, and nothing half-written."""

import json
import os
import shutil
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from dtld_tools.errors import DatasetError, UsageError
from dtld_tools.export.boxes import labelled_images
from dtld_tools.export.createml import to_createml
from dtld_tools.export.export import to_coco
from dtld_tools.export.voc import corners, to_voc
from dtld_tools.export.webdataset import to_webdataset
from dtld_tools.pipeline import stages as pipeline
from dtld_tools.pipeline.stages import Selection
from dtld_tools.pixels.augment import AugmentSpec
from dtld_tools.planning.split import SplitSpec
from dtld_tools.types import SPLITS, Box, TileSpec
from tests.dtld_data import light, make_tree, tree_bytes, write_v2

FORMATS = {"voc": to_voc, "createml": to_createml, "webdataset": to_webdataset}


@pytest.fixture(scope="module")
def truth(tiles):
    """{image name: (split, [(class name, box)])}."""
    names = ("relevant", "not_relevant")
    return {
        each.image.name: (each.image.split, [(names[target.class_id], target.box) for target in each.targets])
        for each in labelled_images(tiles, SPLITS)
    }


def pixels_of(root, split, name):
    return (root / "images" / split / name).read_bytes()


# --- each format, as its readers find it -----------------------------------------------------------------


def test_voc_by_torchvision(tiles, truth, tmp_path):
    datasets = pytest.importorskip("torchvision.datasets")
    (tmp_path / "VOCdevkit").mkdir()
    made = to_voc(tiles, tmp_path / "VOCdevkit/VOC2007")
    seen = boxes = 0
    for split in SPLITS:
        for image, found in datasets.VOCDetection(str(tmp_path), "2007", split):
            name, found = found["annotation"]["filename"], found["annotation"]
            its_split, objects = truth[name]
            assert (its_split, found["source"]["database"]) == (split, "dtld")
            assert image.size == (int(found["size"]["width"]), int(found["size"]["height"])) == (96, 96)
            for entry, (label, box) in zip(found.get("object", []), objects, strict=True):
                assert entry["name"] == label
                xmin, ymin, xmax, ymax = (int(entry["bndbox"][key]) for key in ("xmin", "ymin", "xmax", "ymax"))
                near = np.abs(np.subtract((xmin - 1, ymin - 1, xmax, ymax), box))
                assert (near <= 0.5).all() or min(box.width, box.height) < 1
            seen, boxes = seen + 1, boxes + len(objects)
    assert (
        (made["images"], made["annotations"]) == (seen, boxes) == (len(truth), sum(len(o) for _, o in truth.values()))
    )
    for name, (split, _) in truth.items():
        assert (tmp_path / "VOCdevkit/VOC2007/JPEGImages" / name).read_bytes() == pixels_of(tiles, split, name)


@pytest.mark.filterwarnings("ignore")
def test_voc_by_datumaro(tiles, truth, tmp_path):
    Dataset = pytest.importorskip("datumaro").Dataset
    to_voc(tiles, tmp_path / "voc")
    items = Dataset.import_from(str(tmp_path / "voc"), "voc_detection", coordinate_mode="voc-one-based")
    found = {item.id: [each.points for each in item.annotations] for item in items}
    assert {f"{name}.jpg" for name in found} == set(truth)
    for name, (_, objects) in truth.items():
        for points, (_, box) in zip(found[Path(name).stem], objects, strict=True):
            assert np.abs(np.subtract(points, box)).max() <= 1


@pytest.mark.filterwarnings("ignore")
def test_coco_by_datumaro(tiles, truth, tmp_path):
    Dataset = pytest.importorskip("datumaro").Dataset
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").symlink_to(tiles / "images")
    to_coco(tiles, tmp_path / "annotations/instances_all.json")
    found = list(Dataset.import_from(str(tmp_path), "coco_instances"))
    assert len(found) == len(truth)
    assert sum(len(item.annotations) for item in found) == sum(len(objects) for _, objects in truth.values())


@pytest.mark.filterwarnings("ignore")
def test_coco_by_fiftyone(tiles, truth, tmp_path):
    """By its parser alone: a dataset of FiftyOne needs a MongoDB that runs."""
    coco = pytest.importorskip("fiftyone.utils.coco")
    to_coco(tiles, tmp_path / "tiles.json")
    _, classes, _, images, found, *_ = coco.load_coco_detection_annotations(str(tmp_path / "tiles.json"))
    assert classes == {1: "relevant", 2: "not_relevant"}
    boxes = {Path(image["file_name"]).name: found.get(number, []) for number, image in images.items()}
    assert {name: [(classes[each.category_id], Box.from_xywh(*each.bbox)) for each in own]
            for name, own in boxes.items()} == {
        name: [(label, Box.from_xywh(box.x1, box.y1, box.width, box.height)) for label, box in objects]
        for name, (_, objects) in truth.items()
    }  # fmt: skip


def test_a_light_that_its_tile_cuts_is_truncated(tmp_path):
    root = tmp_path / "raw"
    images = make_tree(root, cities=("Aachen",), sequences=1, frames=1, lights=0)
    images[0]["labels"] = [light(10, 40, 20, 30, 1), light(118, 40, 20, 30, 2)]
    labels = write_v2(root / "all.json", images)
    pipeline.prepare(
        Selection((labels,), root), tmp_path / "tiles", SplitSpec(0, 0), TileSpec(size_px=128, overlap=0),
        AugmentSpec(copies=0),
    )  # fmt: skip
    to_voc(tmp_path / "tiles", tmp_path / "voc")
    cut = {}
    for path in (tmp_path / "voc/Annotations").iterdir():
        for entry in ElementTree.parse(path).iter("object"):
            cut[path.stem[-5:], entry.findtext("bndbox/xmin")] = entry.findtext("truncated")
    assert cut == {("x0_y0", "11"): "0", ("x0_y0", "119"): "1", ("28_y0", "1"): "1"}


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        (Box(0, 0, 96, 96), (1, 1, 96, 96)),
        (Box(95.6, 95.6, 96, 96), (96, 96, 96, 96)),
        (Box(10.2, 10.7, 10.4, 12.2), (11, 12, 11, 12)),
        (Box(3, 4, 5, 7), (4, 5, 5, 7)),
    ],
)
def test_corners_of_voc(box, expected):
    assert corners(box, (96, 96)) == expected


@pytest.mark.parametrize("name", ["light:red", "#red"])
def test_a_class_that_labelmap_cannot_hold_is_refused(tiles, tmp_path, name):
    root = Path(shutil.copytree(tiles, tmp_path / "tiles"))
    for file, text in (("data.yaml", f'"{name}"'), ("report.json", name)):
        (root / file).write_text((root / file).read_text().replace("not_relevant", text))
    with pytest.raises(DatasetError, match=f"got the class '{name}', expected one without ':'"):
        to_voc(root, tmp_path / "out")
    assert os.listdir(tmp_path) == ["tiles"]


def test_createml(tiles, truth, tmp_path):
    made = to_createml(tiles, tmp_path / "out")
    seen = 0
    for split in SPLITS:
        entries = json.loads((tmp_path / "out" / split / "annotations.json").read_text())
        files = {path.name for path in (tmp_path / "out" / split).iterdir()} - {"annotations.json"}
        assert files == {entry["image"] for entry in entries} == {name for name in truth if truth[name][0] == split}
        for entry in entries:
            _, objects = truth[entry["image"]]
            for each, (label, box) in zip(entry["annotations"], objects, strict=True):
                x, y, w, h = (each["coordinates"][key] for key in ("x", "y", "width", "height"))
                assert each["label"] == label
                assert (x - w / 2, y - h / 2, x + w / 2, y + h / 2) == pytest.approx(tuple(box))
            assert (tmp_path / "out" / split / entry["image"]).read_bytes() == pixels_of(tiles, split, entry["image"])
            seen += len(objects)
    assert made["annotations"] == seen > 0
    assert made["images"] == len(truth)


def read_tars(folder):
    """{key: {ending: bytes}} of every shard, by the rule that a key ends at the first dot."""
    samples = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for entry in tar:
                key, _, ending = entry.name.partition(".")
                samples.setdefault((path.name, key), {})[ending] = tar.extractfile(entry).read()
    return samples


def test_webdataset(tiles, truth, tmp_path):
    made = to_webdataset(tiles, tmp_path / "out", shard_size=5)
    samples = read_tars(tmp_path / "out")
    assert len(samples) == len({key[0][:5] + key[1] for key in samples}) == made["images"] == len(truth)
    assert {json.loads(sample["json"])["name"] for sample in samples.values()} == set(truth)
    boxes = 0
    for (shard, _), sample in samples.items():
        about = json.loads(sample["json"])
        split, objects = truth[about["name"]]
        assert shard.startswith(f"{split}-")
        assert sample["jpg"] == pixels_of(tiles, split, about["name"])
        assert [(each["label"], Box(*each["box"])) for each in about["targets"]] == objects
        assert all(each["attributes"]["state"] for each in about["targets"])
        boxes += len(objects)
    index = json.loads((tmp_path / "out/dataset.json").read_text())
    shards = [shard for listed in index["shards"].values() for shard in listed]
    assert index["classes"] == ["relevant", "not_relevant"]
    assert sorted(shard["file"] for shard in shards) == sorted(path.name for path in (tmp_path / "out").glob("*.tar"))
    assert max(shard["images"] for shard in shards) == 5
    assert sum(shard["boxes"] for shard in shards) == made["annotations"] == boxes > 0


@pytest.mark.filterwarnings("ignore")
def test_webdataset_by_its_package(tiles, truth, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    to_webdataset(tiles, tmp_path / "out", ("train",), shard_size=5)
    urls = [str(path) for path in sorted((tmp_path / "out").glob("train-*.tar"))]
    assert len(urls) > 1
    found = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8").to_tuple("jpg", "json"))
    assert {about["name"] for _, about in found} == {name for name, (split, _) in truth.items() if split == "train"}
    assert len(found) == len({about["name"] for _, about in found})
    for picture, about in found:
        assert picture.shape == (about["height"], about["width"], 3)
        assert [Box(*each["box"]) for each in about["targets"]] == [box for _, box in truth[about["name"]][1]]


# --- all of them -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_the_same_bytes_every_time_and_only_the_splits_that_are_asked_for(tiles, truth, tmp_path, form):
    before = tree_bytes(tiles)
    for name in ("a", "b"):
        made = FORMATS[form](tiles, tmp_path / name, ("val",))
    assert tree_bytes(tmp_path / "a") == tree_bytes(tmp_path / "b")
    assert made["images"] == sum(split == "val" for split, _ in truth.values())
    assert not any("train" in name for name in tree_bytes(tmp_path / "a"))
    assert tree_bytes(tiles) == before
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_wrong_leaves_nothing(tiles, tmp_path, form):
    export = FORMATS[form]
    root = Path(shutil.copytree(tiles, tmp_path / "tiles"))
    next((root / "images/test").iterdir()).unlink()
    with pytest.raises(DatasetError, match=r"No such file or directory, expected an image; see dtld validate"):
        export(root, tmp_path / "out")
    (tmp_path / "used").mkdir()
    (tmp_path / "used/mine.txt").write_text("mine")
    with pytest.raises(DatasetError, match="used: holds files, expected a new or an empty folder"):
        export(tiles, tmp_path / "used")
    with pytest.raises(DatasetError, match="is a file, expected a folder to write the export into"):
        export(tiles, tmp_path / "used/mine.txt")
    with pytest.raises(DatasetError, match="none: no such folder, expected one to write out into"):
        export(tiles, tmp_path / "none/out")
    for place in (tiles, tiles.parent, tiles / "images"):
        with pytest.raises(DatasetError, match=r"^--out: .* the input"):
            export(tiles, place)
    assert sorted(os.listdir(tmp_path)) == ["tiles", "used"]
    assert os.listdir(tmp_path / "used") == ["mine.txt"]


@pytest.mark.parametrize("form", FORMATS)
def test_by_the_command_line(tiles, truth, tmp_path, dtld, form):
    code, printed, err = dtld("export", tiles, "--format", form, "--out", tmp_path / "out", "--split", "val,test")
    images = sum(split != "train" for split, _ in truth.values())
    boxes = sum(len(objects) for split, objects in truth.values() if split != "train")
    assert (code, err) == (0, "")
    assert printed == f"{tmp_path / 'out'}: {images:,} images, {boxes:,} boxes, 2 classes\n"


def test_options_of_another_format_are_refused(tiles, tmp_path, dtld):
    code, _, err = dtld("export", tiles, "--format", "voc", "--out", tmp_path / "out", "--shard-size", 5)
    assert (code, err) == (2, "error: --shard-size: got it without --format webdataset, expected both or neither\n")
    with pytest.raises(UsageError, match="--shard-size: got 0, expected 1 or more"):
        to_webdataset(tiles, tmp_path / "out", shard_size=0)


@pytest.mark.parametrize("form", ["voc", "createml", "webdataset"])
def test_nothing_is_written_into_the_dataset(form, tiles, dtld):
    before = sorted(tiles.rglob("*"))
    code, _, err = dtld("export", tiles, "--format", form, "--out", tiles / "images" / "more")
    assert (code, "lies in the input" in err) == (1, True)
    assert sorted(tiles.rglob("*")) == before
