"""The counts of report.json, by hand."""

from dtld_tools.dataset.tally import Tally
from dtld_tools.types import Box, Dropped, FrameRecord, ImageRecord, SequenceId, Target, Window

SEQUENCE = SequenceId("A", "A1", "s")
BOX = Box(1, 2, 3, 4)


def frame(split="train", lights=(), dropped=()):
    return FrameRecord(f"{split}.tiff", SEQUENCE, split, 100, 50, lights, dropped)


def image(split="train", targets=(), slivers=(), augmentation=None, x=0, masked=()):
    return ImageRecord(
        "a.jpg", split, f"{split}.tiff", SEQUENCE, Window(x, 0, 50, 50), 1.0, augmentation, targets, slivers, masked
    )


def test_nothing_is_all_zero():
    counts = Tally(("a", "b")).counts(0)
    assert counts["lights"] == {"in": 0, "kept": 0, "dropped": {}, "in_skipped_frames": 0}
    assert counts["images"] == {"train": 0, "val": 0, "test": 0}
    assert counts["classes"]["b"] == {"lights": 0, "targets": {"train": 0, "val": 0, "test": 0}}


def test_one_of_everything():
    tally, part = Tally(("a", "b")), Tally()
    lights = (Target(0, BOX, 1), Target(1, BOX, 2), Target(1, BOX, 3))
    tally.add(
        frame("train", lights, (Dropped(4, "rule"), Dropped(5, "min_side", 0, BOX), Dropped(6, "rule"))),
        [
            image("train", targets=(1, 2), slivers=(3,)),
            image("train", targets=(1, 2), slivers=(3,), augmentation={"clahe": {}}),
            image("train", targets=(2, 3), x=51),
            image("train", slivers=(5,), masked=(5,)),
        ],
    )
    part.add(frame("val", (Target(0, BOX, 1),)), [image("val", targets=(1,))])
    part.add(frame("test"), [])
    tally.merge(part)
    assert tally.counts(skipped_lights=10) == {
        "lights": {"in": 17, "kept": 4, "dropped": {"min_side": 1, "rule": 2}, "in_skipped_frames": 10},
        "classes": {
            "a": {"lights": 2, "targets": {"train": 1, "val": 1, "test": 0}},
            "b": {"lights": 2, "targets": {"train": 3, "val": 0, "test": 0}},
        },
        "frames": {"train": 1, "val": 1, "test": 1},
        "images": {"train": 4, "val": 1, "test": 0},
        "empty_images": {"train": 1, "val": 0, "test": 0},
        "augmented_copies": 1,
        "slivers": 2,  # of originals
        "masked_slivers": 1,
        "padded_frames": 1,  # the window from 51 reaches to 101
    }
