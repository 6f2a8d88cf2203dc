"""Hostile and broken input, by a seeded fuzzer: exit 0 or 1, one line that names the place, never a traceback.

2,400 label files with mutated bytes or structure go through `inspect`, those that it takes and some of the
others through `prepare`; 300 TIFF and 150 JPEG frames with mutated bytes go through `prepare` beside a whole one.
"""

import json
import random
import re

import cv2
import numpy as np
import pytest
import yaml

from dtld_tools.errors import ImageError
from dtld_tools.pixels.images import image_size, read_image
from tests.dtld_data import frame_path, image, light, random_raw, read_lines, write_raw, write_v1, write_v2
from tests.mutators import mutate_bytes, mutate_structure


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Four frames of 64x32 in three sequences, and the images of their label file."""
    root = tmp_path_factory.mktemp("raw")
    rng, images = np.random.default_rng(0), []
    for number, sequence in enumerate((1, 1, 2, 3)):
        path = frame_path("Aachen", sequence, number)
        write_raw(root / path, rng, 64, 32)
        lights = [light(5, 5, 9, 20, 1), light(-4, 2, 12, 9, 2, state="red")]
        images.append(image(f"./{path}", *lights[: number % 3]) | {"velocity": 3.5, "longitude": 9.9})
    return root, images


def broken_labels(rng, images, folder, number):
    """Write one mutated label file of either format."""
    version = "v2" if number % 3 else "v1"
    path = folder / f"labels{number}.{'json' if version == 'v2' else 'yml'}"
    (write_v2 if version == "v2" else write_v1)(path, images)
    if number % 2:
        path.write_bytes(mutate_bytes(rng, path.read_bytes()))
    elif version == "v2":
        path.write_text(json.dumps(mutate_structure(rng, json.loads(path.read_text()))), errors="replace")
    else:
        path.write_text(yaml.dump(mutate_structure(rng, yaml.safe_load(path.read_text()))), errors="replace")
    return path


def check(answer, path):
    """Exit 0, or 1 with one line that names the label file or a frame."""
    code, out, err = answer
    assert code in (0, 1), (path.read_bytes(), err)
    if code:
        assert re.fullmatch(r"error: [^\n]+\n", err), (path.read_bytes(), err)
        assert "a defect of dtld" not in err, (path.read_bytes(), err)
        assert path.name in err or "frames" in err or "Aachen" in err, (path.read_bytes(), err)
        assert len(err) < 1000, err
        assert not out
    return code


@pytest.mark.parametrize("seed", range(4))
def test_300_broken_label_files(dtld, raw, tmp_path, seed):
    root, images = raw
    rng, taken = random.Random(seed), 0
    for number in range(300):
        path = broken_labels(rng, images, tmp_path, number)
        code = check(dtld("inspect", path, "--json"), path)
        taken += not code
        if not code or number % 25 == 0:
            out = tmp_path / f"out{number}"
            options = ("--tile-size", 32, "--copies", 0, "--workers", 1, "--val", 0, "--test", 0)
            if check(dtld("prepare", path, "--root", root, "--out", out, *options), path):
                assert not out.exists() or not list(out.iterdir())
            else:
                lights = json.loads((out / "report.json").read_text())["lights"]
                assert lights["in"] == lights["kept"] + sum(lights["dropped"].values()) + lights["in_skipped_frames"]
    assert 15 < taken < 270  # the fuzzer neither breaks everything nor nothing


@pytest.mark.parametrize(("ending", "seed"), [*(("tiff", n) for n in range(6)), *(("jpg", n) for n in range(3))])
def test_50_broken_frames(dtld, tmp_path, seed, ending):
    """A broken frame is in the dataset, or skipped by name; the whole one beside it is always in."""
    rng = random.Random(seed)
    root = tmp_path / "raw"
    pixels = random_raw(np.random.default_rng(seed), 64, 32)
    whole, broken = (f"Aachen/Aachen1/s/{name}.{ending}" for name in ("whole", "broken"))
    (root / whole).parent.mkdir(parents=True)
    cv2.imwrite(str(root / whole), pixels if ending == "tiff" else (cv2.merge([pixels] * 3) >> 4).astype(np.uint8))
    data = (root / whole).read_bytes()
    labels = write_v2(root / "all.json", [image(name, light(5, 5, 9, 20)) for name in (whole, broken)])
    skipped = 0
    for number in range(50):
        # Half of the changes go where a header is: a TIFF of OpenCV has its own at the end.
        edge = 300 if number % 2 else len(data)
        head, tail = (data[:-edge], data[-edge:]) if ending == "tiff" else (data[:edge], data[edge:])
        mutated = head + mutate_bytes(rng, tail) if ending == "tiff" else mutate_bytes(rng, head) + tail
        (root / broken).write_bytes(mutated)
        out = tmp_path / f"out{number}"
        options = ("--tile-size", 32, "--copies", 0, "--workers", 1, "--val", 0, "--test", 0, "--empty-ratio", "all")
        code, _, err = dtld("prepare", labels, "--root", root, "--out", out, *options)
        assert code == 0, err
        report = json.loads((out / "report.json").read_text())
        frames = {line["frame"] for line in read_lines(out / "frames.jsonl")}
        assert frames | {skip["frame"] for skip in report["frames_skipped"]} == {whole, broken}
        assert whole in frames
        assert "Traceback" not in err
        skipped += broken not in frames
    assert 5 < skipped < 50


def test_an_image_bomb_is_refused_before_anything_is_allocated(tmp_path):
    """Headers that claim 2^31 pixels: TIFF (width 2^16, height 2^15), PNG and JPEG cannot say more than they hold."""
    path = tmp_path / "bomb.tiff"
    cv2.imwrite(str(path), np.zeros((32, 64), np.uint16))
    data = bytearray(path.read_bytes())
    directory = int.from_bytes(data[4:8], "little")
    for entry in range(int.from_bytes(data[directory : directory + 2], "little")):
        at = directory + 2 + 12 * entry
        tag = int.from_bytes(data[at : at + 2], "little")
        if tag in (256, 257, 278):  # width, height, rows per strip
            data[at + 2 : at + 12] = (
                (4).to_bytes(2, "little")
                + (1).to_bytes(4, "little")
                + (2**16 if tag == 256 else 2**15).to_bytes(4, "little")
            )
    path.write_bytes(data)
    for read in (image_size, read_image):
        with pytest.raises(ImageError, match=r"bomb\.tiff: got 65536 x 32768 pixels, expected 1 to 134217728"):
            read(path)


@pytest.mark.parametrize(
    "path", ["../../etc/a/b.tiff", "/x/../../s/a.tiff", "Aachen/../../../etc/passwd", "a/b\\..\\c/d.tiff"]
)
def test_paths_out_of_the_root_are_refused(dtld, raw, tmp_path, path):
    labels = write_v2(tmp_path / "all.json", [image(path)])
    code, _, err = dtld("prepare", labels, "--root", raw[0], "--out", tmp_path / "out")
    assert (code, "which leaves the dataset's root" in err) == (1, True)
    assert not (tmp_path / "out").exists()


def test_the_last_four_parts_of_an_absolute_path_lie_below_the_root(dtld, raw, tmp_path):
    labels = write_v2(tmp_path / "all.json", [image("/etc/ssl/private/keys/key.tiff")])
    code, _, err = dtld("prepare", labels, "--root", raw[0], "--out", tmp_path / "out")
    assert code == 1
    assert f"tried {raw[0]}/ssl/private/keys/key.tiff" in err


def test_yaml_runs_nothing(dtld, tmp_path):
    canary = tmp_path / "canary"
    for tag in ("!!python/object/apply:os.system", "!!python/object/new:os.system", "!!python/name:os.system"):
        (tmp_path / "all.yml").write_text(f"- path: {tag} ['touch {canary}']\n  objects: []\n")
        code, _, err = dtld("inspect", tmp_path / "all.yml")
        assert code == 1
        assert "all.yml" in err
    assert not canary.exists()
