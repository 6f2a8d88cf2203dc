"""Near duplicates across splits: found where they were planted, in datasets of dtld and of others, and nowhere else."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from dtld_data import REPOSITORY, image, light, make_tree, read_lines, write_v2
from PIL import Image

from dtld_tools import pipeline
from dtld_tools.augment import AugmentSpec
from dtld_tools.duplicates import LEAST_DETAIL, detail, find_near_duplicates, nearest
from dtld_tools.errors import DatasetError, UsageError
from dtld_tools.images import decode_bayer
from dtld_tools.pipeline import Selection
from dtld_tools.sample import sample
from dtld_tools.split import SplitSpec
from dtld_tools.types import TileSpec
from dtld_tools.validate import validate

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
        write(tmp_path / f"val/{number}.png", cv2.cvtColor(np.roll(sky, 1) ^ 1, cv2.COLOR_GRAY2BGR))
    found = find_near_duplicates(data_yaml(tmp_path, train="train", val="val"))
    assert (found["compared"], found["plain"], found["near_duplicates"]) == (0, 8, [])
    assert found["defects"] == [
        "nothing was compared: got 0 images to compare in all splits and 8 plain ones, expected some in two splits at "
        "least"
    ]


# --- the same picture in other files ------------------------------------------------------------------------


def raw_frame(seed, side=256):
    """12-bit Bayer data of a smooth scene, HxW uint16."""
    coarse = np.random.default_rng(seed).integers(0, 4096, (12, 12)).astype(np.float32)
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC).clip(0, 4095).astype(np.uint16)


def both_splits(tmp_path, first, second, *others):
    """One picture in train and, in another form, in val, beside others that are no pair."""
    write(tmp_path / f"train/{first[0]}", first[1])
    write(tmp_path / f"val/{second[0]}", second[1])
    for number, pixels in enumerate(others):
        write(tmp_path / f"val/other{number}.png", pixels)
    return find_near_duplicates(data_yaml(tmp_path, train="train", val="val"))


def test_raw_frames_of_16_bits_are_hashed_as_decoded(tmp_path):
    others = [raw_frame(seed) for seed in range(2, 12)]
    found = both_splits(tmp_path, ("a.tiff", raw_frame(1)), ("b.tiff", neighbour_raw(raw_frame(1))), *others)
    assert (found["compared"], found["plain"], found["defects"]) == (12, 0, [])
    (pair,) = found["near_duplicates"]
    assert (pair["a"], pair["b"]) == ("train/a.tiff", "val/b.tiff")


def neighbour_raw(frame):
    noise = np.random.default_rng(0).integers(-30, 30, frame.shape)
    return (frame + noise).clip(0, 4095).astype(np.uint16)


@pytest.mark.parametrize("form", ["decoded", "float"])
def test_a_raw_frame_and_another_form_of_it(tmp_path, form):
    raw = raw_frame(1)
    other = decode_bayer(raw) if form == "decoded" else (raw / np.float32(4095)).astype(np.float32)
    name = "b.jpg" if form == "decoded" else "b.tiff"
    found = both_splits(tmp_path, ("a.tiff", raw), (name, other), texture(2), texture(3))
    assert found["defects"] == []
    assert [(pair["a"], pair["b"]) for pair in found["near_duplicates"]] == [("train/a.tiff", f"val/{name}")]


def test_a_picture_and_its_turned_copy_with_exif(tmp_path):
    """As they are shown they are one: EXIF's Orientation 6 turns the second back."""
    scene = texture(1)
    write(tmp_path / "train/a.png", scene)
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "val").mkdir()
    turned = Image.fromarray(np.rot90(scene, 1)[..., ::-1])
    turned.save(tmp_path / "val/b.jpg", exif=exif, quality=95)
    turned.save(tmp_path / "val/c.jpg", quality=95)  # without the tag it is another picture
    found = find_near_duplicates(data_yaml(tmp_path, train="train", val="val"))
    assert [pair["b"] for pair in found["near_duplicates"]] == ["val/b.jpg"]


def test_files_of_the_same_bytes_are_found_though_they_are_plain(tmp_path):
    grey = np.full((64, 64, 3), 120, np.uint8)
    for name in ("train/a.png", "val/a.png", "test/a.png", "train/b.png"):
        write(tmp_path / name, grey)
    found = find_near_duplicates(data_yaml(tmp_path, train="train", val="val", test="test"))
    assert (found["compared"], found["plain"], found["defects"]) == (0, 4, [])
    assert {(pair["a"], pair["b"], pair["distance"]) for pair in found["near_duplicates"]} == {
        ("train/a.png", "val/a.png", 0),
        ("train/a.png", "test/a.png", 0),
        ("val/a.png", "test/a.png", 0),
    }


def test_detail_by_hand():
    assert detail(np.full((4, 4), 9.0)) == detail(np.tile(np.arange(4.0), (4, 1))) == 0
    checks = (np.indices((4, 4)).sum(0) % 2) * 10.0  # 0 10 0 10: second differences of 20
    assert detail(checks) == 20 > LEAST_DETAIL


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
    (defect,) = found["defects"]
    assert defect.startswith("nothing was compared: got ")


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
