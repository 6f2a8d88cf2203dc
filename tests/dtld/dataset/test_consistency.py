"""A dataset that contradicts itself is refused by every stage before it writes, and told of by `dtld validate`."""

import shutil
from pathlib import Path

import pytest

from dtld_tools.dataset.consistency import read_classes, read_consistent
from dtld_tools.errors import DatasetError
from tests.dtld_data import tree_bytes
from tests.planted import defects, edit_lines, edit_report

CLASSES = ["relevant", "not_relevant"]


@pytest.fixture
def dataset(full, tmp_path):
    """Whole frames, two classes; tests plant a contradiction."""
    return Path(shutil.copytree(full, tmp_path / "full"))


def of_a_light(change):
    """An edit of frames.jsonl: ``change`` gets the first light of the first frame that has one."""

    def edit(lines):
        line = next(line for line in lines if line["lights"])
        change(line["lights"][0], line)

    return edit


def set_box(*box):
    return of_a_light(lambda light, _: light.update(box=list(box)))


def of_an_image(change):
    def edit(lines):
        change(next(line for line in lines if line["targets"]))

    return edit


def other(split):
    return "val" if split == "train" else "train"


FRAMES = {
    "class 2 of two": (of_a_light(lambda light, _: light.update({"class": 2})), "got class 2, expected 0 to 1"),
    "class 2^63": (of_a_light(lambda light, _: light.update({"class": 2**63})), f"got class {2**63}"),
    "beyond the frame": (set_box(10, 10, 300, 40), "expected one inside 256 x 128 pixels"),
    "left of the frame": (set_box(-3, 10, 30, 40), "expected one inside 256 x 128 pixels"),
    "inverted": (set_box(30, 10, 10, 40), "expected one inside 256 x 128 pixels"),
    "upside down": (set_box(10, 40, 30, 10), "expected one inside 256 x 128 pixels"),
    "without area": (set_box(10, 10, 10, 40), "expected one inside 256 x 128 pixels"),
    "huge": (set_box(0, 0, 1e308, 40), "expected one inside 256 x 128 pixels"),
    "an id twice": (of_a_light(lambda light, line: line["lights"].append(light)), "stands twice"),
    "a line twice": (lambda lines: [lines[0], *lines], "stands twice"),
    "another sequence": (lambda lines: lines[0].update(city="Elsewhere"), "got sequence Elsewhere/"),
    "an impossible size": (lambda lines: lines[0].update(width=2**40), "expected the size of an image"),
    "no target": (of_a_light(lambda _, line: line["lights"].append(
        {"id": 424242, "class": 0, "box": [0, 0, 5, 5]})), "light 424242 is in no image"),
}  # fmt: skip
IMAGES = {
    "an unknown target": (of_an_image(lambda line: line["targets"].append(424242)), "light 424242 is listed"),
    "a target left out": (of_an_image(lambda line: line["targets"].pop()), "is in no image"),
    "an unknown sliver": (of_an_image(lambda line: line["slivers"].append(424242)), "light 424242 is listed"),
    "a masked target": (of_an_image(lambda line: line["masked"].append(line["targets"][0])), "is masked, but"),
    "another split": (of_an_image(lambda line: line.update(split=other(line["split"]))), "is in "),
    "another name": (of_an_image(lambda line: line.update(name="other.jpg")), "got that name, expected"),
    "a window outside": (of_an_image(lambda line: line["window"].update(x=200)), "got that name, expected"),
    "an impossible scale": (of_an_image(lambda line: line.update(scale=1e300)), "expected the size of an image"),
}  # fmt: skip


def commands(root, out):
    return (
        ("tile", root, "--out", out, "--tile-size", 64),
        ("augment", root, "--out", out, "--clahe", 1),
        ("split", root, "--out", out),
        ("export", root, "--out", out.with_suffix(".json")),
    )


def refused_by_all(dtld, root, tmp_path, expected):
    """Every stage ends in exit 1 and one line that names the place, and writes nothing."""
    before = tree_bytes(tmp_path, without=())
    for command in commands(root, tmp_path / "out"):
        code, out, err = dtld(*command, *(["--workers", 1] if command[0] != "export" else []))
        assert (code, out) == (1, ""), command
        assert expected in err, command
        assert "a defect of dtld" not in err
    assert tree_bytes(tmp_path, without=()) == before
    assert any(expected in line for line in defects(root))  # validate tells the same


@pytest.mark.parametrize(("edit", "expected"), FRAMES.values(), ids=FRAMES)
def test_a_wrong_frame_is_refused(dtld, dataset, tmp_path, edit, expected):
    edit_lines(dataset / "frames.jsonl", edit)
    refused_by_all(dtld, dataset, tmp_path, expected)


@pytest.mark.parametrize(("edit", "expected"), IMAGES.values(), ids=IMAGES)
def test_a_wrong_image_is_refused(dtld, dataset, tmp_path, edit, expected):
    edit_lines(dataset / "manifest.jsonl", edit)
    refused_by_all(dtld, dataset, tmp_path, expected)


def test_a_sequence_in_two_splits_is_refused(dtld, dataset, tmp_path):
    for name in ("frames.jsonl", "manifest.jsonl"):
        edit_lines(dataset / name, lambda lines: lines[0].update(split=other(lines[0]["split"])))
    refused_by_all(dtld, dataset, tmp_path, " is in ")
    with pytest.raises(DatasetError, match=r"its sequence is in \w+ and in \w+, expected in one"):
        list(read_consistent(dataset))


@pytest.mark.parametrize(
    "text",
    [
        "names: {0: not_relevant, 1: relevant}",  # relevant and not relevant exchanged
        "names: [not_relevant, relevant]",
        "names: [relevant]",  # a class is missing
        "names: [relevant, not_relevant, other]",
        "names: {false: relevant, true: not_relevant}",
        "names: {0: relevant, 1: not_relevant, 1: relevant}",
        "names: relevant, not_relevant",
        "names: 2",
        "names: {0: 2015-99-99, 1: !!int ''}",
        "names: " + "[" * 3000,
        'names: ["relevant\\0", not_relevant]',
    ],
)
def test_names_that_are_not_the_reports_are_refused(dtld, dataset, tmp_path, text):
    splits = "train: images/train\nval: images/val\ntest: images/test\n"
    (dataset / "data.yaml").write_text(splits + text + "\n")
    refused_by_all(dtld, dataset, tmp_path, "data.yaml")


def test_names_exchanged_in_data_yaml_and_in_the_reports_counts_are_refused(dtld, dataset, tmp_path):
    """What validate called sound: both lists agree, but the rules in report.json say which number is which."""

    def swap(report):
        first, second = report["classes"].items()
        report["classes"] = {second[0]: first[1], first[0]: second[1]}

    edit_report(dataset, swap)
    data = dataset / "data.yaml"
    data.write_text(
        data.read_text().replace("0: relevant", "0: not_relevant").replace("1: not_relevant", "1: relevant")
    )
    refused_by_all(dtld, dataset, tmp_path, "as in configuration.rules")
    edit_report(dataset, lambda report: report["configuration"]["rules"].update(classes=CLASSES[::-1]))
    assert defects(dataset) == []  # all three say so: other names for the numbers, and no contradiction
    assert read_classes(dataset) == tuple(CLASSES[::-1])


def test_without_its_report_a_dataset_is_no_finished_one(dtld, dataset, tmp_path):
    (dataset / "report.json").unlink()
    refused_by_all(dtld, dataset, tmp_path, "report.json")


def test_a_report_without_notes_is_damaged(dtld, dataset, tmp_path):
    edit_report(dataset, lambda report: report.pop("notes"))
    assert defects(dataset) == ["report.json: the report must contain ['notes'] properties"]
    refused_by_all(dtld, dataset, tmp_path, "report.json: the report must contain")


def test_a_sound_dataset_is_read_as_it_is(sound, full):
    for root in (sound, full):
        assert len(list(read_consistent(root))) == len((root / "frames.jsonl").read_text().splitlines())


def test_the_first_contradiction_ends_the_reading(dataset):
    edit_lines(dataset / "frames.jsonl", set_box(30, 10, 10, 40))
    with pytest.raises(DatasetError, match=r"frames\.jsonl: .*light .*; see dtld validate"):
        list(read_consistent(dataset))
