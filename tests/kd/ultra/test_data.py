"""A data.yaml and the lists it names: one reader, equal to Ultralytics' where that is right, errors of one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra kd")
from hypothesis import given, settings
from hypothesis import strategies as st
from ultralytics.data.base import BaseDataset
from ultralytics.data.utils import check_det_dataset

from kd.errors import DataError
from kd.scoring.evaluate import evaluate
from kd.training.build import build_trainer
from kd.training.run import train
from kd.ultra import session
from kd.ultra.data import MAX_CLASSES, hash_data, image_files, resolve_data, ultralytics_view, write_data
from kd.ultra.overlap import also_in, shared_images
from schemas.lists import ListError, read_list
from tests.kd_fixtures import tiny_config, write_dataset
from tests.kd_models import save_detector

HEAD = "train: images/train\nval: images/val\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), train=3, val=2, test=1).parent


def refused(folder: Path, text: str | bytes, split: str | None = None) -> str:
    """The error for a data.yaml of this content, which is one line and no other kind of error."""
    file = folder / f"{abs(hash(text))}.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    try:
        with pytest.raises(DataError) as refusal:
            resolve_data(file, split)
    finally:
        file.unlink()
    assert "\n" not in str(refusal.value).replace(str(file), "")
    return str(refusal.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEAD + "nc: 10000000\n", f"nc: got 10000000, expected at most {MAX_CLASSES} classes"),
        (HEAD + "nc: 3\nnames: [a, b]\n", "got 2 names with nc: 3, expected as many"),
        (HEAD + "nc: two\nnames: [a, b]\n", "nc: got 'two'"),
        (HEAD + "nc: true\n", "nc: got True"),
        (HEAD + "nc: 0\n", "nc: got 0"),
        (HEAD + "nc: 1.5\nnames: [a]\n", "nc: got 1.5"),
        (HEAD + "names: person\n", "names: got the text 'person', expected a list: names: [person]"),
        (HEAD + "names: 2\n", "names: got 2, expected class names"),
        (HEAD + "names: []\n", "names: got nothing"),
        (HEAD + "names: [a, a]\n", "got 'a' for the classes 0 and 1, expected different names"),
        (HEAD + "names: {0: a, '0': b}\n", "names: got ValueError: two equal ids"),
        (HEAD + "names: {true: a}\n", "names: got"),
        (HEAD + "names: {1: a, 2: b}\n", "names: got"),
        (HEAD + "names: {-1: a, 0: b}\n", "names: got"),
        (HEAD + "names: {x: a}\n", "names: got ValueError: invalid literal"),
        (HEAD + "names: [[a]]\n", "names: got ['a'], expected a text"),
        (HEAD + "names: [a, null]\n", "names: got None, expected a text"),
        (HEAD + "names: [a, true]\n", "names: got True, expected a text"),
        (HEAD + 'names: ["a\\nb"]\n', r"names: got 'a\nb', expected a name that can be printed"),
        (HEAD + 'names: ["a\\ud800"]\n', "got no YAML"),
        (HEAD + 'names: ["a\\0"]\n', r"names: got 'a\x00', expected a name"),
        (HEAD + "names: [' ']\n", "names: got ' ', expected a name"),
        (HEAD + "names: [on, off]\n", "names: got 'on' without quotes, which Ultralytics takes for True"),
        (HEAD + "names: {0: a, 1: no}\n", "names: got 'no' without quotes, which Ultralytics takes for False"),
        (HEAD + "names: [12:30, a]\n", "names: got '12:30' without quotes, which Ultralytics takes for 750"),
        (HEAD + "names: [1e3]\n", "names: got 1000.0 without quotes, which Ultralytics takes for '1e3'"),
        (HEAD + "names: [a]\nmade: 2015-99-99\n", "got what Ultralytics cannot read (ValueError: month must be"),
        (HEAD + "names: [a]\nnames: [b]\n", "got 'names' as a key"),
        (HEAD + "names: [a]\nlr: .nan\n", "got .nan, expected a finite number"),
        (HEAD + "names: &a [*a]\n", "got the alias *a"),
        (HEAD + "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
            f"{y}: &{y} [{', '.join([f'*{x}'] * 9)}]\n" for x, y in zip("abcdefgh", "bcdefghi", strict=True)
        ) + "names: [a]\n", "got aliases for more than"),
        (HEAD + f"names: {'[' * 3000}\n", "got no YAML: exceeded maximum nesting depth"),
        (HEAD + f"names: {'[' * 30}{']' * 30}\n", "lists in each other"),
        (HEAD.encode() + b"names: [a]\0\n", "NUL"),
        (HEAD.encode() + b"names: [\xff]\n", "no UTF-8"),
        (HEAD + "names: !!python/object:os.system [a]\n", "got the tag"),
        (HEAD + "names: [a]\nchannels: '1'\n", "channels: got '1', expected 3"),
        (HEAD + "names: [a]\nchannels: 0\n", "channels: got 0, expected 3"),
        (HEAD + "names: [a]\nkpt_shape: 17\n", "kpt_shape: got 17"),
        ("train: images/train\nvalid: images/val\nnames: [a]\n", "val: got nothing, but a key 'valid': call it val"),
        ("train: images/train\nvalidation: images/val\nnames: [a]\n", "val: got nothing, but a key 'validation'"),
        ('train: "images/\\0"\nval: images/val\nnames: [a]\n', "train: got"),
        (f"train: {'x' * 5000}\nval: images/val\nnames: [a]\n", "train: got"),
        ("train: images/train\nval: images/val/000.png\nnames: [a]\n", "val: got the image images/val/000.png"),
        ("train: images/train\nval: [../images/val]\nnames: [a]\n", "val: got ../images/val, expected an existing"),
        ("train: images/train\nval: [' ']\nnames: [a]\n", "val: got ' ', expected a path"),
        (f"path: {'y' * 5000}\ntrain: a\nval: b\nnames: [a]\n", "path: got"),
        ('path: "\\0"\ntrain: a\nval: b\nnames: [a]\n', "path: got"),
        ("path: 7\ntrain: a\nval: b\nnames: [a]\n", "path: got 7, expected an existing folder"),
        (HEAD + "test: gone\nnames: [a]\n", "test: got gone, expected an existing folder"),
        ("", "got a NoneType, expected a mapping"),
    ],
)  # fmt: skip
def test_other_peoples_data_are_refused_in_one_line(folder, text, expected):
    assert expected in refused(folder, text)


def test_what_ultralytics_reads_the_same_way_is_read(folder):
    """Odd but sound files, by both readers: the view is what Ultralytics' own reader returns."""
    for text, names in [
        ("nc: 2\n", ["class_0", "class_1"]),
        ("nc: '2'\nnames: [a, b]\n", ["a", "b"]),
        ("nc: 2.0\nnames: [a, b]\n", ["a", "b"]),
        ("names: {1: b, 0: a}\n", ["a", "b"]),
        ("names: {'0': a, '1': b}\n", ["a", "b"]),
        ("names: ['off', \"no\"]\n", ["off", "no"]),
        ("names: [1, 2.5, 2015-04-17]\n", ["1", "2.5", "2015-04-17"]),
        ("names: [Grün, 交通灯, a b]\nchannels: 1\nmade: 2024-01-01\n", ["Grün", "交通灯", "a b"]),
        ("names: &n [a]\nother: *n\n", ["a"]),
    ]:
        file = folder / "odd.yaml"
        file.write_bytes(b"\xef\xbb\xbf" + ("train: ../images/train\nval: images/val\n" + text).encode())
        ours, theirs = resolve_data(file), check_det_dataset(file)
        assert list(ours["names"].values()) == names
        handed = ultralytics_view(ours)
        for key in ("names", "nc", "channels", "train", "val"):
            mine = handed[key] if key not in ("train", "val") else handed[key][0]
            assert mine == theirs[key], (text, key)
        file.unlink()


def test_only_the_split_that_is_asked_for_has_to_be_there(folder):
    file = folder / "moved.yaml"
    file.write_text("train: gone\nval: images/val\ntest: ../test/images\nnames: [red, green]\n")
    assert len(image_files(resolve_data(file, "val")["val"])) == 2
    with pytest.raises(DataError, match=r"test: got \.\./test/images, expected an existing folder"):
        resolve_data(file, "test")
    with pytest.raises(DataError, match="train: got gone"):
        resolve_data(file)
    model = save_detector(folder / "model.pt", {0: "red", 1: "green"})
    assert evaluate(file, model, split="val", device="cpu", quiet=True)["images"] == 2
    file.unlink()


def test_a_download_script_in_the_data_is_never_run(tmp_path):
    data = write_dataset(tmp_path / "d", train=3, val=2)
    data.write_text(f"{HEAD}names: [red, green]\ndownload: open({str(tmp_path / 'ran')!r}, 'w')\n")
    model = save_detector(tmp_path / "model.pt", {0: "red", 1: "green"})
    evaluate(data, model, split="val", device="cpu", quiet=True)
    train(tiny_config(data, tmp_path / "run"), dry_run=True, quiet=True)
    data.write_text(data.read_text().replace("images/val", "[../images/val]"))  # which Ultralytics finds missing
    with pytest.raises(DataError):
        train(tiny_config(data, tmp_path / "run"), quiet=True)
    assert not (tmp_path / "ran").exists()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_files_are_read_or_refused_in_one_line(folder, data):
    """No other error than a refusal, whatever is put into a data.yaml."""
    sound = (HEAD + "test: images/test\nnc: 2\nnames: {0: red, 1: green}\nchannels: 3\n").encode()
    junk = [
        b"[",
        b"{",
        b"&a",
        b"*a",
        b"<<: ",
        b"\0",
        b"\xff",
        b"!!int ''",
        b"2015-04-17",
        b"'",
        b": ",
        b"- ",
        b"~",
        b"\n",
    ]
    junk += [b"1e999", b"-1", b"99999999999999999999", b"null", b"[[[", b"../", b"x" * 300, b"\\ud800", b"\xe2\x80\xa8"]
    text = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        until = data.draw(st.integers(at, min(len(text), at + 12)))
        text[at:until] = data.draw(st.sampled_from(junk) | st.binary(max_size=6))
    file = folder / "mutated.yaml"
    file.write_bytes(text)
    try:
        view = resolve_data(file)
    except DataError as error:
        refusal = str(error)
    else:
        refusal = "none"
        assert all(isinstance(name, str) and name.strip() for name in view["names"].values())
        hash_data(file, view)
    assert len(refusal.splitlines()) == 1


# --- lists ------------------------------------------------------------------------------------------------


def listed(text: str | bytes, folder: Path) -> list[str]:
    place = folder / "list.txt"
    place.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [str(path) for path in read_list(place, {"png"})]


def ultralytics_list(place: Path) -> list[str]:
    """What Ultralytics makes of a list, by its own method and not ours."""
    dataset = BaseDataset.__new__(BaseDataset)
    dataset.prefix, dataset.fraction = "", 1.0
    with session.silence():
        return dataset.get_img_files(str(place))


@pytest.mark.parametrize(
    "text",
    [
        "./images/val/000.png\n./images/train/001.png\n",
        "images/train/000.png\n{root}/images/val/001.png\n",
        "../{name}/images/train/000.png\n./../{name}/images/train/001.png",
        "\ufeff./images/val/000.png\r\n\r\n  \n./images/val/001.png\r\n",
    ],
)
def test_lists_are_read_as_by_ultralytics(folder, monkeypatch, text):
    monkeypatch.chdir(folder)
    ours = listed(text.format(root=folder, name=folder.name), folder)
    theirs = ultralytics_list(folder / "list.txt")
    assert sorted(map(os.path.realpath, ours)) == sorted(map(os.path.realpath, theirs))
    assert len(ours) == 2
    found = image_files([folder / "list.txt"])
    assert sorted(map(os.path.realpath, found)) == sorted(map(os.path.realpath, theirs))
    assert all(path.is_absolute() for path in found)


def test_trailing_blanks_hide_no_image(folder):
    """Ultralytics takes 'png ' for an ending that it does not know, and drops the line without a word."""
    assert len(listed("./images/val/000.png \n./images/val/001.png\t\n", folder)) == 2
    assert len(ultralytics_list(folder / "list.txt")) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "./images/val/000.png\n./images/val/009.png\n",
            "line 2: got './images/val/009.png', which is not there (1 of 2",
        ),
        ("./images/val/000.png\n./labels/val/000.txt\n", "line 2: got './labels/val/000.txt', expected the path of an"),
        ("images/val/000.png\n", "is taken from the list's folder, any other relative one from where you are"),
        (b"./images/val/000.png\n\xff.png\n", "byte 21: got what is no UTF-8"),
        ("./a\0.png\n", "line 1: got './a\\x00.png', which is not there"),
        ("x" * 5000 + ".png", "line 1: got 'xxx"),
    ],
)
def test_a_line_of_a_list_is_an_image_or_an_error(folder, tmp_path, monkeypatch, text, expected):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ListError) as refusal:
        listed(text, folder)
    assert expected in str(refusal.value)
    file = folder / "data2.yaml"
    file.write_text("train: images/train\nval: list.txt\nnames: [red, green]\n")
    with pytest.raises(DataError, match=r"list\.txt: "):
        resolve_data(file)


def test_an_empty_list_is_no_split(folder):
    assert listed("\n \n", folder) == []
    assert "val: got no images in" in refused(folder, "train: images/train\nval: list.txt\nnames: [a]\n")


def test_folders_are_searched_as_by_ultralytics(tmp_path):
    """Hidden files are left out, links to folders followed, and the order is that of the paths as text."""
    write_dataset(tmp_path / "d", train=2, val=1)
    images = tmp_path / "d" / "images" / "train"
    (images / "a").mkdir()
    (images / "a-b").mkdir()
    (images / ".hidden").mkdir()
    for name in ("._000.png", ".hidden/x.png", "a/x.png", "a-b/x.png", "note.txt"):
        (images / name).write_bytes((images / "000.png").read_bytes())
    (images / "linked").symlink_to(tmp_path / "d" / "images" / "val")
    ours = list(map(str, image_files([images])))
    assert ours == ultralytics_list(images)
    assert [Path(path).relative_to(images).as_posix() for path in ours] == [
        "000.png", "001.png", "a-b/x.png", "a/x.png", "linked/000.png",
    ]  # fmt: skip


def test_a_list_reaches_training_as_it_is_read(tmp_path, monkeypatch):
    """Trailing blanks, a byte order mark, paths from two places: all images are trained on and scored."""
    data = write_dataset(tmp_path / "d", train=4, val=2)
    monkeypatch.chdir(tmp_path)
    lists = tmp_path / "d" / "lists"
    lists.mkdir()
    lines = "\ufeff./../images/train/000.png \nd/images/train/001.png\t\n./../images/train/003.png"
    (lists / "train.txt").write_text(lines, encoding="utf-8")
    data.write_text("train: lists/train.txt\nval: images/val\nnames: [red, green]\n")
    config = tiny_config(data, tmp_path / "run")
    assert train(config, quiet=True)["images"] == {"train": 3, "val": 2, "test": 0}
    with session.silence():
        trainer = build_trainer(config, "yolov5n.yaml", tmp_path / "again", None)
        trainer._setup_train()
    assert [Path(file).name for file in trainer.train_loader.dataset.im_files] == ["001.png", "000.png", "003.png"]


def test_names_that_no_list_can_hold_are_refused(tmp_path):
    data = write_dataset(tmp_path / "d", train=2, val=1)
    odd = tmp_path / "d" / "images" / "train" / "a\nb.png"
    odd.write_bytes((odd.parent / "000.png").read_bytes())
    with pytest.raises(DataError, match=r"a\\nb.png': got a name that is no UTF-8, or more than a line"):
        resolve_data(data)
    odd.rename(os.fsdecode(os.fsencode(odd.parent) + b"/\xff.png"))
    with pytest.raises(DataError, match="got a name that is no UTF-8"):
        resolve_data(data)


def test_a_written_file_is_read_as_the_view_that_it_is_of(folder, tmp_path):
    file = folder / "written.yaml"
    file.write_text(HEAD + "names: ['off', Grün]\nchannels: 1\nkpt_shape: [4, 2]\n")
    view = resolve_data(file)
    images = image_files(view["train"])
    again = resolve_data(write_data(tmp_path, view, images))
    assert {key: again[key] for key in ("names", "channels", "kpt_shape")} == {
        key: view[key] for key in ("names", "channels", "kpt_shape")
    }
    assert image_files(again["val"]) == image_files(again["test"]) == images


# --- images that splits share -----------------------------------------------------------------------------


def test_val_that_is_train_is_refused_by_path_and_by_content(tmp_path):
    data = write_dataset(tmp_path / "d", train=3, val=2)
    config = tiny_config(data, tmp_path / "run")
    (tmp_path / "d" / "images" / "train" / "copy.png").write_bytes(
        (tmp_path / "d" / "images" / "val" / "000.png").read_bytes()
    )
    with pytest.raises(
        DataError, match=r"train: got 1 that val has too \(copy.png\), expected others: .*--allow-overlap"
    ):
        train(config, quiet=True)
    data.write_text("train: images\nval: images/val\nnames: [red, green]\n")
    with pytest.raises(DataError, match=r"train: got 3 that val has too"):
        train(config, quiet=True)
    data.write_text("train: images/val\nval: images/val\nnames: [red, green]\n")
    with pytest.raises(DataError, match=r"train: got 2 that val has too \(000.png, 001.png\)"):
        train(config, dry_run=True, quiet=True)
    assert not (tmp_path / "run").exists()
    result = train(config, allow_overlap=True, quiet=True)
    assert result["shared_images"] == {"val": 2}
    assert "training images that stand there too val 2" in (tmp_path / "run" / "README.md").read_text()


def test_only_equal_bytes_are_an_overlap(tmp_path):
    files = {name: os.urandom(20_000) for name in "abc"}
    files |= {
        "like b": files["b"][:10_000] + bytes([files["b"][10_000] ^ 1]) + files["b"][10_001:],
        "b again": files["b"],
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    scored = [tmp_path / "a", tmp_path / "b"]
    assert also_in(scored, [tmp_path / name for name in ("c", "like b", "b again", "a")]) == [
        tmp_path / "b again", tmp_path / "a",
    ]  # fmt: skip
    assert shared_images({"train": [], "val": [], "test": []}) == {}
