"""Scenes: labels agree with pixels, and the camera's mosaic with the official decoding recipe."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from dtld_tools.synthetic.scene.layout import UNSEEN, Brief, build_scene
from dtld_tools.synthetic.scene.lights import LENSES, lamp_centres, signal_sprite
from dtld_tools.synthetic.scene.paint import paint
from dtld_tools.synthetic.scene.sensor import expose, mosaic, render
from dtld_tools.synthetic.scene.world import HEIGHT_PX, WIDTH_PX, Camera, Pole, Sighting, Signal, View, look
from dtld_tools.types import Box

STOP = ("green", "yellow", "red")
CAMERA = Camera(x_m=0, y_m=1.5, z_m=0, centre_px=1024, horizon_px=580)


def make_scene(seed=1, **changes):
    brief = Brief("clear", STOP, "circle", "tram", "none", last_m=10.0, steps=3)
    return build_scene(replace(brief, **changes), np.random.default_rng(seed))


def make_signal(**changes):
    signal = Signal(
        x=0, y=3, z=20, width=0.3, height=0.86, direction="front", orientation="vertical", aspects=3,
        pictogram="circle", relevant=True, phases=STOP, framed=False, colour=(30, 30, 30), track=0,
    )  # fmt: skip
    return replace(signal, **changes)


def sight(signal, state="red"):
    return Sighting(signal, signal.box(CAMERA), state, 1.0)


def decode(raw):
    return (cv2.cvtColor(raw, cv2.COLOR_BAYER_GB2BGR) >> 4).astype(np.uint8)


def test_projection_by_hand():
    # 2300 px focal length, 20 m away: a metre is 115 px
    (pixel,) = CAMERA.project(np.array([[1.0, 2.5, 20.0]]))
    assert pixel.tolist() == [1024 + 115, 580 - 115]


def test_box_is_whole_pixels_and_grows_on_approach():
    signal = make_signal(width=0.4, height=1.0)
    assert signal.box(CAMERA) == Box.from_xywh(1001, 350, 46, 115)
    nearer = signal.box(replace(CAMERA, z_m=10))
    assert (nearer.width, nearer.height) == (92, 230)


@pytest.mark.parametrize(("weather", "seed"), [("clear", 0), ("overcast", 1), ("dusk", 2)])
def test_box_is_exactly_what_the_light_paints(weather, seed):
    """Take each unhidden light away: the pixels that change lie in its box and reach its four edges."""
    view = look(make_scene(seed, weather=weather), 1)
    with_all = paint(view).image
    unhidden = [s for s in view.sightings if s.visible == 1 and s.labelled]
    assert len(unhidden) >= 3
    for sighting in unhidden:
        others = tuple(thing for thing in view.things if thing is not sighting)
        changed = (with_all != paint(replace(view, things=others)).image).any(axis=2)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        painted = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        box = sighting.box
        inside = (max(box.x1, 0), max(box.y1, 0), min(box.x2, WIDTH_PX), min(box.y2, HEIGHT_PX))
        assert painted == pytest.approx(inside, abs=1)
        assert changed.sum() > 0.5 * (inside[2] - inside[0]) * (inside[3] - inside[1])


def test_lights_stand_apart():
    for seed in range(12):
        for step in (0, 2):
            places = [
                s.box for s in look(make_scene(seed, extra="pedestrian_bicycle"), step).sightings if s.visible == 1
            ]
            assert len(set(places)) == len(places)
            for i, a in enumerate(places):
                for b in places[:i]:
                    wide = min(a.x2, b.x2) - max(a.x1, b.x1)
                    high = min(a.y2, b.y2) - max(a.y1, b.y1)
                    # one may stand behind the other's rim, but not in its place
                    assert max(wide, 0) * max(high, 0) <= 0.3 * min(a.area, b.area)


def test_glow_stays_near_the_lamp():
    view = look(make_scene(), 1)
    lit = max((s for s in view.sightings if lamp_centres(s) and s.visible == 1), key=lambda s: s.box.area)
    others = replace(view, things=tuple(thing for thing in view.things if thing is not lit))
    rng = np.random.default_rng
    change = np.abs(render(view, rng(0)) - render(others, rng(0))).max(axis=2)
    x1, y1, x2, y2 = (int(side) for side in lit.box)
    reach = round(2 * lit.box.width)
    change[max(0, y1 - reach) : y2 + reach, max(0, x1 - reach) : x2 + reach] = 0
    assert change.max() < 0.02


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_visible_share_of_a_light_behind_a_post(share):
    light = make_signal(phases=("red",) * 3)
    half = share * light.width / 2 * 10 / 20  # halfway to the light, a thing is half as wide on the sight line
    post = Pole(x=0, z=10, height=9, radius=half, arm_x=0, colour=(90, 90, 90))
    scene = replace(make_scene(), things=(post,), signals=(light,), cameras=(CAMERA,), change_step=1)
    (sighting,) = look(scene, 0).sightings
    assert sighting.visible == pytest.approx(1 - share, abs=0.1)
    assert sighting.occluded


def test_a_post_behind_the_light_hides_nothing():
    post = Pole(x=0, z=20.2, height=9, radius=0.1, arm_x=0, colour=(90, 90, 90))
    scene = replace(make_scene(), things=(post,), signals=(make_signal(),), cameras=(CAMERA,), change_step=1)
    assert look(scene, 0).sightings[0].visible == 1


def test_occluded_lights_are_painted_over():
    """What the label calls hidden is hidden in the pixels: fewer of them belong to the light."""
    seen = 0
    for occluder in ("tree", "van", "post"):
        view = look(make_scene(3, occluder=occluder, last_m=16.0), 1)
        for sighting in view.sightings:
            if not (sighting.labelled and sighting.occluded):
                continue
            others = tuple(thing for thing in view.things if thing is not sighting)
            changed = (paint(view).image != paint(replace(view, things=others)).image).any(axis=2)
            x1, y1, x2, y2 = (max(0, int(side)) for side in sighting.box)
            assert changed[y1:y2, x1:x2].mean() == pytest.approx(sighting.visible, abs=0.2)
            seen += 1
    assert seen >= 3


@pytest.mark.parametrize("x_m", [-8.95, 8.95])
def test_light_over_the_frames_edge_keeps_its_whole_box(x_m):
    sighting = sight(make_signal(x=x_m, width=0.4))
    assert sighting.labelled
    assert sighting.box.width == 46
    assert sighting.box.x1 < 0 or sighting.box.x2 > WIDTH_PX


def test_light_outside_the_frame_or_hidden_is_not_labelled():
    assert not sight(make_signal(x=12)).labelled
    assert not replace(sight(make_signal()), visible=0.1).labelled


def test_phases_follow_each_other():
    scene = replace(make_scene(), signals=(make_signal(z=60),), change_step=1, things=())
    assert [look(scene, step).sightings[0].state for step in range(3)] == list(STOP)


def test_relevant_lights_stand_on_the_ego_carriageway():
    for seed in range(20):
        scene = make_scene(seed)
        for signal in scene.signals:
            if signal.relevant:
                assert signal.direction == "front"
                assert 0 <= signal.x <= scene.road.kerb + 1.1


def test_sprite_fills_its_box():
    for signal in (make_signal(), make_signal(direction="left", phases=UNSEEN), make_signal(direction="back")):
        pixels, alpha = signal_sprite(sight(signal), lambda colour: colour)
        box = signal.box(CAMERA)
        assert pixels.shape == (box.height, box.width, 3)
        assert alpha.shape == (box.height, box.width, 1)
        for edge in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]):
            assert edge.max() > 0.9


@pytest.mark.parametrize(("state", "channels"), [("red", [0]), ("yellow", [0, 1]), ("green", [1, 2])])
def test_lit_lens_has_its_colour(state, channels):
    sighting = sight(make_signal(z=8), state)
    pixels, _ = signal_sprite(sighting, lambda colour: colour)
    x, y, *_ = lamp_centres(sighting)[0]
    lamp = pixels[int(y - sighting.box.y1), int(x - sighting.box.x1)].astype(int)
    others = [channel for channel in range(3) if channel not in channels]
    assert lamp[channels].min() > lamp[others].max() + 20


def test_states_light_their_lenses():
    lit = {state: [c for *_, c in lamp_centres(sight(make_signal(), state))] for state in (*STOP, "red_yellow", "off")}
    assert lit == {"red": ["red"], "yellow": ["yellow"], "green": ["green"], "red_yellow": ["red", "yellow"], "off": []}
    assert lamp_centres(sight(make_signal(direction="back"), "red")) == []
    (_, y_red, *_), (_, y_yellow, *_) = lamp_centres(sight(make_signal(), "red_yellow"))
    assert y_red < y_yellow


def test_pictograms_look_different():
    pictures = []
    names = ("circle", "arrow_left", "arrow_right", "arrow_straight", "arrow_straight_left", "pedestrian", "bicycle",
             "pedestrian_bicycle", "tram")  # fmt: skip
    for name in names:
        signal = make_signal(z=10, pictogram=name, aspects=2 if name.startswith("pedestrian") else 3)
        assert signal.aspects in LENSES
        pictures.append(signal_sprite(sight(signal), lambda colour: colour)[0].astype(int))
    for i, first in enumerate(pictures):
        for second in pictures[:i]:
            assert np.abs(first - second).max() > 60


def test_colours_survive_mosaic_and_official_recipe():
    """Four flat quadrants of known colours come back as BGR; a swapped filter would swap channels."""
    colours = {(0, 0): (200, 40, 20), (0, 1): (30, 180, 60), (1, 0): (20, 50, 220), (1, 1): (128, 128, 128)}
    rgb = np.zeros((64, 64, 3), np.uint16)
    for (row, column), colour in colours.items():
        rgb[32 * row : 32 * row + 32, 32 * column : 32 * column + 32] = np.array(colour) * 16
    bgr = decode(mosaic(rgb))
    for (row, column), (red, green, blue) in colours.items():
        assert bgr[32 * row + 16, 32 * column + 16].tolist() == [blue, green, red]


def test_exposed_frame_has_12_bits_noise_and_the_scenes_colours():
    linear = np.full((64, 64, 3), (0.5, 0.1, 0.02), np.float32)
    raw = expose(linear, np.random.default_rng(0))
    assert raw.dtype == np.uint16
    assert 0 < raw.max() <= 4095
    blue, green, red = decode(raw)[8:-8, 8:-8].reshape(-1, 3).mean(axis=0)
    assert red > green > blue > 0
    assert 0 < decode(raw)[8:-8, 8:-8, 1].std() < 20


def test_overexposed_and_black_stay_in_range():
    linear = np.zeros((8, 8, 3), np.float32)
    linear[:4] = 9.0
    raw = expose(linear, np.random.default_rng(0))
    assert raw[:4].min() == 4095
    assert raw[4:].max() < 600


def test_painting_and_rendering_are_deterministic():
    view = look(make_scene(), 0)
    again = look(make_scene(), 0)
    assert np.array_equal(paint(view).image, paint(again).image)
    assert np.array_equal(render(view, np.random.default_rng(5)), render(again, np.random.default_rng(5)))


def test_an_empty_view_is_sky_above_ground():
    scene = replace(make_scene(), things=(), signals=(), buildings=())
    view = View(scene.weather, CAMERA, scene.road, (), ())
    image = paint(view).image.astype(float)
    top, bottom = image[:200].mean(axis=(0, 1)), image[-200:].mean(axis=(0, 1))
    assert top[2] > top[0]  # blue
    assert np.ptp(bottom) < 25  # grey
