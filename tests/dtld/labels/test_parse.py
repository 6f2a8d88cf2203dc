"""Label files: both formats by hand, the paths they write, and every way they can be wrong."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dtld_tools.errors import LabelError
from dtld_tools.labels.attributes import VOCABULARY, attributes_from_class_id
from dtld_tools.labels.locate import locate
from dtld_tools.labels.parse import read_labels
from dtld_tools.types import Box, SequenceId
from tests.dtld_data import GREEN, REAL, V1_DIGITS, class_id_of, image, light, needs_real, write_v1, write_v2

PATH = "./Berlin/Berlin1/2015-04-17_10-50-05/DE_BBBR667_2015-04-17_10-50-13-633939_k0.tiff"
NAME = PATH[2:]


def frames_of(folder, *images):
    return read_labels([write_v2(folder / "all.json", list(images))]).frames


# --- v2.0 ------------------------------------------------------------------------------------------------


def test_a_v2_frame(tmp_path):
    labels = read_labels([write_v2(tmp_path / "all.json", [image(PATH, light(-3, 4, 10, 20, 77, state="red"))])])
    (frame,) = labels.frames
    assert frame.image_path == NAME
    assert frame.sequence == SequenceId("Berlin", "Berlin1", "2015-04-17_10-50-05")
    assert frame.timestamp_s == 1429260613.6
    (lamp,) = frame.lights
    assert lamp.box == Box(-3, 4, 7, 24)
    assert dict(lamp.attributes) == GREEN | {"state": "red"}
    assert (lamp.unique_id, lamp.track_id) == (77, "track_77")
    assert (labels.problems, labels.unlisted) == ({}, {})


def test_frames_are_sorted_and_empty_frames_stay(tmp_path):
    paths = [f"./B/B1/s/{n}.tiff" for n in (3, 1, 2)]
    assert [f.image_path for f in frames_of(tmp_path, *map(image, paths))] == [
        "B/B1/s/1.tiff",
        "B/B1/s/2.tiff",
        "B/B1/s/3.tiff",
    ]


@pytest.mark.parametrize(
    "written",
    [
        PATH,
        NAME,
        f"/scratch/fs2/DTLD_final/{NAME}",
        f"Berlin/{NAME}",
        f"./Berlin/./Berlin1//{NAME.split('/', 2)[2]}",
        NAME.replace("/", "\\"),
        f"D:\\data\\{NAME}".replace("/", "\\"),
    ],
)
def test_the_last_four_parts_identify_a_frame(tmp_path, written):
    (frame,) = frames_of(tmp_path, image(written))
    assert frame.image_path == NAME


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("../Berlin/Berlin1/s/a.tiff", "leaves the dataset's root"),
        ("./Berlin/../../s/a.tiff", "leaves the dataset's root"),
        ("Berlin\\..\\Berlin1\\s\\a.tiff", "leaves the dataset's root"),
        ("s/a.tiff", "City/Route/Sequence/file"),
        ("", "City/Route/Sequence/file"),
        ("a/b/c/d\0.tiff", "City/Route/Sequence/file"),
    ],
)
def test_a_path_that_names_no_frame_is_refused(tmp_path, written, expected):
    with pytest.raises(LabelError, match=expected) as caught:
        frames_of(tmp_path, image(written))
    assert "all.json: images[0].image_path: got" in str(caught.value)


def test_a_missing_reflection_is_no_problem(tmp_path):
    lamp = light(1, 2, 3, 4)
    del lamp["attributes"]["reflection"]
    labels = read_labels([write_v2(tmp_path / "all.json", [image(PATH, lamp)])])
    assert labels.problems == {}
    assert "reflection" not in labels.frames[0].lights[0].attributes


def test_another_missing_attribute_is_counted(tmp_path):
    lamp = light(1, 2, 3, 4)
    del lamp["attributes"]["state"], lamp["attributes"]["aspects"]
    assert read_labels([write_v2(tmp_path / "all.json", [image(PATH, lamp)])]).problems == {"missing_attributes": 2}


def test_unlisted_values_are_kept_and_counted_per_light(tmp_path):
    lamps = [light(1, 2, 3, 4, n, state="purple") for n in range(3)] + [light(1, 2, 3, 4, 9, mood="good")]
    labels = read_labels([write_v2(tmp_path / "all.json", [image(PATH, *lamps)])])
    assert labels.problems == {"unlisted_values": 4}
    assert labels.unlisted == {"state=purple": 3, "mood=good": 1}
    assert labels.frames[0].lights[0].attributes["state"] == "purple"


def test_equal_attributes_are_held_once(tmp_path):
    """292,245 lights have 620 sets of attributes: memory depends on it."""
    (frame,) = frames_of(
        tmp_path, image(PATH, light(1, 2, 3, 4, 1), light(5, 6, 7, 8, 2), light(1, 1, 1, 1, 3, state="red"))
    )
    first, second, third = (lamp.attributes for lamp in frame.lights)
    assert first is second
    assert first is not third


# --- duplicates and overlapping files -----------------------------------------------------------------


def test_repeated_ids_get_numbered_in_order(tmp_path):
    lamps = [light(n, 0, 5, 5, unique_id) for n, unique_id in enumerate((7, 7, 8, 7))]
    labels = read_labels([write_v2(tmp_path / "all.json", [image(PATH, *lamps)])])
    assert [lamp.unique_id for lamp in labels.frames[0].lights] == [7, "7#2", 8, "7#3"]
    assert labels.problems == {"duplicate_ids": 2}


def test_files_that_agree_count_a_frame_once(tmp_path):
    entry = image(PATH, light(1, 2, 3, 4, 5, state="purple"), light(1, 2, 3, 4, 5))
    stale = entry | {"image_path": f"/somewhere/else/{NAME}"}
    one, other = write_v2(tmp_path / "one.json", [entry]), write_v2(tmp_path / "other.json", [stale])
    labels = read_labels([one, other])
    assert len(labels.frames) == 1
    # The problems of a frame are those of one frame, too.
    assert labels.problems == {"duplicate_ids": 1, "unlisted_values": 1}
    assert labels.unlisted == {"state=purple": 1}


def test_the_same_file_twice_is_the_same_file(tmp_path):
    path = write_v2(tmp_path / "one.json", [image(PATH, light(1, 2, 3, 4))])
    assert len(read_labels([path, path]).frames) == 1


def test_a_frame_twice_in_one_file_is_a_problem(tmp_path):
    labels = read_labels([write_v2(tmp_path / "all.json", [image(PATH), image(PATH)])])
    assert (len(labels.frames), labels.problems) == (1, {"duplicate_frames": 1})


@pytest.mark.parametrize(
    "other", [[], [light(1, 2, 3, 5)], [light(1, 2, 3, 4, state="red")], [light(1, 2, 3, 4), light(9, 9, 9, 9, 2)]]
)
def test_files_that_disagree_are_refused(tmp_path, other):
    one = write_v2(tmp_path / "one.json", [image(PATH, light(1, 2, 3, 4))])
    with pytest.raises(LabelError, match=r"other\.json: images\[0\].*has other lights in one\.json"):
        read_labels([one, write_v2(tmp_path / "other.json", [image(PATH, *other)])])


# --- v1.0 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("class_id", "expected"),
    [
        # The six digits 1 1 2 3 4 0: front, relevant, vertical, three lamps, green, no mask.
        (112340, "front relevant not_occluded vertical three_aspects green circle"),
        # The two examples of the official code; the first two digits are absent.
        (2340, "unknown unknown unknown vertical three_aspects green circle"),
        (2314, "unknown unknown unknown vertical three_aspects red arrow_right"),
        (122340, "front not_relevant not_occluded vertical three_aspects green circle"),  # 2: best sight, not relevant
        (132340, "front relevant not_occluded vertical three_aspects green circle"),  # 3: relevant, best sight
        (142340, "front not_relevant occluded vertical three_aspects green circle"),  # 4: occluded
        (202340, "back not_relevant not_occluded vertical three_aspects green circle"),
        (311111, "left relevant not_occluded horizontal one_aspect red arrow_straight"),
        (414222, "right relevant not_occluded vertical two_aspects yellow arrow_left"),
        (113433, "front relevant not_occluded horizontal four_aspects red_yellow arrow_straight_left"),
        (112300, "front relevant not_occluded vertical three_aspects off circle"),
        (112358, "front relevant not_occluded vertical three_aspects unknown pedestrian"),  # 5: white
        (112349, "front relevant not_occluded vertical three_aspects green bicycle"),
        (116340, "front relevant not_occluded horizontal three_aspects green tram"),
        (117341, "front relevant not_occluded vertical three_aspects green tram"),  # the mounting outweighs the mask
        (118340, "front relevant not_occluded horizontal three_aspects green tram"),
        (119340, "front relevant not_occluded vertical three_aspects green tram"),
        (112345, "front relevant not_occluded vertical three_aspects green unknown"),  # right + straight: no name
        (112347, "front relevant not_occluded vertical three_aspects green unknown"),  # all three: no name
        (115340, "front relevant not_occluded unknown three_aspects green circle"),
        (992996, "unknown unknown unknown vertical unknown unknown unknown"),
        (0, "unknown unknown unknown unknown unknown unknown circle"),
    ],
)
def test_class_numbers(class_id, expected):
    names = ("direction", "relevance", "occlusion", "orientation", "aspects", "state", "pictogram")
    assert attributes_from_class_id(class_id) == dict(zip(names, expected.split(), strict=True))


@given(st.fixed_dictionaries({name: st.sampled_from(sorted(codes)) for name, codes in V1_DIGITS}))
def test_class_numbers_both_ways(attributes):
    occlusion = {"occlusion": "not_occluded"}
    assert attributes_from_class_id(class_id_of(attributes)) == attributes | occlusion


@given(st.integers(0, 999_999))
def test_every_class_number_has_listed_values(class_id):
    for name, value in attributes_from_class_id(class_id).items():
        assert value in (*VOCABULARY[name], "unknown")


@pytest.mark.parametrize("class_id", [-12340, 1112340, 112340.0, True, None, "green", [1]])
def test_what_is_no_class_number_is_refused(class_id):
    with pytest.raises(LabelError, match="expected a number of up to six digits"):
        attributes_from_class_id(class_id)


def test_unlisted_digits_are_counted_absent_ones_are_not(tmp_path):
    objects = [
        {"x": 1, "y": 2, "width": 3, "height": 4, "class_id": class_id, "unique_id": n, "track_id": "t"}
        for n, class_id in enumerate((112340, 2340, 112345, 112347, 112347, 116340, 992340))
    ]
    path = tmp_path / "all.yml"
    path.write_text(yaml.safe_dump([{"path": PATH, "objects": objects}]))
    labels = read_labels([path])
    assert labels.problems == {"unlisted_values": 4}
    assert labels.unlisted == {"class_id=112345": 1, "class_id=112347": 2, "class_id=992340": 1}


def test_v1_and_v2_of_the_same_lights_are_the_same_frames(tmp_path):
    lamps = [
        light(-3, 4, 10, 20, 1),
        light(50, 6, 7, 8, 2, state="red_yellow", pictogram="arrow_left", direction="left"),
    ]
    entries = [image(PATH, *lamps), image("./A/A1/s/x.tiff")]
    for lamp in lamps:
        del lamp["attributes"]["reflection"]
    v1 = read_labels([write_v1(tmp_path / "all.yml", entries)])
    v2 = read_labels([write_v2(tmp_path / "all.json", entries)])
    assert v1 == v2


@pytest.mark.parametrize("city", ["Malang", "Surabaya"])
def test_the_real_files_agree_between_formats(city):
    needs_real()
    v2 = read_labels([REAL / f"DTLD_Labels_v2.0/v2.0/{city}.json"])
    v1 = read_labels([REAL / f"DTLD_Labels_v1.0/{city}_all.yml"])

    def without_reflection(labels):
        return [
            (f.image_path, [(x.box, x.unique_id, x.track_id, {**x.attributes, "reflection": None}) for x in f.lights])
            for f in labels.frames
        ]

    assert without_reflection(v1) == without_reflection(v2)
    assert v1.problems == v2.problems == {}


def test_the_real_files_overlap_without_disagreeing():
    """One city's paths are relative and the other's absolute and stale, and both stand in DTLD_all.json."""
    needs_real()
    labels = read_labels(sorted((REAL / "DTLD_Labels_v2.0" / "v2.0").glob("*.json")))
    assert (len(labels.frames), sum(len(f.lights) for f in labels.frames)) == (24, 65)
    assert all(locate(frame.image_path, REAL) == REAL / frame.image_path for frame in labels.frames)


# --- wrong files -----------------------------------------------------------------------------------------

LAMP = {"x": 1, "y": 2, "w": 3, "h": 4, "attributes": dict(GREEN), "unique_id": 1, "track_id": "t"}


def document(**changes):
    return {"images": [{"image_path": PATH, "labels": [LAMP | changes]}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        (" \n", "the file is empty"),
        ('{"images": [{"image_path": "./a/b', "expected a whole v2.0 JSON file"),
        ("[]", r"all\.json: got \[\], expected an object"),
        ("{}", "missing key 'images'; found nothing"),
        ('{"annotations": []}', "missing key 'images'; found annotations"),
        ('{"images": {}}', r"images: got \{\}, expected a list"),
        ('{"images": []}', "holds no frames"),
        ('{"images": [3]}', r"images\[0\]: got 3, expected an object"),
        ('{"images": [{}]}', r"images\[0\]: missing key 'labels'"),
        ('{"images": [{"labels": []}]}', r"images\[0\]: missing key 'image_path'; found labels"),
        ('{"images": [{"labels": [], "image_path": 7}]}', r"images\[0\]\.image_path: got 7"),
        ('{"images": [{"labels": null, "image_path": "a/b/c/d"}]}', r"images\[0\]\.labels: got None, expected a list"),
        (json.dumps({"images": [{"image_path": PATH, "labels": ["x"]}]}), r"labels\[0\]: got 'x', expected an object"),
        (
            json.dumps({"images": [{"image_path": PATH, "labels": [], "time_stamp": "noon"}]}),
            r"images\[0\]\.time_stamp: got 'noon', expected a finite number",
        ),
        (json.dumps(document(x="1")), r"images\[0\]\.labels\[0\]\.x: got '1', expected a finite number"),
        (json.dumps(document(w=True)), r"labels\[0\]\.w: got True"),
        (json.dumps(document(h=None)), r"labels\[0\]\.h: got None"),
        (json.dumps(document(y=1e300)), r"labels\[0\]\.y: got 1e\+300"),
        (json.dumps(document(y=10**400)), r"labels\[0\]\.y: got|expected a whole v2.0 JSON file"),
        ('{"images": [{"image_path": "a/b/c/d", "labels": [{"x": NaN}]}]}', "expected a whole v2.0 JSON file"),
        (json.dumps(document(unique_id="1")), r"labels\[0\]\.unique_id: got '1', expected a whole number"),
        (json.dumps(document(unique_id=1.5)), r"unique_id: got 1\.5"),
        (json.dumps(document(attributes=[])), r"labels\[0\]\.attributes: got \[\], expected an object"),
        (json.dumps(document(attributes={"state": 3})), r"attributes\.state: got 3, expected red, yellow, red_yellow"),
        (json.dumps(document(attributes={"state": ["red"]})), r"attributes\.state: got \['red'\], expected red"),
        (json.dumps(document(attributes={"mood": None})), r"attributes\.mood: got None, expected a text"),
        ('{"images": ' + "[" * 100_000, "expected a whole v2.0 JSON file"),
        (b"\xff\xfe\x00{".decode("latin-1"), "expected a whole v2.0 JSON file"),
    ],
)
def test_a_wrong_json_file_is_named_with_its_place(tmp_path, content, message):
    path = tmp_path / "all.json"
    path.write_text(content)
    with pytest.raises(LabelError, match=message) as caught:
        read_labels([path])
    assert "all.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["x", "y", "w", "h", "attributes", "unique_id"])
def test_each_key_of_a_label_is_needed(tmp_path, key):
    lamp = {name: value for name, value in LAMP.items() if name != key}
    with pytest.raises(LabelError, match=rf"images\[0\]\.labels\[0\]: missing key '{key}'; found "):
        frames_of(tmp_path, {"image_path": PATH, "labels": [lamp]})


V1_OBJECT = "{x: 1, y: 2, width: 3, height: 4, class_id: 112340, unique_id: 1, track_id: t}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("images: 3", r"all\.yml: got an object with named keys, expected a list"),
        ("[]", "holds no frames"),
        ("- [", "expected a whole v1.0 YAML file"),
        ("- !!python/object:os.system {}", "expected a whole v1.0 YAML file"),
        ("- 3", r"frames\[0\]: got 3, expected an object"),
        (f"- {{objects: [{V1_OBJECT}]}}", r"frames\[0\]: missing key 'path'"),
        ("- {path: ./a/b/c/d}", r"frames\[0\]: missing key 'objects'"),
        (f"- {{path: a/../c/d/e, objects: [{V1_OBJECT}]}}", "leaves the dataset's root"),
        (
            f"- {{path: a/b/c/d, objects: [{V1_OBJECT.replace('112340', 'green')}]}}",
            r"objects\[0\]\.class_id: got 'green'",
        ),
        (f"- {{path: a/b/c/d, objects: [{V1_OBJECT.replace('x: 1', 'x: .nan')}]}}", r"objects\[0\]\.x: got '\.nan'"),
        (f"- {{path: a/b/c/d, objects: [{V1_OBJECT.replace('x: 1', 'x: .inf')}]}}", r"objects\[0\]\.x: got '\.inf'"),
        (f"- {{path: a/b/c/d, objects: [{V1_OBJECT.replace('x: 1', f'x: {10**400}')}]}}", r"objects\[0\]\.x: got 1"),
        (f"- {{path: a/b/c/d, objects: [{V1_OBJECT.replace('width: 3, ', '')}]}}", "missing key 'width'"),
        ("- &a [*a]", r"got the alias \*a, expected one of an anchor before it"),
    ],
)
def test_a_wrong_yaml_file_is_named_with_its_place(tmp_path, content, message):
    path = tmp_path / "all.yml"
    path.write_text(content)
    with pytest.raises(LabelError, match=message) as caught:
        read_labels([path])
    assert "all.yml" in str(caught.value)


def test_no_file_a_folder_another_ending(tmp_path):
    with pytest.raises(LabelError, match=r"nowhere\.json: No such file"):
        read_labels([tmp_path / "nowhere.json"])
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(LabelError, match=r"folder\.json: Is a directory"):
        read_labels([tmp_path / "folder.json"])
    (tmp_path / "labels.csv").write_text("x,y")
    with pytest.raises(LabelError, match=r"got the ending '\.csv', expected \.json"):
        read_labels([tmp_path / "labels.csv"])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(["images", "image", "labels", "label", *LAMP]), json_values)
def test_whatever_stands_in_a_place_the_answer_is_frames_or_a_label_error(tmp_path_factory, place, value):
    path = tmp_path_factory.mktemp("any") / "all.json"
    entry = {"image_path": PATH, "labels": [LAMP]}
    if place in LAMP:
        entry["labels"] = [LAMP | {place: value}]
    elif place in ("labels", "label"):
        entry["labels"] = value if place == "labels" else [value]
    path.write_text(json.dumps({"images": value if place == "images" else [value if place == "image" else entry]}))
    try:
        labels = read_labels([path])
        answer = labels.frames[0].image_path
    except LabelError as error:
        answer = str(error).split(":")[0].rpartition("/")[2]
    assert answer in (NAME, "all.json")
