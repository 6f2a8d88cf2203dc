"""A street scene as a description, and what a camera sees of it: no pixels, no files, no randomness.

In: a `Scene` (everything that stands at one intersection, metres) and a step of the approach to it.
Out: a `View`: the camera's pose and every traffic light with its box, state and visible share.
Invariant: a light's box is whole pixels and is exactly the rectangle that `lights` fills.

World: x right, y up, z ahead, in metres; z = 0 is the ego lane's stop line, x = 0 the middle of the road,
y = 0 the asphalt. Traffic keeps to the right. Image: pixels, x right, y down.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from dtld_tools.types import Box

WIDTH_PX, HEIGHT_PX = 2048, 1024
STEP_S = 0.67  # between two frames of a sequence

Direction = Literal["front", "back", "left", "right"]
Orientation = Literal["vertical", "horizontal"]
RGB = tuple[int, int, int]

#: A light hidden by more than this share is labelled occluded; less is a twig or a thin cable.
OCCLUDED_SHARE = 0.12
#: A light of which less than this is seen, or less than this lies in the frame, is not labelled at all.
SEEN_SHARE, FRAMED_SHARE = 0.2, 0.1


def _rectangle(x: float, y: float, z: float, width: float, height: float) -> np.ndarray:
    """What hides others: rows [1, 6] x, y, z of a middle, half width, half height (metres), 1 if it is round."""
    return np.array([[x, y, z, width / 2, height / 2, 0.0]])


@dataclass(frozen=True, slots=True)
class Camera:
    """A pinhole that looks along +z; ``horizon_px`` carries the pitch, ``centre_px`` the yaw."""

    x_m: float
    y_m: float
    z_m: float
    centre_px: float
    horizon_px: float
    focal_px: float = 2300.0

    def project(self, points_xyz: np.ndarray) -> np.ndarray:
        """World points [N, 3] before the camera -> pixels [N, 2]."""
        points = np.asarray(points_xyz, float)
        scale = self.focal_px / (points[:, 2] - self.z_m)
        u = self.centre_px + (points[:, 0] - self.x_m) * scale
        v = self.horizon_px - (points[:, 1] - self.y_m) * scale
        return np.stack([u, v], axis=1)

    def depth(self, z_m: float) -> float:
        """Metres from the camera's plane; negative behind it."""
        return z_m - self.z_m


@dataclass(frozen=True, slots=True)
class Signal:
    """A traffic light: centre and size of its silhouette as the ego car sees it, and how it behaves.

    ``phases`` are its states before, during and after the intersection's change of phase.
    """

    x: float
    y: float
    z: float
    width: float
    height: float
    direction: Direction
    orientation: Orientation
    aspects: int
    pictogram: str
    relevant: bool
    phases: tuple[str, str, str]
    framed: bool
    colour: RGB
    track: int

    def box(self, camera: Camera) -> Box:
        """The silhouette in whole pixels; it may leave the frame."""
        (centre,) = camera.project(np.array([[self.x, self.y, self.z]]))
        scale = camera.focal_px / camera.depth(self.z)
        w, h = (max(2, round(side * scale)) for side in (self.width, self.height))
        return Box.from_xywh(round(centre[0] - w / 2), round(centre[1] - h / 2), w, h)

    def masses(self) -> np.ndarray:
        """What hides others."""
        return _rectangle(self.x, self.y, self.z, self.width, self.height)


@dataclass(frozen=True, slots=True)
class Pole:
    """A post, with an arm at its top that reaches to ``arm_x``; equal to ``x``: no arm."""

    x: float
    z: float
    height: float
    radius: float
    arm_x: float
    colour: RGB

    def masses(self) -> np.ndarray:
        """What hides others."""
        post = _rectangle(self.x, self.height / 2, self.z, 2 * self.radius, self.height)
        if self.arm_x == self.x:
            return post
        middle, length = (self.x + self.arm_x) / 2, abs(self.x - self.arm_x)
        return np.vstack([post, _rectangle(middle, self.height, self.z, length, 1.4 * self.radius)])


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """A trunk and a crown of ``leaves`` [N, 4]: x, y, radius (metres) and shade (0 dark to 1 bright)."""

    x: float
    z: float
    trunk_height: float
    trunk_radius: float
    leaves: np.ndarray
    colour: RGB

    def masses(self) -> np.ndarray:
        """What hides others."""
        trunk = _rectangle(self.x, self.trunk_height / 2, self.z, 2 * self.trunk_radius, self.trunk_height)
        crown = np.full((len(self.leaves), 6), (0, 0, self.z, 0, 0, 1.0))
        crown[:, [0, 1]], crown[:, [3, 4]] = self.leaves[:, :2], self.leaves[:, 2:3]
        return np.vstack([trunk, crown])


@dataclass(frozen=True, slots=True)
class Car:
    """A vehicle; ``z`` is the end that the ego car sees, ``speed`` its motion along z in m/s."""

    x: float
    z: float
    width: float
    height: float
    length: float
    speed: float
    oncoming: bool
    braking: bool
    colour: RGB

    def masses(self) -> np.ndarray:
        """What hides others: slices across the part that has its full height; the bonnet is beyond."""
        slices = (self.z, self.z + 0.35 * self.length, self.z + 0.7 * self.length)
        return np.vstack([_rectangle(self.x, self.height / 2, z, self.width, self.height) for z in slices])

    def at(self, step: int) -> Car:
        """The same vehicle, some frames later."""
        return replace(self, z=self.z + self.speed * step * STEP_S)


@dataclass(frozen=True, slots=True)
class Sign:
    """A traffic sign on a post: ``shape`` names how it is drawn; a distractor, it is never labelled."""

    x: float
    y: float
    z: float
    size: float
    shape: str

    def masses(self) -> np.ndarray:
        """What hides others."""
        return np.array([[self.x, self.y, self.z, self.size / 2, self.size / 2, 1.0]])


@dataclass(frozen=True, slots=True)
class Building:
    """A block with windows; ``style_seed`` decides its facade, the same in every frame."""

    x1: float
    x2: float
    z1: float
    z2: float
    height: float
    colour: RGB
    style_seed: int


@dataclass(frozen=True, slots=True)
class Road:
    """The ground plan: ``kerb`` and ``wall`` are distances from the middle, ``cross`` the far kerb's z."""

    lanes: int
    lane_width: float
    median: float
    kerb: float
    wall: float
    cross: float
    has_rails: bool
    has_cycle_lane: bool
    grain_seed: int


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything at one intersection, and the approach to it: one camera per step."""

    weather: str
    road: Road
    buildings: tuple[Building, ...]
    things: tuple[Pole | Tree | Car | Sign, ...]
    signals: tuple[Signal, ...]
    cameras: tuple[Camera, ...]
    change_step: int  # the phase changes here, the next phase begins one step later


@dataclass(frozen=True, slots=True)
class Sighting:
    """A light as one frame shows it; ``visible`` is the share of its box that nothing hides."""

    signal: Signal
    box: Box
    state: str
    visible: float

    @property
    def occluded(self) -> bool:
        """Whether enough of it is hidden for the label to say so."""
        return self.visible < 1 - OCCLUDED_SHARE

    @property
    def labelled(self) -> bool:
        """Whether a person would see a light there: enough of it in the frame, and not hidden."""
        inside_w = min(self.box.x2, WIDTH_PX) - max(self.box.x1, 0)
        inside_h = min(self.box.y2, HEIGHT_PX) - max(self.box.y1, 0)
        inside = max(inside_w, 0) * max(inside_h, 0)
        return self.visible >= SEEN_SHARE and inside >= FRAMED_SHARE * self.box.area


@dataclass(frozen=True, slots=True)
class View:
    """One frame to be painted: the things ahead of the camera, farthest first, and the lights among them."""

    weather: str
    camera: Camera
    road: Road
    buildings: tuple[Building, ...]
    things: tuple[Pole | Tree | Car | Sign | Sighting, ...]

    @property
    def sightings(self) -> tuple[Sighting, ...]:
        """The lights, farthest first."""
        return tuple(thing for thing in self.things if isinstance(thing, Sighting))


def look(scene: Scene, step: int) -> View:
    """What the camera sees in one frame of the approach.

    Buildings stand behind ``road.wall`` on both sides and everything else between the walls, so a building
    never hides a thing; that is why they need no place in the order of depth.
    """
    camera = scene.cameras[step]
    phase = (step >= scene.change_step) + (step > scene.change_step)
    things = [thing.at(step) if isinstance(thing, Car) else thing for thing in (*scene.things, *scene.signals)]
    ahead = sorted((t for t in things if camera.depth(t.z) > 2), key=lambda thing: -thing.z)
    masses = np.vstack([thing.masses() for thing in ahead])
    seen = [
        _sight(thing, camera, thing.phases[phase], masses) if isinstance(thing, Signal) else thing for thing in ahead
    ]
    return View(scene.weather, camera, scene.road, scene.buildings, tuple(seen))


def _sight(signal: Signal, camera: Camera, state: str, masses: np.ndarray) -> Sighting:
    box = signal.box(camera)
    return Sighting(signal, box, state, _visible_share(box, camera, masses[masses[:, 2] < signal.z]))


def _visible_share(box: Box, camera: Camera, masses: np.ndarray) -> float:
    """The share of a grid of points in the box that no mass covers; masses [N, 6] are all nearer than it."""
    centres = camera.project(masses[:, :3])  # [N, 2]
    halves = masses[:, 3:5] * (camera.focal_px / (masses[:, 2:3] - camera.z_m))  # [N, 2]
    box_centre = np.array([box.x1 + box.x2, box.y1 + box.y2]) / 2
    box_half = np.array([box.width, box.height]) / 2
    touches = (np.abs(centres - box_centre) < halves + box_half).all(axis=1)
    centres, halves, is_round = centres[touches], halves[touches], masses[touches, 5] > 0
    grid = np.meshgrid(np.linspace(box.x1, box.x2, 14)[1:-1], np.linspace(box.y1, box.y2, 26)[1:-1])
    points = np.stack(grid, axis=-1).reshape(-1, 1, 2)
    offsets = np.abs(points - centres) / halves  # [P, N, 2], both below 1 inside a rectangle
    hidden = np.where(is_round, (offsets**2).sum(axis=2) < 1, (offsets < 1).all(axis=2)).any(axis=1)
    return float(1 - hidden.mean())
