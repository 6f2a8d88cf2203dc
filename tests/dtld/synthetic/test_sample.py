"""The synthetic tree: names, formats, determinism, and labels that show everything DTLD knows."""

import hashlib
import re
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import orjson
import pytest
import yaml

from dtld_tools.errors import DatasetError, UsageError
from dtld_tools.synthetic import sample as module
from dtld_tools.synthetic.sample import plan_tree, sample

V2 = Path("DTLD_Labels_v2.0/v2.0")
V1 = Path("DTLD_Labels_v1.0")
NAME = re.compile(r"DE_BBBR667_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}_k0\.tiff")


def read_v2(out, name="DTLD_all"):
    return orjson.loads((out / V2 / f"{name}.json").read_bytes())["images"]


def read_v1(out, name="DTLD_all"):
    return yaml.safe_load((out / V1 / f"{name}.yml").read_text())


def digests(out):
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in out.rglob("*") if p.is_file()}


def labels_only(monkeypatch, out, frames=48, seed=0, labels="both"):
    monkeypatch.setattr(module, "_draw_frame", lambda *frame: None)
    return sample(out, frames, seed, labels)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    out = tmp_path_factory.mktemp("tree") / "new"
    return out, sample(out, frames=4, seed=3, labels="both")


@pytest.fixture
def labelled(monkeypatch, tmp_path):
    labels_only(monkeypatch, tmp_path / "out")
    return tmp_path / "out"


def test_tree_has_dtlds_names(tree):
    out, counts = tree
    frames = sorted(out.rglob("*.tiff"))
    assert counts["frames"] == len(frames) == 4
    for path in frames:
        city, route, sequence, name = path.relative_to(out).parts
        assert re.fullmatch(city + r"\d", route)
        assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", sequence)
        assert NAME.fullmatch(name)


def test_frames_are_raw_12_bit_and_decode_to_a_street(tree):
    out, _ = tree
    raw = cv2.imread(str(next(out.rglob("*.tiff"))), cv2.IMREAD_UNCHANGED)
    assert raw.shape == (1024, 2048)
    assert raw.dtype == np.uint16
    assert 2048 < raw.max() <= 4095
    bgr = (cv2.cvtColor(raw, cv2.COLOR_BAYER_GB2BGR) >> 4).astype(np.uint8)
    assert bgr.std() > 20


def test_every_labelled_path_is_a_frame(tree):
    out, _ = tree
    frames = {str(path.relative_to(out)) for path in out.rglob("*.tiff")}
    assert {"/".join(image["image_path"].split("/")[-4:]) for image in read_v2(out)} == frames
    assert {"/".join(image["path"].split("/")[-4:]) for image in read_v1(out)} == frames


def test_same_seed_same_bytes_for_any_workers_and_another_seed_differs(tree, tmp_path):
    out, _ = tree
    sample(tmp_path / "two", frames=4, seed=3, labels="both", workers=2)
    assert digests(tmp_path / "two") == digests(out)
    sample(tmp_path / "other", frames=1, seed=4)
    assert not set(digests(tmp_path / "other").values()) & set(digests(out).values())


def test_cities_paths_are_relative_or_stale(labelled):
    prefixes = {image["image_path"].split("Bochum")[0].split("Berlin")[0] for image in read_v2(labelled)}
    assert {"./", "/scratch/fs2/DTLD_final/"} <= prefixes
    for name in ("Berlin", "Bochum", "Bremen"):
        assert all(f"/{name}/" in image["image_path"] for image in read_v2(labelled, name))
    assert sum(len(read_v2(labelled, name)) for name in ("Berlin", "Bochum", "Bremen")) == 48
    assert sum(len(read_v1(labelled, f"{name}_all")) for name in ("Berlin", "Bochum", "Bremen")) == 48


@pytest.mark.parametrize(("labels", "present", "absent"), [("v2", V2, V1), ("v1", V1, V2)])
def test_only_the_wanted_format_is_written(monkeypatch, tmp_path, labels, present, absent):
    labels_only(monkeypatch, tmp_path, frames=8, labels=labels)
    assert (tmp_path / present).is_dir()
    assert not (tmp_path / absent).exists()
    assert not list(tmp_path.rglob("*.part"))


def test_every_value_appears(labelled):
    seen = {}
    for image in read_v2(labelled):
        for label in image["labels"]:
            for key, value in label["attributes"].items():
                seen.setdefault(key, set()).add(value)
    assert seen == {
        "direction": {"front", "back", "left", "right"},
        "relevance": {"relevant", "not_relevant"},
        "occlusion": {"occluded", "not_occluded"},
        "orientation": {"vertical", "horizontal"},
        "aspects": {"one_aspect", "two_aspects", "three_aspects", "four_aspects", "unknown"},
        "state": {"red", "yellow", "red_yellow", "green", "off", "unknown"},
        "pictogram": {
            "circle", "arrow_left", "arrow_right", "arrow_straight", "arrow_straight_left", "tram", "pedestrian",
            "bicycle", "pedestrian_bicycle", "unknown",
        },
        "reflection": {"not_reflected"},
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_sizes_shares_and_numbers_are_like_the_real_set(seed):
    plan = plan_tree(48, seed)
    seen = [sighting for frame in plan for _, sighting in frame.lights]
    widths = [s.box.width for s in seen if s.signal.orientation == "vertical"]
    assert 20 <= np.median(widths) <= 30
    assert min(widths) >= 5
    assert np.percentile(widths, 98) <= 90
    assert max(widths) <= 110
    ratios = [
        s.box.height / s.box.width
        for s in seen
        if s.signal.aspects == 3 and s.signal.orientation == "vertical" and s.box.width >= 12
    ]
    assert np.percentile(ratios, 5) > 2
    assert np.percentile(ratios, 95) < 3.2
    relevant = [s.signal.relevant and not s.occluded and s.state not in ("off", "unknown") for s in seen]
    assert 0.3 <= np.mean(relevant) <= 0.5
    assert 5 <= len(seen) / 48 <= 9
    assert any(s.box.x1 < 0 or s.box.x2 > 2048 for s in seen)
    assert any(s.box.y1 < 0 for s in seen)


def test_ids_are_unique_and_tracks_follow_a_light(labelled):
    images = read_v2(labelled)
    ids = [label["unique_id"] for image in images for label in image["labels"]]
    assert len(set(ids)) == len(ids)
    tracks = {}
    for image in images:
        in_frame = [label["track_id"] for label in image["labels"]]
        assert len(set(in_frame)) == len(in_frame)
        for label in image["labels"]:
            tracks.setdefault(label["track_id"], []).append((image["time_stamp"], label["h"], image["image_path"]))
    long = [track for track in tracks.values() if len(track) > 2]
    assert len(long) > 20
    for track in long:
        assert len({path.rsplit("/", 1)[0] for _, _, path in track}) == 1
        assert sorted(track)[0][1] < sorted(track)[-1][1]  # nearer is larger


def test_frames_of_a_sequence_are_two_thirds_of_a_second_apart(labelled):
    times = {}
    for image in read_v2(labelled):
        times.setdefault(image["image_path"].rsplit("/", 1)[0], []).append(image["time_stamp"])
    for sequence in times.values():
        assert np.diff(sequence) == pytest.approx(0.67, abs=0.03)


# The two-class rule and the meaning of class_id, written down here once more from the format's description.
def class_v2(label):
    a = label["attributes"]
    lit = a["state"] in ("red", "yellow", "red_yellow", "green")
    for_cars = a["pictogram"] not in ("pedestrian", "bicycle", "pedestrian_bicycle", "tram")
    upright = a["direction"] == "front" and a["occlusion"] == "not_occluded"
    return 0 if a["relevance"] == "relevant" and upright and lit and for_cars else 1


def class_v1(obj):
    direction, relevance, mounting, _, state, mask = (int(digit) for digit in f"{obj['class_id']:06d}")
    return 0 if direction == 1 and relevance in (1, 3) and mounting <= 4 and 1 <= state <= 4 and mask < 8 else 1


def test_v1_and_v2_describe_the_same_lights(labelled):
    classes = Counter()
    for v2, v1 in zip(read_v2(labelled), read_v1(labelled), strict=True):
        assert v1["path"] == v2["image_path"]
        assert v1["time_stamp"] == v2["time_stamp"]
        for label, obj in zip(v2["labels"], v1["objects"], strict=True):
            assert [obj[k] for k in ("x", "y", "width", "height")] == [label[k] for k in "xywh"]
            assert (obj["unique_id"], obj["track_id"]) == (label["unique_id"], label["track_id"])
            assert class_v1(obj) == class_v2(label)
            assert (obj["class_id"] // 10000 % 10 == 4) == (label["attributes"]["occlusion"] == "occluded")
            classes[class_v2(label)] += 1
    assert min(classes.values()) > 80


@pytest.mark.parametrize(("frames", "sequences"), [(1, 1), (3, 1), (8, 4), (9, 4), (48, 12), (50, 12)])
def test_sequences_are_enough_to_split(frames, sequences):
    sizes = Counter(frame.sequence.folder for frame in plan_tree(frames, 0))
    assert sum(sizes.values()) == frames
    assert len(sizes) == sequences
    assert max(sizes.values()) - min(sizes.values()) <= 1


def test_refuses_a_folder_in_use(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(DatasetError, match="empty folder") as error:
        sample(tmp_path, frames=1)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("options", [{"frames": 0}, {"seed": -1}, {"labels": "v3"}, {"workers": 0}])
def test_refuses_numbers_out_of_range_before_writing(tmp_path, options):
    with pytest.raises(UsageError, match="expected"):
        sample(tmp_path / "out", **({"frames": 1} | options))
    assert not (tmp_path / "out").exists()


def test_a_tree_cut_off_has_no_labels(monkeypatch, tmp_path):
    def fail(*frame):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_draw_frame", fail)
    with pytest.raises(KeyboardInterrupt):
        sample(tmp_path / "out", frames=2)
    assert not list((tmp_path / "out").rglob("*.json"))
