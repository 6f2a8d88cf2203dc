"""Paints a view: the backdrop, then the things between the houses from far to near.

In: a `View`. Out: a `Painting`: sRGB pixels and the list of lamps that glow; the camera does the rest.
Invariant: what is nearer is painted later, so a light's label and its pixels agree on what hides what.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dtld_tools.synthetic.scene.backdrop import paint_backdrop
from dtld_tools.synthetic.scene.brush import Brush, Glow, Painting
from dtld_tools.synthetic.scene.lights import LIT, lamp_centres, signal_sprite
from dtld_tools.synthetic.scene.world import RGB, Car, Pole, Sighting, Sign, Tree, View


def paint(view: View) -> Painting:
    """Paints one frame; the same view gives the same pixels."""
    brush = Brush(view)
    paint_backdrop(brush, view)
    for thing in view.things:
        _PAINTERS[type(thing)](brush, thing)
    return brush.painting


def _paint_sighting(brush: Brush, sighting: Sighting) -> None:
    depth = brush.camera.depth(sighting.signal.z)
    sprite, alpha = signal_sprite(sighting, lambda colour: brush.shade(colour, depth))
    x, y = int(sighting.box.x1), int(sighting.box.y1)
    x1, y1 = max(x, 0), max(y, 0)
    target = brush.painting.image[y1 : max(y + len(sprite), 0), x1 : max(x + sprite.shape[1], 0)]
    if not target.size:
        return
    rows = slice(y1 - y, y1 - y + target.shape[0])
    columns = slice(x1 - x, x1 - x + target.shape[1])
    sprite, alpha = sprite[rows, columns], alpha[rows, columns]
    target[:] = (sprite * alpha + target * (1 - alpha)).round().astype(np.uint8)
    for u, v, radius, colour in lamp_centres(sighting):
        brush.painting.glows.append(Glow(u, v, radius, LIT[colour][1], sighting.visible))


def _paint_pole(brush: Brush, pole: Pole) -> None:
    left, right, top = pole.x - pole.radius, pole.x + pole.radius, pole.height
    if pole.arm_x != pole.x:
        low, high = top - pole.radius * 0.7, top + pole.radius * 0.7
        brush.upright([(pole.x, low), (pole.arm_x, low), (pole.arm_x, high), (pole.x, high)], pole.z, pole.colour)
    brush.upright([(left, 0), (right, 0), (right, top), (left, top)], pole.z, pole.colour)
    shine = left + 0.5 * pole.radius
    brush.upright([(shine, 0), (pole.x, 0), (pole.x, top), (shine, top)], pole.z, pole.colour, 1.5)
    if top > 7.5 and pole.arm_x != pole.x:  # a street lamp
        head = [(pole.arm_x - 0.4, top), (pole.arm_x + 0.4, top), (pole.arm_x + 0.3, top + 0.16)]
        brush.upright(head, pole.z, (150, 152, 154))
        if brush.light.lit_windows > 0.2:
            brush.lamp(pole.arm_x, top - 0.02, pole.z, 0.14, (255, 226, 168), 0.8)


def _paint_tree(brush: Brush, tree: Tree) -> None:
    left, right = tree.x - tree.trunk_radius, tree.x + tree.trunk_radius
    trunk = [(left, 0), (right, 0), (right - 0.05, tree.trunk_height), (left + 0.05, tree.trunk_height)]
    brush.upright(trunk, tree.z, (84, 70, 56))
    depth, tones = brush.camera.depth(tree.z), 12
    colours = [brush.shade(tree.colour, depth, 0.12 + 1.5 * (i / tones) ** 1.5) for i in range(tones + 1)]
    shades = np.round(tree.leaves[:, 3] * tones).astype(int)
    brush.balls(tree.leaves[:, :3], tree.z, [colours[shade] for shade in shades])


# Vehicles in shares of their width (0 in the middle), height and length (0 at the end that is seen).
_CAR_SIDE = ((0, 0.17), (0, 0.64), (0.03, 1), (0.6, 1), (0.78, 0.66), (1, 0.56), (1, 0.17))
_CAR_GLASS = ((0.08, 0.68), (0.1, 0.93), (0.58, 0.93), (0.72, 0.68))
_VAN_SIDE = ((0, 0.12), (0, 1), (0.72, 1), (0.86, 0.6), (1, 0.5), (1, 0.12))
_VAN_GLASS = ((0.6, 0.58), (0.6, 0.9), (0.71, 0.9), (0.82, 0.58))
_CAR_END = ((-0.5, 0.2), (-0.5, 0.64), (-0.4, 0.98), (-0.37, 1), (0.37, 1), (0.4, 0.98), (0.5, 0.64), (0.5, 0.2))
_CAR_PANE = ((-0.43, 0.68), (-0.36, 0.93), (0.36, 0.93), (0.43, 0.68))
_VAN_END = ((-0.5, 0.14), (-0.5, 0.97), (-0.46, 1), (0.46, 1), (0.5, 0.97), (0.5, 0.14))
_VAN_PANE = ((-0.42, 0.58), (-0.4, 0.86), (0.4, 0.86), (0.42, 0.58))


def _paint_car(brush: Brush, car: Car) -> None:
    depth, is_van = brush.camera.depth(car.z), car.height > 1.8
    side_x = car.x - np.copysign(car.width / 2, car.x - brush.camera.x_m)
    lean = 0.0 if is_van else (side_x - car.x) * 0.6  # a car is narrower at its roof
    ends = [(x, y, z) for x in (car.x - car.width / 2, car.x + car.width / 2) for y in (0, car.height)
            for z in (car.z, car.z + car.length)]  # fmt: skip
    brush.cover_glows(np.array(ends))

    def side(points: tuple, colour: RGB, gain: float) -> None:
        shape = [(side_x - lean * max(0.0, y - 0.64), y * car.height, car.z + t * car.length) for t, y in points]
        brush.polygons([shape], brush.shade(colour, depth, gain))

    def end(points: tuple, colour: RGB, gain: float = 1.0) -> None:
        brush.upright([(car.x + x * car.width, y * car.height) for x, y in points], car.z, colour, gain)

    side(_VAN_SIDE if is_van else _CAR_SIDE, car.colour, 0.55)
    side(_VAN_GLASS if is_van else _CAR_GLASS, (34, 40, 46), 0.8)
    turn = np.linspace(0, 2 * np.pi, 17)[:-1]
    for t in (0.18, 0.8) if depth < 60 else ():
        wheel = tuple(zip(t + 0.33 / car.length * np.cos(turn), (0.33 + 0.33 * np.sin(turn)) / car.height, strict=True))
        side(wheel, (20, 20, 22), 1.0)
    for x in (-0.42, 0.42):
        end(((x - 0.07, 0), (x + 0.07, 0), (x + 0.07, 0.25), (x - 0.07, 0.25)), (18, 18, 20))
    end(_VAN_END if is_van else _CAR_END, car.colour)
    end(_VAN_PANE if is_van else _CAR_PANE, (40, 48, 56), 1.3 if car.oncoming else 0.9)
    _paint_car_lamps(brush, car, 0.4 if is_van else 0.53)
    if depth > 60:  # smaller than a pixel
        return
    end(((-0.49, 0.2), (0.49, 0.2), (0.48, 0.29), (-0.48, 0.29)), (38, 39, 41))
    end(((-0.15, 0.34), (0.15, 0.34), (0.15, 0.42), (-0.15, 0.42)), (228, 228, 220))


def _paint_car_lamps(brush: Brush, car: Car, height_share: float) -> None:
    """Head lamps burn on every moving car, tail lamps glow red, brakes shine: red lights that are no signals."""
    y, at_night = car.height * height_share, brush.light.lit_windows > 0.2
    for sign in (-1, 1):
        x = car.x + sign * 0.41 * car.width
        if car.oncoming:
            on = at_night or car.speed != 0
            lens: RGB = (236, 240, 244)
            if on:
                brush.lamp(x, y, car.z, 0.085, (255, 252, 238), 1.6 if at_night else 0.5)
            else:
                brush.disc(x, y, car.z, 0.085, lens)
            continue
        corners = [(x - 0.12, y - 0.09), (x + 0.12, y - 0.09), (x + 0.12, y + 0.09), (x - 0.12, y + 0.09)]
        brush.upright(corners, car.z, (128, 12, 14))
        if car.braking or (at_night and car.speed != 0):
            brush.lamp(x, y, car.z, 0.075, (255, 40, 28), 1.0 if car.braking else 0.4)
    if car.braking:
        brush.lamp(car.x, car.height * 0.95, car.z, 0.035, (255, 44, 30), 0.6)


def _paint_sign(brush: Brush, sign: Sign) -> None:
    x, y, z, r = sign.x, sign.y, sign.z, sign.size / 2

    def turned(points: list[tuple[float, float]], colour: RGB) -> None:
        brush.upright([(x + r * a, y + r * b) for a, b in points], z, colour)

    match sign.shape:
        case "priority":
            for size, colour in ((1.0, (236, 236, 230)), (0.72, (238, 178, 16))):
                turned([(-size, 0), (0, -size), (size, 0), (0, size)], colour)
        case "give_way":
            for size, colour in ((1.0, (196, 24, 28)), (0.62, (238, 238, 232))):
                turned([(-0.95 * size, 0.75 * size), (0.95 * size, 0.75 * size), (0, -size)], colour)
        case "limit":
            brush.disc(x, y, z, r, (200, 22, 28))
            brush.disc(x, y, z, r * 0.74, (240, 240, 236))
            for left in (-0.4, 0.1):
                turned([(left, -0.35), (left + 0.3, -0.35), (left + 0.3, 0.35), (left, 0.35)], (28, 28, 30))
        case "no_entry":
            brush.disc(x, y, z, r, (196, 20, 28))
            turned([(-0.7, -0.16), (0.7, -0.16), (0.7, 0.16), (-0.7, 0.16)], (242, 242, 238))
        case _:
            brush.disc(x, y, z, r, (232, 234, 236))
            brush.disc(x, y, z, r * 0.93, (22, 82, 168))
            turned([(-0.12, -0.6), (0.12, -0.6), (0.12, 0.1), (-0.12, 0.1)], (240, 242, 244))
            turned([(-0.42, 0.05), (0.42, 0.05), (0, 0.62)], (240, 242, 244))


_PAINTERS: dict[type, Callable[[Brush, Any], None]] = {
    Sighting: _paint_sighting,
    Pole: _paint_pole,
    Tree: _paint_tree,
    Car: _paint_car,
    Sign: _paint_sign,
}
