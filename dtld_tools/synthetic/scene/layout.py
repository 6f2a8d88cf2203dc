"""Chance decides what stands at an intersection.

In: a `Brief` (what the sequence has to show) and a numpy Generator. Out: a `Scene`. No pixels, no files.
Invariant: a light is relevant only if it stands on the ego carriageway, between the middle of the road and the
pole at its right kerb, and faces the ego car: that is what a detector can learn relevance from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeVar

import numpy as np

from dtld_tools.synthetic.scene.world import (
    RGB,
    STEP_S,
    WIDTH_PX,
    Building,
    Camera,
    Car,
    Direction,
    Orientation,
    Pole,
    Road,
    Scene,
    Sign,
    Signal,
    Tree,
)

T = TypeVar("T")
Weather = Literal["clear", "overcast", "dusk"]
Occluder = Literal["none", "tree", "van", "post"]
Phases = tuple[str, str, str]

DARK: Phases = ("off", "off", "off")
UNSEEN: Phases = ("unknown", "unknown", "unknown")  # a light that is turned away, or one that shows no colour
MAST_HEIGHT = 5.3
HOUSINGS: tuple[RGB, ...] = ((34, 36, 38), (28, 30, 34), (38, 62, 48), (44, 46, 44), (30, 48, 42))
PAINTS: tuple[RGB, ...] = (
    (200, 202, 205), (150, 152, 156), (40, 42, 46), (24, 40, 78), (128, 20, 24), (90, 96, 104), (222, 222, 218),
    (60, 74, 66),
)  # fmt: skip
WALLS: tuple[RGB, ...] = (
    (196, 184, 160), (172, 150, 124), (208, 204, 194), (150, 96, 78), (184, 170, 150), (132, 128, 124),
    (214, 196, 148), (164, 172, 176), (120, 74, 62), (200, 176, 160),
)  # fmt: skip
GREENS: tuple[RGB, ...] = ((70, 96, 44), (84, 104, 50), (58, 86, 46), (104, 108, 48))


@dataclass(frozen=True, slots=True)
class Brief:
    """What one sequence has to show; everything else is left to chance."""

    weather: Weather
    phases: Phases
    pictogram: str  # of the ego lane's lights
    extra: str  # tram, bicycle, pedestrian_bicycle, horizontal, four_aspects or green_arrow
    occluder: Occluder
    last_m: float  # from the camera to the stop line in the last frame
    steps: int


def build_scene(brief: Brief, rng: np.random.Generator) -> Scene:
    """An intersection and an approach to it that show what the brief asks for."""
    road = _road(brief, rng)
    ego_lane = int(rng.integers(road.lanes))
    cameras = _cameras(brief, _lane_x(road, ego_lane), rng)
    wanted = [
        *_ego_signals(brief, road, rng),
        *_extra_signals(brief, road, rng),
        *_other_signals(brief, road, rng),
    ]
    signals = _apart(wanted)
    things = [
        *_poles(signals, road, rng),
        *_cars(brief, road, ego_lane, rng),
        *_trees(road, cameras[0].z_m, rng),
        *_signs(road, cameras[0].z_m, rng),
        *_occluder(brief, road, signals[0], cameras[brief.steps // 2], rng),
    ]
    return Scene(
        weather=brief.weather,
        road=road,
        buildings=tuple(_buildings(road, cameras[0].z_m, rng)),
        things=tuple(things),
        signals=tuple(replace(signal, track=i) for i, signal in enumerate(signals)),
        cameras=cameras,
        change_step=int(rng.integers(1, max(2, brief.steps - 1))),
    )


def _pick(values: Sequence[T], rng: np.random.Generator) -> T:
    return values[int(rng.integers(len(values)))]


def _road(brief: Brief, rng: np.random.Generator) -> Road:
    lanes = int(rng.choice([1, 2, 2, 3]))
    median = float(rng.choice([0.0, 1.8, 2.6]))
    lane_width = rng.uniform(3.0, 3.4)
    kerb = median / 2 + lanes * lane_width + 0.4
    return Road(
        lanes=lanes,
        lane_width=lane_width,
        median=median,
        kerb=kerb,
        wall=kerb + rng.uniform(4.5, 7.5),
        cross=rng.uniform(13, 22),
        has_rails=brief.extra == "tram",
        has_cycle_lane=bool(rng.random() < 0.5),
        grain_seed=int(rng.integers(2**31)),
    )


def _lane_x(road: Road, lane: int) -> float:
    """The middle of an ego lane; lane 0 is the leftmost."""
    return road.median / 2 + (lane + 0.5) * road.lane_width


def _cameras(brief: Brief, lane_x: float, rng: np.random.Generator) -> tuple[Camera, ...]:
    speed = rng.uniform(5, 11)
    yaw_px, pitch_px = rng.normal(0, 40), rng.normal(0, 14)
    shake = rng.normal(0, [4, 2], (brief.steps, 2))
    return tuple(
        Camera(
            x_m=lane_x + rng.normal(0, 0.05),
            y_m=1.45,
            z_m=-brief.last_m - (brief.steps - 1 - step) * speed * STEP_S,
            centre_px=WIDTH_PX / 2 + yaw_px + shake[step, 0],
            horizon_px=580 + pitch_px + shake[step, 1],
        )
        for step in range(brief.steps)
    )


def _signal(
    rng: np.random.Generator,
    x: float,
    y: float,
    z: float,
    *,
    phases: Phases = UNSEEN,
    pictogram: str = "unknown",
    direction: Direction = "front",
    orientation: Orientation = "vertical",
    aspects: int = 3,
    module: float = 0.28,
    relevant: bool = False,
    framed: bool = False,
) -> Signal:
    """A light whose housing is ``aspects`` modules long; from the side it is its depth with the visors wide."""
    margin = 0.06 if framed else 0.01
    length, breadth = aspects * module + 2 * margin, module * 1.06 + 2 * margin
    upright = orientation == "vertical"
    return Signal(
        x=x, y=y, z=z,
        width=breadth if upright else length,
        height=length if upright else breadth,
        direction=direction, orientation=orientation, aspects=aspects, pictogram=pictogram,
        relevant=relevant, phases=phases, framed=framed, colour=_pick(HOUSINGS, rng), track=0,
    )  # fmt: skip


def _ego_signals(brief: Brief, road: Road, rng: np.random.Generator) -> list[Signal]:
    """The lights for the ego car: the first is the one on the pole at the right kerb."""
    aspects = 4 if brief.extra == "four_aspects" else 3
    signal = partial(
        _signal,
        rng,
        phases=brief.phases,
        pictogram=brief.pictogram,
        aspects=aspects,
        module=rng.uniform(0.26, 0.34),
        relevant=True,
    )
    signals = [signal(road.kerb + 0.7, 2.95, 0.3)]
    over_lanes = [_lane_x(road, lane) for lane in range(max(0, road.lanes - 2), road.lanes)]
    if brief.extra == "horizontal":  # beyond the crossing: they are wide, and would fill the picture
        far = road.cross + 1.5
        signals += [signal(x, MAST_HEIGHT, far, orientation="horizontal", framed=True) for x in over_lanes]
    elif rng.random() < 0.65:
        signals += [signal(x, MAST_HEIGHT, 0.5, framed=True) for x in over_lanes]
    if road.median:
        signals.append(signal(0.0, 2.9, 0.4))
    if rng.random() < 0.7:
        signals.append(signal(road.kerb + 0.7, 3.0, road.cross + 0.5))
    return signals


def _extra_signals(brief: Brief, road: Road, rng: np.random.Generator) -> list[Signal]:
    """The rarer kinds, beside or below the ordinary ones."""
    x, walk = road.kerb + 0.7, _walk(brief.phases)
    match brief.extra:
        case "tram":
            tram = partial(_signal, rng, pictogram="tram", aspects=int(rng.integers(2, 4)), module=0.26)
            places = ((-0.5 if not road.median else -0.45, 0.6), (road.kerb + 1.5, road.cross + 1))
            return [tram(x, 3.1, z) for x, z in places]
        case "bicycle":
            return [_signal(rng, x + 0.02, 1.95, 0.2, phases=brief.phases, pictogram="bicycle", module=0.18)]
        case "pedestrian_bicycle":
            both = partial(_signal, rng, phases=walk, pictogram="pedestrian_bicycle", aspects=2, module=0.24)
            return [both(x + 0.9, 2.4, z) for z in (0.8, road.cross - 1)]
        case "green_arrow":
            arrow: Phases = ("off", "green", "green") if rng.random() < 0.5 else ("green", "green", "off")
            phases = DARK if brief.phases == DARK else arrow
            return [_signal(rng, x + 0.36, 2.7, 0.3, phases=phases, pictogram="arrow_right", aspects=1, relevant=True)]
    return []


def _apart(signals: list[Signal]) -> list[Signal]:
    """The lights that do not reach into an earlier one's place."""
    kept: list[Signal] = []
    for new in signals:
        if not any(
            abs(new.x - old.x) < (new.width + old.width) / 2
            and abs(new.y - old.y) < (new.height + old.height) / 2
            and abs(new.z - old.z) < 0.6
            for old in kept
        ):
            kept.append(new)
    return kept


def _walk(phases: Phases) -> Phases:
    """Pedestrians beside the ego lane walk while it has green."""
    if phases == DARK:
        return DARK
    first, middle, last = ("green" if state == "green" else "red" for state in phases)
    return first, middle, last


def _other_signals(brief: Brief, road: Road, rng: np.random.Generator) -> list[Signal]:
    """Lights that are not for the ego car: for people on foot, other roads, other lanes and oncoming traffic."""
    outside = road.kerb + rng.uniform(1.3, 1.9)
    foot = partial(_signal, rng, aspects=2, module=rng.uniform(0.21, 0.26))
    ahead = partial(foot, phases=_walk(brief.phases), pictogram="pedestrian")
    other: Phases = (
        DARK if brief.phases == DARK else _pick((("red",) * 3, ("green",) * 3, ("green", "yellow", "red")), rng)
    )
    far_left, far_right = -rng.uniform(outside + 1, road.wall - 0.5), rng.uniform(outside + 1, road.wall - 0.4)
    big = partial(_signal, rng, module=rng.uniform(0.26, 0.32))
    candidates = (
        (0.55, ahead(outside, 2.4, road.cross - 1)),
        (0.45, ahead(-outside, 2.4, road.cross - 1.2)),
        (0.25, ahead(-outside, 2.4, 1.0)),
        (0.35, foot(road.kerb + 1.1, 2.4, -1.2, direction="left")),
        (0.35, foot(-road.kerb - 1.1, 2.4, -1.0, direction="right")),
        (0.45, big(outside + 0.5, 2.9, road.cross * 0.7, direction="right")),
        (0.45, big(-outside - 0.6, 2.9, 3.0, direction="left")),
        (0.55, big(-road.kerb - 0.7, 2.95, road.cross, direction="back")),
        (0.35, big(-road.lane_width * 0.7, MAST_HEIGHT, road.cross, direction="back", framed=True)),
        (0.45, big(far_left, 2.9, rng.uniform(2, 6), phases=other, pictogram="circle")),
        (0.45, big(far_right, 2.9, rng.uniform(5, 9), phases=other, pictogram="circle")),
    )
    return [signal for chance, signal in candidates if rng.random() < chance]


def _poles(signals: list[Signal], road: Road, rng: np.random.Generator) -> list[Pole]:
    """Something for every light to hang on, just behind it."""
    grey: RGB = _pick(((110, 114, 116), (84, 90, 88), (66, 84, 72), (136, 138, 138)), rng)
    poles = []
    for signal in signals:
        z, top = signal.z + 0.14, signal.y + signal.height / 2 + 0.12
        if signal.y < MAST_HEIGHT - 0.5:
            poles.append(Pole(signal.x, z, top, 0.055, signal.x, grey))
        else:
            side = np.copysign(road.kerb + 0.7, signal.x)
            poles.append(Pole(side, z, MAST_HEIGHT + 0.1, 0.11, signal.x - np.copysign(0.5, signal.x), grey))
    for z in np.arange(-40, 90, 26) + rng.uniform(0, 20):
        x = rng.choice([-1, 1]) * (road.kerb + 0.9)
        poles.append(Pole(x, z, 8.0, 0.08, x - np.copysign(1.8, x), (120, 122, 122)))
    return poles


def _car(
    rng: np.random.Generator, x: float, z: float, speed: float = 0.0, oncoming: bool = False, braking: bool = False
) -> Car:
    size = (1.95, 2.05, 5.0) if rng.random() < 0.15 else (1.8, 1.47, 4.4)
    width, height, length = (side * rng.uniform(0.95, 1.06) for side in size)
    return Car(x, z, width, height, length, speed, oncoming, braking, _pick(PAINTS, rng))


def _cars(brief: Brief, road: Road, ego_lane: int, rng: np.random.Generator) -> list[Car]:
    """Cars that wait at the line, drive beyond it, come towards the ego car and stand in the side street."""
    flowing = brief.phases[2] in ("green", "off")
    cars = []
    for lane in range(road.lanes):
        x = _lane_x(road, lane) + rng.normal(0, 0.15)
        room = brief.last_m > 16 or lane != ego_lane
        if room and not flowing and rng.random() < 0.7:
            cars.append(_car(rng, x, -6.0, braking=True))
        cars.append(_car(rng, x, road.cross + rng.uniform(6, 45), speed=rng.uniform(4, 9)))
        for ahead in (0, rng.uniform(8, 14)):
            if rng.random() < 0.6:
                speed = -rng.uniform(5, 9) if flowing else 0.0
                cars.append(_car(rng, -x, road.cross + 2.5 + ahead, speed=speed, oncoming=True))
    for side in (-1, 1):
        for z in np.arange(road.cross + 12, 110, 6.5):
            if rng.random() < 0.55:
                cars.append(_car(rng, side * (road.kerb - 0.9), z, oncoming=side < 0))
    return cars


def _tree(rng: np.random.Generator, x: float, z: float, bottom: float, half_w: float, half_h: float) -> Tree:
    """A crown of several lumps of leaves, each lump bright on top and dark below."""
    lumps, count = 9, 46
    angle = rng.uniform(0, 2 * np.pi, (lumps, 1))
    reach = np.sqrt(rng.uniform(0, 0.5, (lumps, 1)))
    lump_x, lump_y = np.cos(angle) * reach, np.sin(angle) * reach  # [L, 1], in shares of the crown
    turn, spread = rng.uniform(0, 2 * np.pi, (lumps, count)), np.sqrt(rng.uniform(0, 1, (lumps, count)))
    dx, dy = 0.42 * np.cos(turn) * spread, 0.42 * np.sin(turn) * spread  # [L, N]
    shade = np.clip(0.42 + 0.3 * (lump_y + dy) + 0.55 * dy - 0.2 * dx + rng.normal(0, 0.1, dx.shape), 0, 1)
    radius = rng.uniform(0.06, 0.14, dx.shape) * min(half_w, half_h)
    leaves = np.stack([x + (lump_x + dx) * half_w, bottom + half_h * (1 + lump_y + dy), radius, shade], axis=2)
    leaves = leaves[np.argsort(lump_y[:, 0])].reshape(-1, 4)
    return Tree(x, z, bottom + half_h, rng.uniform(0.1, 0.2), leaves, _pick(GREENS, rng))


def _trees(road: Road, start_z: float, rng: np.random.Generator) -> list[Tree]:
    trees = []
    for side in (-1, 1):
        for z in np.arange(start_z + 12, 120, rng.uniform(13, 24)):
            if not -5 < z < road.cross + 3 and rng.random() < 0.75:
                x = side * rng.uniform(road.kerb + 2.2, road.wall - 0.8)
                half_w = rng.uniform(1.3, 2.2)
                trees.append(
                    _tree(rng, x, z + rng.uniform(-2, 2), rng.uniform(2.6, 3.6), half_w, rng.uniform(1.6, 2.6))
                )
    return trees


def _signs(road: Road, start_z: float, rng: np.random.Generator) -> list[Sign | Pole]:
    """Round red, yellow and blue signs at the kerbs: what a lazy detector takes for lights."""
    things: list[Sign | Pole] = []
    shapes = ("priority", "limit", "no_entry", "blue", "give_way")
    for z in (start_z + 18, -9.0, road.cross + 2.5, road.cross + 20):
        x = rng.choice([-1, 1, 1]) * (road.kerb + rng.uniform(1.0, 2.0))
        things += [Pole(x, z + 0.1, 2.7, 0.035, x, (140, 142, 144)), Sign(x, 2.4, z, 0.62, _pick(shapes, rng))]
    return things


def _buildings(road: Road, start_z: float, rng: np.random.Generator) -> list[Building]:
    """Rows along the street on both sides, and the rows of the side street that face the ego car."""
    blocks = []

    def block(x1: float, x2: float, z1: float, z2: float) -> None:
        height = rng.uniform(9, 19)
        blocks.append(Building(x1, x2, z1, z2, height, _pick(WALLS, rng), int(rng.integers(2**31))))

    for side in (-1, 1):
        for low, high in ((start_z, -4.0), (road.cross + 4, 190.0)):
            z = low
            while z < high:
                end = min(z + rng.uniform(10, 22), high)
                x1, x2 = sorted((side * road.wall, side * (road.wall + 13)))
                block(x1, x2, z, end)
                z = end
        x = road.wall + 13
        while x < 60:
            end = x + rng.uniform(10, 20)
            x1, x2 = sorted((side * x, side * end))
            block(x1, x2, road.cross + 4, road.cross + 16)
            x = end
    if rng.random() < 0.6:  # a house closes the street
        far = rng.uniform(150, 230)
        block(-60, 60, far, far + 10)
    return blocks


def _occluder(
    brief: Brief, road: Road, victim: Signal, camera: Camera, rng: np.random.Generator
) -> list[Tree | Car | Pole]:
    """Something that half hides one light around the middle of the approach."""

    def on_sight_line(gap_m: float) -> tuple[float, float, float]:
        share = 1 - gap_m / camera.depth(victim.z)
        x = camera.x_m + share * (victim.x - camera.x_m)
        return x, camera.y_m + share * (victim.y - camera.y_m), victim.z - gap_m

    match brief.occluder:
        case "tree":
            x, y, z = on_sight_line(2.0)
            return [_tree(rng, x + 0.85, z, y - 0.3, 1.0, 1.3)]
        case "van":
            _, y, z = on_sight_line(5.5)
            height = float(np.clip(y, 1.9, 3.4))
            return [Car(road.kerb - 1.0, z, 2.1, height, 4.8, 0.0, False, False, _pick(PAINTS, rng))]
        case "post":
            x, _, z = on_sight_line(1.2)
            return [Pole(x + 0.05, z, 7.0, 0.1, x + 0.05, (96, 100, 100))]
    return []
