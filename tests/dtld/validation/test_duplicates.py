"""Near duplicates across splits: found where they were planted, in datasets of dtld and of others, and nowhere else."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image, ImageOps

from dtld_tools.errors import DatasetError, UsageError
from dtld_tools.pipeline import stages as pipeline
from dtld_tools.pipeline.stages import Selection
from dtld_tools.pixels.augment import AugmentSpec
from dtld_tools.planning.split import SplitSpec
from dtld_tools.synthetic.sample import sample
from dtld_tools.types import TileSpec
from dtld_tools.validation.duplicates import LEAST_DETAIL, detail, find_near_duplicates, in_8_bits, nearest
from dtld_tools.validation.validate import validate
from tests.dtld_data import REPOSITORY, image, light, make_tree, read_lines, write_v2

pytest.importorskip("imagehash", reason="needs the extra 'duplicates'")
PUBLIC = REPOSITORY.parent / "shared" / "data"


def texture(seed, side=400):
    """A smooth random texture: no two seeds look alike."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)


def neighbour(scene, step, seed):
    """The scene a little later: shifted by a few pixels, with noise of its own."""
    noise = np.random.default_rng(seed).normal(0, 4, scene.shape)
    return (np.roll(scene, (step, 2 * step), (0, 1)) + noise).clip(0, 255).astype(np.uint8)


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


def data_yaml(root, **entries):
    root.mkdir(parents=True, exist_ok=True)
    (root / "data.yaml").write_text(yaml.safe_dump(entries | {"names": ["a"]}))
    return root


@pytest.fixture
def by_frame(tmp_path):
    """Ten scenes of three frames each, split by frame as people do: the first of each trains, the last validates.

    Scenes 0 to 4 only; the others are whole in one split.
    """
    for scene in range(10):
        pixels = texture(scene)
        for frame in range(3):
            split = ("train", "val")[frame == 2] if scene < 5 else ("train", "val", "test")[scene % 3]
            write(tmp_path / f"images/{split}/{scene}_{frame}.jpg", neighbour(pixels, frame, 100 * scene + frame))
    return data_yaml(tmp_path, **{split: f"images/{split}" for split in ("train", "val", "test")})


def scene_of(name):
    return Path(name).stem.partition("_")[0]


# --- what is found -----------------------------------------------------------------------------------------


def test_a_split_by_frame_is_found_and_whole_scenes_are_not(by_frame):
    found = find_near_duplicates(by_frame, workers=2)
    pairs = found["near_duplicates"]
    assert [scene_of(pair["b"]) for pair in pairs] == ["0", "1", "2", "3", "4"]
    for pair in pairs:
        assert scene_of(pair["a"]) == scene_of(pair["b"])
        assert pair["a"].startswith("images/train/")
        assert pair["b"] == f"images/val/{scene_of(pair['b'])}_2.jpg"
        assert pair["splits"] == ["train", "val"]
        assert 0 <= pair["distance"] <= 6
    assert (found["compared"], found["plain"], found["defects"]) == (30, 0, [])
    assert found == find_near_duplicates(by_frame, workers=1)


def test_each_pair_of_splits(tmp_path):
    for split in ("train", "val", "test"):
        write(tmp_path / f"{split}/a.png", texture(1))
    pairs = find_near_duplicates(data_yaml(tmp_path, train="train", val="val", test="test"))["near_duplicates"]
    assert [(pair["a"], pair["b"], pair["distance"]) for pair in pairs] == [
        ("train/a.png", "val/a.png", 0),
        ("train/a.png", "test/a.png", 0),
        ("val/a.png", "test/a.png", 0),
    ]


def test_the_distance_is_the_most_bits_that_differ(by_frame):
    distances = [pair["distance"] for pair in find_near_duplicates(by_frame, distance=16)["near_duplicates"][:5]]
    least = min(distances)
    expected = sum(distance <= least for distance in distances)
    assert len(find_near_duplicates(by_frame, distance=least)["near_duplicates"]) == expected
    for distance in (-1, 17):
        with pytest.raises(UsageError, match=f"--distance: got {distance}, expected 0 to 16"):
            find_near_duplicates(by_frame, distance=distance)


def test_plain_images_are_left_out_and_counted(tmp_path):
    """An even surface, an even gradient, and both with a camera's noise: their hashes would be chance."""
    ramp = np.tile(np.linspace(90, 200, 640), (640, 1)).astype(np.uint8)
    noise = np.random.default_rng(0).normal(0, 3, ramp.shape)
    skies = [np.full_like(ramp, 128), ramp, ramp.T, (ramp + noise).clip(0, 255).astype(np.uint8)]
    for number, sky in enumerate(skies):
        write(tmp_path / f"train/{number}.png", cv2.cvtColor(sky, cv2.COLOR_GRAY2BGR))
        write(tmp_path / f"val/{number}.jpg", cv2.cvtColor(sky, cv2.COLOR_GRAY2BGR))
    found = find_near_duplicates(data_yaml(tmp_path, train="train", val="val"))
    assert (found["compared"], found["plain"], found["near_duplicates"]) == (0, 8, [])
    assert len(found["defects"]) == 1  # to compare nothing is no proof
    assert "nothing was compared: 0 images with a hash and 8 plain ones in train, val" in found["defects"][0]


def test_detail_by_hand():
    assert detail(np.full((4, 4), 9.0)) == detail(np.tile(np.arange(4.0), (4, 1))) == 0
    checks = (np.indices((4, 4)).sum(0) % 2) * 10.0  # 0 10 0 10: second differences of 20
    assert detail(checks) == 20 > LEAST_DETAIL


# --- whatever the depth and the turn ------------------------------------------------------------------------


def raw_of(scene):
    """The scene as a camera's 12 bits behind a Bayer pattern (G R / B G)."""
    bgr = scene.astype(np.uint16) << 4
    raw = bgr[..., 1].copy()
    raw[0::2, 1::2], raw[1::2, 0::2] = bgr[0::2, 1::2, 2], bgr[1::2, 0::2, 0]
    return raw


DEEP = {
    "raw frame": (".tiff", raw_of),
    "dark raw frame": (".tiff", lambda scene: raw_of(scene) >> 4),
    "16-bit grey": (".png", lambda scene: cv2.cvtColor(scene, cv2.COLOR_BGR2GRAY).astype(np.uint16) * 257),
    "16-bit grey TIFF": (".tiff", lambda scene: cv2.cvtColor(scene, cv2.COLOR_BGR2GRAY).astype(np.uint16) * 257),
    "16-bit colour": (".png", lambda scene: scene.astype(np.uint16) * 257),
    "12 bits of colour in 16": (".png", lambda scene: scene.astype(np.uint16) << 4),
    "12 bits of colour in 16, TIFF": (".tiff", lambda scene: scene.astype(np.uint16) << 4),
    "float colour": (".tiff", lambda scene: scene.astype(np.float32) / 255),
    "float grey": (".tiff", lambda scene: cv2.cvtColor(scene, cv2.COLOR_BGR2GRAY).astype(np.float32)),
    "8-bit grey": (".jpg", lambda scene: cv2.cvtColor(scene, cv2.COLOR_BGR2GRAY)),
}


@pytest.mark.parametrize("kind", DEEP)
def test_a_picture_is_found_at_any_depth(tmp_path, kind):
    suffix, deepen = DEEP[kind]
    for number in (1, 2, 3):  # the first is in both splits
        write(tmp_path / f"train/{number}.png", texture(number))
    write(tmp_path / f"val/1{suffix}", deepen(texture(1)))
    write(tmp_path / f"val/4{suffix}", deepen(texture(4)))
    found = find_near_duplicates(data_yaml(tmp_path, train="train", val="val"))
    assert (found["compared"], found["plain"], found["defects"]) == (5, 0, [])
    pairs = [(Path(p["a"]).stem, Path(p["b"]).stem, p["identical"]) for p in found["near_duplicates"]]
    assert pairs == [("1", "1", False)]


@pytest.mark.parametrize("kind", [*DEEP, "plain", "broken"])
def test_files_of_the_same_bytes_are_found_whatever_they_hold(tmp_path, kind):
    if kind in DEEP:
        suffix, deepen = DEEP[kind]
        first = write(tmp_path / f"train/a{suffix}", deepen(texture(1)))
        write(tmp_path / f"train/other{suffix}", deepen(texture(2)))
    else:
        first = write(tmp_path / "train/a.png", np.full((64, 64), 7, np.uint8))
        if kind == "broken":
            first.write_bytes(first.read_bytes()[:50])
    (tmp_path / "val").mkdir()
    shutil.copy(first, tmp_path / f"val/b{first.suffix}")
    (pair,) = find_near_duplicates(data_yaml(tmp_path, train="train", val="val"))["near_duplicates"]
    assert pair == {
        "a": f"train/a{first.suffix}",
        "b": f"val/b{first.suffix}",
        "splits": ["train", "val"],
        "distance": 0,
        "identical": True,
    }


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("form", ["JPEG", "TIFF", "PNG"])
def test_a_turned_picture_is_found_as_stored_and_as_shown(tmp_path, form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(texture(1))
    (tmp_path / "train").mkdir()
    stored.save(tmp_path / f"train/turned.{form.lower()}".replace("jpeg", "jpg"), form, exif=exif)
    shown = ImageOps.exif_transpose(Image.open(next((tmp_path / "train").iterdir())))
    write(tmp_path / "train/other.png", texture(2))
    for split, pixels in (("val", stored), ("test", shown)):
        write(tmp_path / f"{split}/a.png", np.asarray(pixels)[..., ::-1])
    pairs = find_near_duplicates(data_yaml(tmp_path, train="train", val="val", test="test"))["near_duplicates"]
    assert {(p["splits"][1], Path(p["a"]).stem) for p in pairs if p["splits"][0] == "train"} == {
        ("val", "turned"),
        ("test", "turned"),
    }


def test_white_by_hand():
    assert in_8_bits(np.array([[0, 0.5, 1.0]], np.float32)).tolist() == [[0, 128, 255]]
    assert in_8_bits(np.array([[0, 255, 128]], np.float32)).tolist() == [[0, 255, 128]]
    assert in_8_bits(np.array([[[0, 4095, 2048]]], np.uint16)).tolist() == [[[0, 255, 128]]]
    assert in_8_bits(np.array([[0, 65535]], np.uint16)).tolist() == [[0, 255]]
    assert in_8_bits(np.array([[-1, 1e6, np.nan, np.inf]], np.float64))[0, :2].tolist() == [0, 255]
    assert in_8_bits(np.zeros((2, 2), np.int32)).max() == 0


# --- datasets of others ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["path", "list", "several", "roboflow", "relative path"])
def test_the_forms_of_data_yaml(tmp_path, form):
    root = tmp_path / "set"
    write(root / "train/images/deep/a.jpg", texture(1))
    write(root / "train/images/b.JPEG", texture(2))
    write(root / "valid/images/a.png", texture(1))
    (root / "list.txt").write_text("./valid/images/a.png\n\n")
    entries = {
        "path": {"path": str(root), "train": "train/images", "val": "valid/images"},
        "list": {"train": "train/images", "val": "list.txt"},
        "several": {"train": ["train/images/deep", "train/images"], "val": ["valid"], "test": None},
        "roboflow": {"train": "../train/images", "val": "../valid/images"},
        "relative path": {"path": "..", "train": "set/train", "val": "set/valid"},
    }[form]
    where = data_yaml(tmp_path / "elsewhere" if form == "path" else root, **entries)
    pairs = validate(where, distance=6)["near_duplicates"]
    assert [(Path(p["a"]).name, Path(p["b"]).name, p["distance"]) for p in pairs] == [("a.jpg", "a.png", 0)]


def test_an_image_that_cannot_be_read_is_a_defect(by_frame):
    path = by_frame / "images/val/0_2.jpg"
    path.write_bytes(path.read_bytes()[:500])
    (by_frame / "images/test/no.png").write_bytes(b"x")
    found = validate(by_frame, distance=6)
    assert [defect.partition(": cannot be decoded (")[0] for defect in found["defects"]] == [
        "images/val/0_2.jpg",
        "images/test/no.png",
    ]
    assert len(found["near_duplicates"]) == 4


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"train": "images/train", "val": "nowhere"}, "got nowhere, which is not below .*; expected images there"),
        ({"train": "images/train"}, "got images in fewer than two splits"),
        ({"train": "images/train", "val": "data.yaml"}, r"data.yaml: line 1: got .*, expected the path of an image"),
        ({"train": "images/train", "val": 7}, "val: got 7, expected"),
    ],
)
def test_a_data_yaml_that_leads_nowhere(by_frame, entries, message):
    data_yaml(by_frame, **entries)
    with pytest.raises(DatasetError, match=message):
        validate(by_frame, distance=6)


def test_a_folder_without_data_yaml(tmp_path):
    with pytest.raises(DatasetError, match=r"No such file.*expected a YOLO dataset"):
        validate(tmp_path, distance=6)


# --- datasets of dtld --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two sequences whose frames are the same street standing still, and others; tiles with copies."""
    root = tmp_path_factory.mktemp("raw")
    images = make_tree(root, sequences=4, frames=1, lights=2)
    first = images[0]["image_path"]
    for number in (1, 2):  # Aachen stands still; the third time in a sequence of its own
        sequence = "2015-04-01_10-50-05" if number == 1 else "2015-05-01_10-50-05"
        path = f"Aachen/Aachen1/{sequence}/still{number}.tiff"
        (root / path).parent.mkdir(exist_ok=True)
        pixels = cv2.imread(str(root / first), cv2.IMREAD_UNCHANGED)
        noise = np.random.default_rng(number).integers(-20, 20, pixels.shape)
        write(root / path, (pixels + noise).clip(0, 4095).astype(np.uint16))
        images.append(image(path, light(20, 20, 20, 40, 900 + number)))
    (root / "splits.txt").write_text(
        "".join(f"{'/'.join(each['image_path'].removeprefix('./').split('/')[:3])} train\n" for each in images[:-2])
        + "Aachen/Aachen1/2015-05-01_10-50-05 test\n"
    )
    select = Selection((write_v2(root / "all.json", images),), root)
    spec = SplitSpec(split_file=root / "splits.txt")
    pipeline.prepare(
        select, root / "out", spec, TileSpec(size_px=96), AugmentSpec(clahe=1), empty_ratio=None, image_format="png"
    )
    return root / "out"


def test_a_dataset_of_dtld_is_proven_and_compared(made):
    """The sequence-wise split is sound, yet a street was driven twice; copies are not compared."""
    found = validate(made, distance=6)
    assert found["defects"] == []
    assert found["near_duplicates"]
    manifest = {f"images/{m['split']}/{m['name']}": m for m in read_lines(made / "manifest.jsonl")}
    assert found["compared"] + found["plain"] == sum(not m["augmentation"] for m in manifest.values())
    for pair in found["near_duplicates"]:
        a, b = manifest[pair["a"]], manifest[pair["b"]]
        assert "2015-04-01" in a["frame"]
        assert "still2" in b["frame"]
        assert a["window"] == b["window"]
        assert a["augmentation"] is b["augmentation"] is None


def test_a_broken_line_hides_neither_defects_nor_duplicates(made, tmp_path):
    root = Path(shutil.copytree(made, tmp_path / "out"))
    with (root / "manifest.jsonl").open("a") as lines:
        lines.write("{\n")
    found = validate(root, distance=6)
    assert len(found["defects"]) == 1
    assert found["near_duplicates"] == validate(made, distance=6)["near_duplicates"]


def test_one_split_alone_has_nothing_to_compare(tmp_path):
    select = Selection((write_v2(tmp_path / "all.json", make_tree(tmp_path, frames=1)),), tmp_path)
    pipeline.convert(select, tmp_path / "out", SplitSpec(0, 0))
    found = validate(tmp_path / "out", distance=6)
    assert found["near_duplicates"] == []
    assert len(found["defects"]) == 1
    assert "nothing was compared" in found["defects"][0]


def test_a_sequence_wise_split_of_sample_data_has_none(tmp_path):
    sample(tmp_path / "raw", 16, 0, "v2", workers=1, progress=False)
    select = Selection((tmp_path / "raw/DTLD_Labels_v2.0/v2.0/DTLD_all.json",), tmp_path / "raw")
    pipeline.prepare(select, tmp_path / "out", SplitSpec(0.2, 0.2), TileSpec(), AugmentSpec(copies=0), empty_ratio=None)
    found = find_near_duplicates(tmp_path / "out")
    assert found["compared"] > 60
    assert found["near_duplicates"] == []


# --- public datasets ---------------------------------------------------------------------------------------


def public(tmp_path, name, train, val):
    if not (PUBLIC / name).is_dir():
        pytest.skip(f"needs {PUBLIC / name}: shared material beside the checkout")
    return data_yaml(tmp_path, path=str(PUBLIC / name), train=train, val=val)


def test_blood_cells_have_one_field_of_view_in_both_splits(tmp_path):
    found = validate(public(tmp_path, "bccd", "images/train", "images/val"), distance=6)
    pairs = [(Path(p["a"]).stem, Path(p["b"]).stem, p["distance"]) for p in found["near_duplicates"]]
    assert found["compared"] == 292
    assert pairs == [("BloodImage_00038", "BloodImage_00037", 4)]


def test_cinta_shows_the_same_crossing_in_both_splits_behind_its_augmentation(tmp_path):
    """Its training images are turned, sheared and flipped by their author: nothing within 6 bits, pairs within 12."""
    root = public(tmp_path, "cinta_v2", "train/images", "valid/images")
    pairs = validate(root, distance=12, workers=2)["near_duplicates"]
    numbers = {tuple(Path(pair[key]).name.split("--")[1].split("-")[0] for key in "ba") for pair in pairs}
    assert numbers == {("443", "460"), ("444", "460"), ("574", "575")}
    assert min(pair["distance"] for pair in pairs) > 6


# --- the search --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (7, 40_000), (50, 3), (0, 5)])
def test_the_search_is_exact(shape):
    rng = np.random.default_rng(0)
    queries, others = (rng.integers(0, 2**64, n, np.uint64) for n in shape)
    if len(queries) > 2:  # some near ones, one of them twice
        others[-1] = queries[0] ^ np.uint64(0b101)
        others[0] = others[1] = queries[2]
    at, bits = nearest(queries, others)
    for row, query in enumerate(queries):
        expected = [bin(int(query) ^ int(other)).count("1") for other in others]
        assert bits[row] == min(expected)
        assert at[row] == expected.index(min(expected))


# --- the command -------------------------------------------------------------------------------------------


def test_the_command_names_pairs_and_says_what_it_looked_for(dtld, by_frame):
    code, out, err = dtld("validate", by_frame, "--near-duplicates")
    assert code == 1
    assert out.splitlines() == [
        f"{by_frame}: was not made by dtld, so only near duplicates were looked for",
        "5 near duplicates across splits among 30 images, 0 plain",
    ]
    assert len(err.splitlines()) == 5
    assert err.startswith(f"error: {by_frame}: images/val/0_2.jpg is nearly images/train/0_")
    shutil.rmtree(by_frame / "images/train")
    write(by_frame / "images/train/other.jpg", texture(99))
    code, out, err = dtld("validate", by_frame, "--near-duplicates", "--distance", 2, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["near_duplicates"] == []


def test_the_command_names_twenty_pairs_at_most(dtld, tmp_path):
    for number in range(22):
        write(tmp_path / f"train/{number}.png", texture(number))
    root = data_yaml(tmp_path, train="train", val="train")
    code, out, err = dtld("validate", root, "--near-duplicates")
    assert (code, len(err.splitlines())) == (1, 21)
    assert "2 more" in err.splitlines()[-1]
    assert "22 near duplicates" in out
    assert len(json.loads(dtld("validate", root, "--near-duplicates", "--json")[1])["near_duplicates"]) == 22


def test_the_command_on_a_dataset_of_dtld(dtld, made):
    code, out, _ = dtld("validate", made, "--near-duplicates")
    assert code == 1
    assert out.startswith(f"{made}: sound; ")
    assert dtld("validate", made)[0] == 0


def test_wrong_usage(dtld, by_frame):
    assert dtld("validate", by_frame, "--distance", 3)[0] == 2
    assert dtld("validate", by_frame, "--near-duplicates", "--distance", 17)[0] == 2
    assert dtld("validate", by_frame)[0] == 1


def test_without_the_extra_its_name_is_told(by_frame, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "imagehash", None)
    with pytest.raises(UsageError, match=r"imagehash is not installed; pip install 'dtld-kd\[duplicates\]'"):
        find_near_duplicates(by_frame)
