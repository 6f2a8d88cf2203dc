"""Windows and the keep rule: offsets by hand, coverage and accounting as properties."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtld_tools.errors import UsageError
from dtld_tools.planning.tile import image_size, targets_in, tile_frame, windows
from dtld_tools.types import Box, Target, TileSpec, Window


def lamp(x, y, w, h, light_id=1, class_id=0):
    return Target(class_id, Box.from_xywh(x, y, w, h), light_id)


# --- windows ---------------------------------------------------------------------------------------------


def test_grid_of_a_dtld_frame():
    found = windows(2048, 1024, TileSpec())
    assert [(w.x, w.y) for w in found] == [(x, y) for y in (0, 384) for x in (0, 469, 939, 1408)]
    assert {(w.w, w.h) for w in found} == {(640, 640)}


def test_halves_of_a_dtld_frame():
    assert windows(2048, 1024, TileSpec(layout="halves")) == [Window(0, 0, 1024, 1024), Window(1024, 0, 1024, 1024)]


def test_halves_of_other_shapes_are_evenly_spaced_squares():
    assert [w.x for w in windows(2500, 1000, TileSpec(layout="halves"))] == [0, 750, 1500]
    assert windows(1000, 1000, TileSpec(layout="halves")) == [Window(0, 0, 1000, 1000)]
    assert [w.y for w in windows(1000, 1500, TileSpec(layout="halves"))] == [0, 500]


def test_frame_layout_is_the_frame():
    assert windows(1920, 1080, TileSpec(layout="frame")) == [Window(0, 0, 1920, 1080)]


def test_a_small_frame_gets_one_window_that_reaches_beyond_it():
    assert windows(416, 300, TileSpec()) == [Window(0, 0, 640, 640)]
    assert [(w.x, w.y) for w in windows(1000, 300, TileSpec())] == [(0, 0), (360, 0)]


def test_a_frame_of_exactly_one_tile():
    assert windows(640, 640, TileSpec()) == [Window(0, 0, 640, 640)]
    assert [w.x for w in windows(641, 640, TileSpec())] == [0, 1]


@given(
    st.integers(1, 3000),
    st.integers(1, 2000),
    st.integers(32, 700),
    st.floats(0, 0.9),
    st.sampled_from(["grid", "halves"]),
)
def test_windows_cover_the_frame_and_overlap(width, height, size, overlap, layout):
    spec = TileSpec(layout=layout, size_px=size, overlap=overlap)
    found = windows(width, height, spec)
    side, asked = (size, overlap) if layout == "grid" else (min(width, height), 0)
    assert {(w.w, w.h) for w in found} == {(side, side)}
    assert len(set(found)) == len(found)
    for length, starts in ((width, sorted({w.x for w in found})), (height, sorted({w.y for w in found}))):
        assert starts[0] == 0
        if length <= side:
            assert starts == [0]
            continue
        assert starts[-1] + side == length  # flush: no window leaves the frame, none stops short
        for left, right in pairwise(starts):
            assert left + side - right >= asked * side - 1e-6  # also after rounding to whole pixels
    assert len(found) == len({w.x for w in found}) * len({w.y for w in found})


# --- targets ---------------------------------------------------------------------------------------------


def tiles_by_offset(tiles):
    return {(t.window.x, t.window.y): t for t in tiles}


def test_a_light_in_the_overlap_is_a_target_of_both_tiles():
    tiles = tiles_by_offset(tile_frame(2048, 1024, [lamp(500, 100, 20, 40)], TileSpec()))
    assert tiles[0, 0].targets == (lamp(500, 100, 20, 40),)
    assert tiles[469, 0].targets == (lamp(31, 100, 20, 40),)
    assert all(not t.targets and not t.slivers for key, t in tiles.items() if key not in {(0, 0), (469, 0)})


def test_a_light_over_a_tile_edge_is_clipped_there():
    # Tile 0 ends at x = 640; 12 of 20 px are visible, which is 0.6. The neighbour at 469 shows it whole.
    tiles = tiles_by_offset(tile_frame(2048, 1024, [lamp(628, 100, 20, 40)], TileSpec()))
    assert tiles[0, 0].targets == (lamp(628, 100, 12, 40),)
    assert tiles[469, 0].targets == (lamp(159, 100, 20, 40),)


@pytest.mark.parametrize(("visible_px", "is_target"), [(7, False), (8, True), (9, True)])
def test_min_visible_is_a_share_of_the_area_in_the_frame(visible_px, is_target):
    # 20 px wide, so 8 px is exactly the 0.4 that is asked for.
    tiles = tiles_by_offset(tile_frame(2048, 1024, [lamp(640 - visible_px, 100, 20, 40)], TileSpec()))
    assert bool(tiles[0, 0].targets) == is_target
    assert tiles[0, 0].slivers == ({} if is_target else {1: "min_visible"})


@pytest.mark.parametrize(("side_px", "is_target"), [(1.9, False), (2, True), (2.1, True)])
def test_min_side_is_the_shorter_side_in_the_image(side_px, is_target):
    for lights in ([lamp(100, 100, side_px, 40)], [lamp(100, 100, 40, side_px)]):
        tiles = tiles_by_offset(tile_frame(2048, 1024, lights, TileSpec()))
        assert bool(tiles[0, 0].targets) == is_target
        assert tiles[0, 0].slivers == ({} if is_target else {1: "min_side"})


def test_min_side_counts_output_pixels_in_halves():
    # 3 px at scale 0.625 are 1.875 px: too small, though 3 px are enough in the frame; 4 px become 2.5.
    small, large = tile_frame(2048, 1024, [lamp(10, 10, 3, 40), lamp(1500, 10, 4, 40, 2)], TileSpec(layout="halves"))
    assert (small.targets, small.slivers, small.scale) == ((), {1: "min_side"}, 0.625)
    assert large.targets == (Target(0, Box((1500 - 1024) * 0.625, 6.25, (1504 - 1024) * 0.625, 31.25), 2),)


def test_halves_divide_a_light_on_the_middle_line():
    left, right = tile_frame(2048, 1024, [lamp(1018, 100, 10, 40)], TileSpec(layout="halves"))  # 6 | 4 of 10 px
    assert left.targets[0].box == Box(1018 * 0.625, 62.5, 640, 87.5)
    assert right.targets[0].box == Box(0, 62.5, 2.5, 87.5)


def test_no_lights_still_gives_every_tile():
    assert len(tile_frame(2048, 1024, [], TileSpec())) == 8


def test_image_size_of_a_scaled_window():
    assert image_size(Window(0, 0, 1024, 1024), 0.625) == (640, 640)
    assert image_size(Window(0, 0, 1920, 1080), 1.0) == (1920, 1080)


@st.composite
def frames(draw):
    width, height = draw(st.integers(40, 1500)), draw(st.integers(40, 900))
    count = draw(st.integers(0, 8))
    lights = []
    for index in range(count):
        x, y = draw(st.floats(0, width - 1)), draw(st.floats(0, height - 1))
        w, h = draw(st.floats(0.01, width - x)), draw(st.floats(0.01, height - y))
        lights.append(lamp(x, y, w, h, index, index % 2))
    return width, height, lights


specs = st.builds(
    TileSpec,
    st.sampled_from(["grid", "halves", "frame"]),
    st.integers(32, 640),
    st.floats(0, 0.8),
    st.floats(0, 1),
    st.floats(0, 20),
)


@given(frames(), specs)
def test_every_light_is_placed_in_every_window_that_shows_it(frame, spec):
    width, height, lights = frame
    tiles = tile_frame(width, height, lights, spec)
    for tile in tiles:
        shown = {
            light.light_id
            for light in lights
            if min(light.box.x2, tile.window.x + tile.window.w) > max(light.box.x1, tile.window.x)
            and min(light.box.y2, tile.window.y + tile.window.h) > max(light.box.y1, tile.window.y)
        }
        targets = {target.light_id for target in tile.targets}
        assert targets | set(tile.slivers) == shown
        assert not targets & set(tile.slivers)
        size_w, size_h = image_size(tile.window, tile.scale)
        for target in tile.targets:
            x1, y1, x2, y2 = target.box
            assert -1e-6 <= x1 < x2 <= size_w + 1e-6
            assert -1e-6 <= y1 < y2 <= size_h + 1e-6
            assert min(x2 - x1, y2 - y1) >= spec.min_side_px - 1e-6
            assert target.class_id == lights[target.light_id].class_id
    seen = {t.light_id for tile in tiles for t in tile.targets} | {i for tile in tiles for i in tile.slivers}
    assert seen == {light.light_id for light in lights}  # windows leave no light unseen


@given(frames())
def test_targets_in_a_whole_frame_are_the_lights(frame):
    width, height, lights = frame
    assert targets_in(Window(0, 0, width + 1, height + 1), 1.0, lights) == lights


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"size_px": 16}, "--tile-size"),
        ({"size_px": 10000}, "--tile-size"),
        ({"overlap": -0.1}, "--overlap"),
        ({"overlap": 1.0}, "--overlap"),
        ({"min_visible": 1.1}, "--min-visible"),
        ({"min_visible": -0.1}, "--min-visible"),
        ({"min_side_px": -1}, "--min-side"),
        ({"min_side_px": 640}, "--min-side"),
        ({"overlap": float("nan")}, "--overlap"),
        ({"layout": "quarters"}, "--layout"),
    ],
)
def test_a_spec_is_checked_when_made(changes, option):
    with pytest.raises(UsageError, match=option):
        TileSpec(**changes)
