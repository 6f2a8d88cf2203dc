"""Label files as text: the fast reader against a plain one, damaged and hostile files, YAML's traps, memory."""

import json
import tracemalloc

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtld_tools.errors import LabelError
from dtld_tools.labels import parse
from dtld_tools.labels.attributes import VOCABULARY
from dtld_tools.labels.parse import read_labels
from tests.dtld_data import GREEN, class_id_of, image, light, write_v1, write_v2

PATH = "Berlin/Berlin1/2015-04-17_10-50-05/a_k0.tiff"
LAMP = {"x": 1, "y": 2, "w": 3, "h": 4, "attributes": dict(GREEN), "unique_id": 1, "track_id": "t"}
KNOWN = {
    "disparity_image_path": "d",
    "time_stamp": 1.5,
    "velocity": 1.0,
    "yaw_rate": 0.0,
    "longitude": 1,
    "latitude": 2,
}


def error_of(folder, content, name="all.json"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LabelError) as caught:
        read_labels([path])
    message = str(caught.value)
    assert name in message
    assert "\n" not in message
    assert len(message) < 600
    return message


# --- the fast reader and a plain one ---------------------------------------------------------------------

numbers = st.integers(-3000, 3000) | st.floats(-3000, 3000) | st.sampled_from([-0.0, 1e15, 10**15])
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
attributes = st.fixed_dictionaries(
    {}, optional={name: st.sampled_from((*values, "purple")) for name, values in VOCABULARY.items()}
) | st.dictionaries(texts, texts, max_size=3)
lamps = st.fixed_dictionaries(
    {**dict.fromkeys("xywh", numbers), "attributes": attributes, "unique_id": st.integers(0, 3) | st.just(2**63 - 1)},
    optional={"track_id": texts | st.integers() | st.none(), "more": st.lists(texts) | st.just({"x": {"x": 1}})},
)
parts = st.sampled_from(["A", "A1", "B", "Köln", "2015:04", "."])
pictures = st.fixed_dictionaries(
    {
        "image_path": st.tuples(parts, parts, parts).map(lambda p: f"/r/C/D/E/{p[0]}/{p[1]}/{p[2]}/f.tiff"),
        "labels": st.lists(lamps, max_size=4),
    },
    optional={
        "time_stamp": numbers | st.none(),
        "velocity": numbers,
        "comment": texts,
        "nested": st.just({"labels": []}),
    },
)


def plainly(document):
    """What a reader must find, written as plainly as possible; None where it must refuse."""
    frames = {}
    for entry in document["images"]:
        path = "/".join([part for part in entry["image_path"].split("/") if part not in ("", ".")][-4:])
        ids, found = [], []
        for each in entry["labels"]:
            ids.append(each["unique_id"])
            again = ids.count(each["unique_id"])
            x, y, w, h = (float(each[key]) for key in "xywh")
            found.append(
                (
                    (x, y, x + w, y + h),
                    each["attributes"],
                    each["unique_id"] if again == 1 else f"{each['unique_id']}#{again}",
                    str(each.get("track_id", "")),
                )
            )
        if path in frames and frames[path][1] != found:
            return None
        frames.setdefault(path, (entry.get("time_stamp"), found))
    return sorted((path, path.split("/")[:3], *rest) for path, rest in frames.items())


def as_read(labels):
    return [
        (
            frame.image_path,
            list(frame.sequence),
            frame.timestamp_s,
            [(tuple(x.box), dict(x.attributes), x.unique_id, x.track_id) for x in frame.lights],
        )
        for frame in labels.frames
    ]


@given(st.lists(pictures, min_size=1, max_size=4), st.sampled_from([None, 1, 4]), st.booleans())
@settings(max_examples=300)
def test_the_reader_finds_what_a_plain_one_finds(tmp_path_factory, images, indent, ascii_only):
    path = tmp_path_factory.mktemp("any") / "all.json"
    path.write_text(json.dumps({"images": images}, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    expected = plainly(orjson.loads(path.read_bytes()))
    if expected is None:
        with pytest.raises(LabelError, match="has other lights"):
            read_labels([path])
    else:
        assert as_read(read_labels([path])) == expected


@pytest.mark.parametrize("extra", [{}, KNOWN, KNOWN | {"new": {"key": 1}}])
def test_the_slow_way_gives_the_same_frames(tmp_path, monkeypatch, extra):
    entries = [{"image_path": f"A/A1/s/{n}", "labels": [LAMP, LAMP | {"x": n}]} | extra for n in range(3)]
    path = write_v2(tmp_path / "all.json", entries)
    fast = read_labels([path])
    calls = []
    slow_way = parse._image_of

    def counted(*arguments):
        calls.append(1)
        return slow_way(*arguments)

    class Refusing:
        def decode(self, _):
            raise UnicodeDecodeError("utf-8", b"", 0, 1, "never")

    monkeypatch.setattr(parse, "_image_of", counted)
    assert read_labels([path]) == fast
    assert not calls  # the fast way needs no help, also where keys are new
    monkeypatch.setattr(parse, "_decoder", Refusing())
    assert read_labels([path]) == fast
    assert len(calls) == 3


@given(st.data())
@settings(max_examples=200)
@pytest.mark.parametrize("version", ["json", "yml"])
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path_factory, version, data):
    folder = tmp_path_factory.mktemp("any")
    entries = [image(PATH, light(1, 2, 3, 4, 1), light(5, 6, 7, 8, 2, state="red")), image(f"{PATH}2")]
    path = folder / f"all.{version}"
    whole = (write_v2 if version == "json" else write_v1)(path, entries).read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    new = data.draw(
        st.binary(max_size=3) | st.sampled_from([b"&a ", b"*a", b"[", b"{", b'"', b"- ", b"!!x ", b"\n---\n"])
    )
    path.write_bytes(whole[:place] + new + whole[place + data.draw(st.integers(0, 9)) :])
    try:
        answer = f"all.{version}: {len(read_labels([path]).frames)} frames"
    except LabelError as error:
        answer = str(error)
    assert f"all.{version}" in answer
    assert "\n" not in answer


# --- JSON ------------------------------------------------------------------------------------------------

WHOLE = json.dumps({"images": [{"image_path": PATH, **KNOWN, "labels": [LAMP]}]})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"x": 1', '"x": 1, "x": 2', r"images[0]: got the key 'x' 2 times"),
        ('"state"', '"state": "red", "state"', "got the key 'state' 2 times"),
        ('"labels": [', '"labels": [], "labels": [', "images[0]: got the key 'labels' 2 times"),
        ('{"images"', '{"images": [], "images"', "got the key 'images' 2 times"),
        ('"x": 1', '"x": NaN', "malformed"),
        ('"x": 1', '"x": -Infinity', "malformed"),
        ('"x": 1', '"x": 1e999', "images[0]: "),
        ('"velocity": 1.0', '"velocity": NaN', "malformed"),
        ('"unique_id": 1', f'"unique_id": {10**30}', "unique_id: got 1e+30, expected a whole number"),
        ('"unique_id": 1', f'"unique_id": {2**63}', "unique_id: got 9223372036854775808"),
        ('"track_id": "t"', '"track_id": ["t"]', "labels[0].track_id: got ['t'], expected a text"),
        ('"front"', '"\\ud800"', "malformed"),
        ('"d"', "[" * 3000 + "]" * 3000, "expected a whole v2.0 JSON file"),
    ],
)
def test_a_defect_of_json_is_named(tmp_path, old, new, message):
    assert len(read_labels([write_v2(tmp_path / "good.json", json.loads(WHOLE)["images"])]).frames) == 1
    assert old in WHOLE
    assert message in error_of(tmp_path, WHOLE.replace(old, new, 1))


@pytest.mark.parametrize(
    "content",
    [
        WHOLE.encode("utf-16"),
        WHOLE.encode("utf-16-le"),
        WHOLE.replace("Berlin", "K\xf6ln").encode("latin-1"),
        WHOLE.replace('"d"', '"\xf6"').encode("latin-1"),
        WHOLE.replace("front", "\xf6").encode("latin-1"),
        WHOLE.encode()[:-1],
        WHOLE.encode()[:200],
        WHOLE.encode() + b"}",
    ],
)
def test_another_encoding_or_half_a_file_is_refused(tmp_path, content):
    assert "expected a whole v2.0 JSON file; copy it again" in error_of(tmp_path, content)


def test_a_byte_order_mark_is_no_damage(tmp_path):
    for name, text in (("all.json", WHOLE), ("all.yml", v1())):
        (tmp_path / name).write_bytes(text.encode("utf-8-sig"))
        assert len(read_labels([tmp_path / name]).frames) == 1


def test_a_whole_number_may_be_written_as_json_has_it(tmp_path):
    """1.0 is an integer to JSON Schema, so it is one to the parser; beyond 2^53 a float is no certain number."""
    for written, read in (("1.0", 1), ("-3.0", -3), ("9007199254740992.0", 2**53)):
        path = tmp_path / "all.json"
        path.write_text(WHOLE.replace('"unique_id": 1', f'"unique_id": {written}'))
        (found,) = read_labels([path]).frames[0].lights
        assert (type(found.unique_id), found.unique_id) == (int, read)
    for written in ("1.5", "9007199254740994.0", '"1"', "true"):
        text = WHOLE.replace('"unique_id": 1', f'"unique_id": {written}')
        assert "labels[0].unique_id: got" in error_of(tmp_path, text)


def test_memory_of_a_frame_is_small_because_frames_share_what_they_have_in_common(tmp_path):
    def bytes_held(count):
        entries = [
            image(f"./A/A1/sequence/{n:06d}.tiff", *(light(n, 500, 9, 20, 10 * n + m, state="red") for m in range(7)))
            for n in range(count)
        ]
        path = write_v2(tmp_path / "all.json", entries)
        del entries
        tracemalloc.start()
        labels = read_labels([path])
        held, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(labels.frames) == count
        return held, peak - path.stat().st_size

    bytes_held(10)  # what is loaded once
    (few, few_peak), (many, many_peak) = bytes_held(100), bytes_held(1100)
    assert (many - few) / 1000 < 2600  # 7 lights; 12,000 when nothing was shared
    assert (many_peak - few_peak) / 1000 < 3200  # and no dict of a frame outlives it


# --- YAML ------------------------------------------------------------------------------------------------


def v1(**changes):
    words = {"x": 1, "y": 2, "width": 3, "height": 4, "class_id": 112340, "unique_id": 1, "track_id": "t"} | changes
    return f"- {{path: {PATH}, objects: [{{{', '.join(f'{key}: {value}' for key, value in words.items())}}}]}}\n"


def light_of(folder, content):
    (folder / "all.yml").write_text(content)
    ((lamp,),) = (frame.lights for frame in read_labels([folder / "all.yml"]).frames)
    return lamp


@pytest.mark.parametrize("written", ["002340", "'002340'", "2340", '"2340"'])
def test_the_digits_of_a_class_number_count_not_its_octal_value(tmp_path, written):
    lamp = light_of(tmp_path, v1(class_id=written))
    assert (lamp.attributes["state"], lamp.attributes["direction"]) == ("green", "unknown")


@pytest.mark.parametrize("written", ["010", "0x10", "1:30", "1_0", "yes", "'1'", "2015-04-17", "1e3"])
def test_a_word_that_readers_of_yaml_disagree_about_is_no_number(tmp_path, written):
    message = error_of(tmp_path, v1(x=written), "all.yml")
    assert f"all.yml: frames[0].objects[0].x: got {written.strip(chr(39))!r}, expected a finite number" in message


@pytest.mark.parametrize("written", ["yes", "007", "2015-04-17", "1e3", "12:30", "'3'", "0x1F"])
def test_a_track_is_named_as_written(tmp_path, written):
    assert light_of(tmp_path, v1(track_id=written)).track_id == written.strip("'")


def test_numbers_as_yaml_may_write_them(tmp_path):
    lamp = light_of(tmp_path, v1(x="-1", y="+2", width=".5", height="1.5e+1"))
    assert tuple(lamp.box) == (-1, 2, -0.5, 17)


def test_aliases_stand_for_what_they_name(tmp_path):
    lamps = f"&o [{{x: 1, y: 2, width: 3, height: 4, class_id: {class_id_of(GREEN)}, unique_id: 1}}]"
    (tmp_path / "all.yml").write_text(f"- {{path: a/b/c/1, objects: {lamps}}}\n- {{path: a/b/c/2, objects: *o}}\n")
    first, second = read_labels([tmp_path / "all.yml"]).frames
    assert first.lights == second.lights != ()


LAUGHS = "- &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"- &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"- path: {PATH}\n  objects: []\n  more:\n" + LAUGHS.replace("- &", "  - &"), "got aliases for more than"),
        (f"- path: {PATH}\n  objects: []\n  more: {'[' * 300}", "got more than 20 lists in each other"),
        (
            f"- path: {PATH}\n  objects: []\n  more: {'[' * 50_000}",
            "expected a whole v1.0 YAML file",
        ),  # libyaml's limit
        (f"- path: {PATH}\n  objects: &a [*a]", "got the alias *a, expected one of an anchor before it"),
        (f"- path: {PATH}\n  objects: *nothing", "line 2: got the alias *nothing"),
        (f"- path: {PATH}\n  path: {PATH}\n  objects: []", "got 'path' as a key"),
        (f"- path: {PATH}\n  ? [a]\n  : b\n  objects: []", "got ['a'] as a key"),
        ("- !!python/object/apply:os.getcwd []", "got the tag tag:yaml.org,2002:python/object/apply:os.getcwd"),
        (v1() + "---\n" + v1(), "got a second document"),
        (v1(x="9" * 6000), "objects[0].x: got '9999"),
        (v1(unique_id=10**30), "expected a whole number"),
        (v1(track_id="[t]"), "track_id: got ['t'], expected a text"),
        (v1(class_id="{a: b}"), "class_id: got {'a': 'b'}, expected a number of up to six digits"),
        ("# nothing", "the file is empty"),
        ("~", "all.yml: got '~', expected a list"),
    ],
)
def test_a_trap_in_yaml_is_named(tmp_path, content, message):
    tracemalloc.start()
    found = error_of(tmp_path, content, "all.yml")
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert message in found


def test_yaml_that_is_not_utf8_is_refused(tmp_path):
    assert "expected a whole v1.0 YAML file" in error_of(tmp_path, v1(track_id="\xf6").encode("latin-1"), "all.yml")
