"""Plans: accounting for random frames, the quota of empty tiles, names, copies - all before a pixel is read."""

import pickle
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtld_tools.errors import DatasetError
from dtld_tools.pixels.augment import AugmentSpec
from dtld_tools.planning.plan import Cut, copies, plan_images
from dtld_tools.planning.sources import Source
from dtld_tools.types import SPLITS, Box, FrameRecord, SequenceId, Target, TileSpec


def source(number, lights=(), split="train", size_wh=(2048, 1024), city="Berlin"):
    sequence = SequenceId(city, f"{city}1", f"{split}-sequence")
    name = f"{'/'.join(sequence)}/{number:04d}.tiff"
    targets = tuple(Target(n % 2, box, n) for n, box in enumerate(lights))
    return Source(Path("/root", name), FrameRecord(name, sequence, split, *size_wh, targets, ()))


GRID = TileSpec()


def plan_of(sources, spec=GRID, empty_ratio=0.1, augment=None, seed=0, settings=None, classes=("a", "b"), **options):
    cut = Cut(spec, augment, seed, ".jpg")
    return plan_images(settings or {}, classes, lambda: sources, cut, empty_ratio=empty_ratio, **options)


def plans_of(*arguments, **options):
    plan = plan_of(*arguments, **options)
    cut = pickle.loads(pickle.dumps(plan.cut))  # it travels to the workers
    return [cut(source) for source in plan.items()]


def images_of(*arguments, **options):
    return [image for plan in plans_of(*arguments, **options) for image in plan.images]


LAMP = Box(100, 100, 120, 140)  # in the first tile of the grid alone


# --- accounting ------------------------------------------------------------------------------------------


@st.composite
def random_sources(draw):
    found = []
    for number in range(draw(st.integers(1, 4))):
        width, height = draw(st.integers(33, 900)), draw(st.integers(33, 600))
        lights = []
        for _ in range(draw(st.integers(0, 6))):
            x, y = draw(st.floats(0, width - 1)), draw(st.floats(0, height - 1))
            w, h = draw(st.floats(0.01, width - x)), draw(st.floats(0.01, height - y))
            lights.append(Box(x, y, x + w, y + h))
        found.append(source(number, lights, draw(st.sampled_from(SPLITS)), (width, height)))
    return found


specs = st.builds(
    TileSpec,
    st.sampled_from(["grid", "halves"]),
    st.integers(32, 640),
    st.floats(0, 0.6),
    st.floats(0, 1),
    st.floats(0, 10),
)


@given(random_sources(), specs, st.sampled_from([None, 0, 0.1, 1.0]))
def test_every_light_is_a_target_or_dropped_for_one_reason(sources, spec, empty_ratio):
    for before, plan in zip(sources, plans_of(sources, spec, empty_ratio), strict=True):
        given_ids = [light.light_id for light in before.frame.lights]
        kept = [light.light_id for light in plan.frame.lights]
        dropped = [light.light_id for light in plan.frame.dropped]
        assert sorted(kept + dropped) == given_ids  # each once, none twice, none lost
        shown = {light_id for image in plan.images for light_id in image.targets}
        assert shown == set(kept)
        assert {d.reason for d in plan.frame.dropped} <= {"min_visible", "min_side"}


def test_dropped_lights_keep_class_and_box():
    tiny = Box(100, 100, 101, 140)
    (plan,) = plans_of([source(0, [tiny])])
    assert plan.frame.lights == ()
    assert [(d.light_id, d.reason, d.class_id, d.box) for d in plan.frame.dropped] == [(0, "min_side", 0, tiny)]


def test_a_light_in_one_tile_is_kept_though_another_shows_a_sliver():
    (plan,) = plans_of([source(0, [Box(635, 100, 655, 140)])])
    assert [light.light_id for light in plan.frame.lights] == [0]
    by_name = {image.name: image for image in plan.images}
    sliver = by_name.get("Berlin_Berlin1_train-sequence_0000_x0_y0.jpg")
    assert by_name["Berlin_Berlin1_train-sequence_0000_x469_y0.jpg"].targets == (0,)
    assert sliver is None or (sliver.targets, sliver.slivers) == ((), (0,))


def test_too_small_and_never_visible_enough_are_told_apart():
    # Halves meet at x = 1024. 5 | 5 px: each half shows 0.5 of it, less than the 0.6 asked for.
    spec = TileSpec(layout="halves", min_visible=0.6, min_side_px=2)
    (plan,) = plans_of([source(0, [Box(1019, 10, 1029, 40), Box(10, 10, 12, 40)])], spec)
    assert {d.light_id: d.reason for d in plan.frame.dropped} == {0: "min_visible", 1: "min_side"}


@pytest.mark.parametrize("y", [34, 54])
def test_a_thin_light_that_one_tile_shows_well_enough_is_too_small_whichever_tile_that_is(y):
    # Tiles meet at y = 64: of 40 px in height, 30 | 10 or 10 | 30 are visible; its width of 1 px is never enough.
    spec = TileSpec(size_px=64, overlap=0)
    (plan,) = plans_of([source(0, [Box(10, y, 11, y + 40)], size_wh=(64, 128))], spec)
    assert [d.reason for d in plan.frame.dropped] == ["min_side"]


# --- empty tiles -----------------------------------------------------------------------------------------


def empties(images):
    return Counter(image.split for image in images if not image.targets)


def test_the_quota_holds_in_train_and_nowhere_else():
    sources = [source(n, [LAMP], split) for split in SPLITS for n in range(20)]
    images = images_of(sources, empty_ratio=0.5)
    assert Counter(i.split for i in images if i.targets) == {"train": 20, "val": 20, "test": 20}
    assert empties(images) == {"train": 10, "val": 140, "test": 140}


@pytest.mark.parametrize(("ratio", "expected"), [(0, 0), (0.1, 2), (1, 20), (100, 140), (None, 140)])
def test_quotas(ratio, expected):
    assert empties(images_of([source(n, [LAMP]) for n in range(20)], empty_ratio=ratio))["train"] == expected


def test_a_tile_with_only_a_sliver_is_an_empty_one():
    sources = [source(0, [Box(100, 100, 101, 140)])]  # too thin to be a target
    assert images_of(sources, empty_ratio=0) == []
    assert len(images_of(sources, empty_ratio=None)) == 8


def test_empty_tiles_do_not_depend_on_the_order_of_frames():
    sources = [source(n, [LAMP]) for n in range(20)]
    forwards, backwards = images_of(sources), images_of(sources[::-1])
    assert {image.name for image in forwards} == {image.name for image in backwards}


def test_another_seed_keeps_other_empty_tiles():
    sources = [source(n, [LAMP]) for n in range(20)]
    assert len({frozenset(i.name for i in images_of(sources, seed=seed)) for seed in range(5)}) > 1


def test_a_frame_without_images_still_has_its_line():
    (with_light, without) = plans_of([source(0, [LAMP]), source(1)], empty_ratio=0)
    assert (len(with_light.jobs), len(without.jobs)) == (1, 0)
    assert without.frame.frame.endswith("0001.tiff")


# --- copies ----------------------------------------------------------------------------------------------


def test_copies_stand_behind_their_original_in_the_asked_splits_only():
    augment = AugmentSpec(clahe=1, blur=0, copies=2, splits=("train", "val"))
    sources = [source(0, [LAMP], split) for split in SPLITS]
    images = [i for i in images_of(sources, empty_ratio=None, augment=augment) if i.targets]
    names = [(i.split, i.name.rpartition("y0")[2], i.augmentation is None) for i in images]
    original, first, second = (".jpg", True), ("_a1.jpg", False), ("_a2.jpg", False)
    assert names == [(s, *n) for s in ("train", "val") for n in (original, first, second)] + [("test", *original)]
    assert all(image.targets == (0,) for image in images)


def test_a_copy_that_nothing_would_change_is_left_out():
    (image,) = images_of([source(0, [LAMP])], empty_ratio=0)
    assert copies(image, AugmentSpec(clahe=0, blur=0, copies=5), 0) == []
    assert copies(image, AugmentSpec(clahe=1, copies=0), 0) == []
    assert copies(image, None, 0) == []
    some = [len(copies(image, AugmentSpec(clahe=0.5, blur=0, copies=1), seed)) for seed in range(40)]
    assert 0 < sum(some) < 40


def test_copies_depend_on_seed_name_and_number_alone():
    (image,) = images_of([source(0, [LAMP])], empty_ratio=0)
    spec = AugmentSpec(clahe=1, blur=1, copies=3)
    made = copies(image, spec, 0)
    assert made == copies(image, spec, 0)
    assert made[:2] == copies(image, AugmentSpec(clahe=1, blur=1, copies=2), 0)
    assert len({str(copy.augmentation) for copy in made}) == 3
    assert copies(image, spec, 1) != made


# --- names and identity ----------------------------------------------------------------------------------


def test_two_frames_of_one_name_are_refused():
    a = source(0, city="Bad_Urach")
    sequence = SequenceId("Bad", "Urach_Bad_Urach1", "train-sequence")
    b = Source(Path("x"), FrameRecord(f"{'/'.join(sequence)}/0000.tiff", sequence, "train", 64, 64, (), ()))
    with pytest.raises(DatasetError, match=r"named Bad_Urach_Bad_Urach1_train-sequence_0000.*rename one folder"):
        plans_of([a, b])


def test_names_are_unique():
    names = [i.name for i in images_of([source(n, [LAMP]) for n in range(9)], empty_ratio=None, augment=AugmentSpec())]
    assert len(names) == len(set(names)) > 72


def test_equal_plans_have_one_identity_and_any_change_another():
    sources = [source(n, [LAMP]) for n in range(3)]
    plan = plan_of(sources, settings={"x": 1, "y": 2})
    assert plan.frames == 3
    assert plan_of(sources, settings={"y": 2, "x": 1}).identity == plan.identity
    others = [
        plan_of(sources, settings={"x": 1, "y": 3}),
        plan_of(sources[:2], settings={"x": 1, "y": 2}),
        plan_of([*sources[:2], source(2, [Box(100, 100, 120, 141)])], settings={"x": 1, "y": 2}),
        plan_of([*sources[:2], source(2, [LAMP], "val")], settings={"x": 1, "y": 2}),
        plan_of(sources, settings={"x": 1, "y": 2}, classes=("a", "c")),
    ]
    assert len({plan.identity, *(other.identity for other in others)}) == 6


# --- at most so many images ------------------------------------------------------------------------------


def test_at_most_so_many_originals_of_a_split():
    sources = [source(n, [LAMP], split) for split in SPLITS for n in range(20)]
    most = {"train": 7, "val": 0, "test": 1000}
    images = images_of(sources, empty_ratio=0.5, max_images=most, augment=AugmentSpec(clahe=1))
    originals = Counter(image.split for image in images if image.augmentation is None)
    assert originals == {"train": 7, "test": 160}
    assert len(images) == 7 + 160 + 7  # a copy of each in train comes on top
    train = [image for image in images if image.split == "train"]
    assert 0 < len([image for image in train if image.targets]) < len(train)  # drawn from both kinds


def test_a_light_whose_images_were_left_out_is_dropped_for_that():
    plans = plans_of([source(n, [LAMP]) for n in range(20)], empty_ratio=0, max_images={"train": 5})
    assert sum(len(plan.frame.lights) for plan in plans) == 5
    dropped = [light for plan in plans for light in plan.frame.dropped]
    assert [(light.reason, light.box) for light in dropped] == [("max_images", LAMP)] * 15


# --- slivers painted over --------------------------------------------------------------------------------


def test_slivers_are_masked_when_asked():
    sources = [source(0, [Box(635, 100, 655, 140)])]
    spec = TileSpec(mask_partial=True)
    by_name = {image.name: image for image in images_of(sources, spec, empty_ratio=None)}
    assert by_name["Berlin_Berlin1_train-sequence_0000_x0_y0.jpg"].masked == (0,)
    assert by_name["Berlin_Berlin1_train-sequence_0000_x469_y0.jpg"].masked == ()
    assert not any(image.masked for image in images_of(sources, empty_ratio=None))
