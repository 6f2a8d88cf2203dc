"""Paints what stands behind everything else: sky, ground with its markings, houses.

In: a brush and a view. Out: pixels in the brush's painting.
Invariant: facades and asphalt are fixed to the world, so they are the same in every frame of an approach.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from dtld_tools.synthetic.scene.brush import Brush
from dtld_tools.synthetic.scene.world import HEIGHT_PX, RGB, WIDTH_PX, Building, Car, Road, Tree, View

ASPHALT: RGB = (98, 98, 100)
PAVING: RGB = (142, 138, 132)
KERB: RGB = (176, 174, 168)
PAINT: RGB = (224, 224, 218)
FAR_M = 200.0
ROOFS: tuple[RGB, ...] = ((128, 62, 46), (84, 80, 80), (106, 72, 58))


def paint_backdrop(brush: Brush, view: View) -> None:
    """Sky, then ground, then the houses from far to near."""
    _paint_sky(brush, view)
    _paint_ground(brush, view)
    _weather_ground(brush, view)
    ends = {(block.x1, block.z2) for block in view.buildings}
    for building in sorted(view.buildings, key=lambda block: -block.z1):
        if brush.camera.depth(building.z2) > 3:
            _paint_building(brush, building, in_row=(building.x1, building.z1) in ends)
    _weather_walls(brush, view)


def _clouds(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Noise of several scales [rows, columns] float32, mean 0, deviation 1."""
    total = np.zeros((rows, columns), np.float32)
    for cells, weight in ((3, 1.0), (6, 0.6), (12, 0.35), (28, 0.2)):
        grid = rng.standard_normal((cells, 2 * cells), dtype=np.float32)
        total += weight * cv2.resize(grid, (columns, rows), interpolation=cv2.INTER_CUBIC)
    return (total - total.mean()) / total.std()


def _paint_sky(brush: Brush, view: View) -> None:
    horizon = int(view.camera.horizon_px) + 2
    light = brush.light
    share = np.linspace(0, 1, 144, dtype=np.float32)[:, None, None] ** 1.4
    sky = np.array(light.sky_top, np.float32) * (1 - share) + np.array(light.sky_low, np.float32) * share
    clouds = np.clip(_clouds(np.random.default_rng(view.road.grain_seed), 144, 512), -0.15, 1.9)
    sky = np.clip(sky + light.cloud * 0.6 * clouds[..., None], 0, 255).astype(np.uint8)
    brush.painting.image[:horizon] = cv2.resize(sky, (WIDTH_PX, horizon), interpolation=cv2.INTER_LINEAR)
    silhouettes = np.random.default_rng(view.road.grain_seed + 1).uniform(4, 16, 60)
    steps = np.repeat(np.linspace(-160, 160, 61), 2)[1:-1]
    skyline = [(-160, 0), *zip(steps, np.repeat(silhouettes, 2), strict=True), (160, 0)]
    brush.upright(skyline, 330.0, (96, 104, 100))


def _strip(x1: float, x2: float, z1: float, z2: float) -> np.ndarray:
    return np.array([(x1, 0, z1), (x2, 0, z1), (x2, 0, z2), (x1, 0, z2)], float)


def _paint_ground(brush: Brush, view: View) -> None:
    road, here = view.road, view.camera.z_m
    depth = 14.0  # ground is shaded as if it were here: haze on the flat ground would need a gradient

    def lay(strips: list[np.ndarray], colour: RGB, gain: float = 1.0) -> None:
        brush.polygons(strips, brush.shade(colour, depth, gain))

    kerb, cross = road.kerb, road.cross
    brush.painting.image[round(view.camera.horizon_px) :] = brush.shade(PAVING, depth)
    grass = [_strip(side * (road.wall - 0.9), side * (road.wall + 2), here, -4.5) for side in (-1, 1)]
    lay(grass, (92, 108, 62))
    side_street = max(4.0, here + 4)
    lay([_strip(-kerb - 0.18, kerb + 0.18, here, FAR_M), _strip(-70, 70, side_street - 0.2, cross + 0.2)], KERB)
    lay([_strip(-kerb, kerb, here, FAR_M), _strip(-70, 70, side_street, cross)], ASPHALT)
    if road.has_cycle_lane:
        lanes = [_strip(kerb - 1.4, kerb, here, -0.5), _strip(kerb - 1.4, kerb, cross, FAR_M)]
        lay(lanes, (140, 78, 66))
    if road.has_rails:
        rails = [_strip(x - 0.06, x + 0.06, here, FAR_M) for c in (-1.75, 1.75) for x in (c - 0.72, c + 0.72)]
        lay(rails, (62, 62, 66))
        lay([np.add(rail, (0.07, 0, 0)) for rail in rails], (158, 160, 164))
    _lay_markings(lay, road, here)


def _lay_markings(lay: Callable[..., None], road: Road, here: float) -> None:
    lane_edges = [road.median / 2 + lane * road.lane_width for lane in range(1, road.lanes)]
    parts = ((here - here % 12 - 12, -8.0), (road.cross + 4, FAR_M * 0.7))
    dashes = [
        _strip(side * x - 0.07, side * x + 0.07, z, z + 6)
        for side in (-1, 1) for x in lane_edges for low, high in parts for z in np.arange(low, high, 12)
    ]  # fmt: skip
    solid = [
        _strip(side * x - 0.06, side * x + 0.06, z1, z2)
        for side in (-1, 1) for x in lane_edges for z1, z2 in ((-20, -1), (road.cross + 1, road.cross + 14))
    ]  # fmt: skip
    stop = [_strip(road.median / 2 + 0.1, road.kerb - 0.2, -0.9, -0.4)]
    walks = [
        _strip(x, x + 0.5, z, z + 0.14)
        for x in np.arange(-road.kerb, road.kerb, 1.0) for z in (0.9, 3.2, road.cross + 0.8, road.cross + 3.2)
    ]  # fmt: skip
    lay([*dashes, *solid, *stop, *walks], PAINT, 0.9)
    for z1, z2 in ((here - 2, -1.5), (road.cross + 4.5, FAR_M)):
        if road.median:
            half = road.median / 2 - 0.15
            lay([_strip(-half, half, z1, z2)], KERB)
            lay([_strip(-half + 0.2, half - 0.2, z1 + 1, z2)], (104, 110, 76) if road.median > 2 else PAVING)
        else:
            lay([_strip(x - 0.06, x + 0.06, z1, z2) for x in (-0.13, 0.13)], PAINT, 0.9)


def _weather_ground(brush: Brush, view: View) -> None:
    """Roughness, patches and shadows, as a factor on the ground's pixels; worked out at half the resolution."""
    camera, top = view.camera, int(view.camera.horizon_px) + 6
    rows = np.arange(top, HEIGHT_PX, 2, dtype=np.float32)[:, None]
    columns = np.arange(0, WIDTH_PX, 2, dtype=np.float32)[None]
    depth = camera.focal_px * camera.y_m / (rows - camera.horizon_px)  # [R, 1]
    x, z = camera.x_m + (columns - camera.centre_px) * depth / camera.focal_px, camera.z_m + depth
    rng = np.random.default_rng(view.road.grain_seed)
    factor = np.ones_like(x)
    # cells of these sizes; each fades where a cell is smaller than a pixel's footprint along the road
    for cell_m, strength in ((0.05, 0.10), (0.3, 0.07), (2.5, 0.09)):
        grain = rng.standard_normal((512, 512), dtype=np.float32)
        across, along = (x / cell_m).astype(np.int32) & 511, (z / cell_m).astype(np.int32) & 511
        fade = 1 / (1 + (depth**2 / (camera.focal_px * camera.y_m) / cell_m) ** 2)
        factor += strength * fade * grain[along, across]
    shadow = _shadows(brush, view, top)
    factor = cv2.GaussianBlur(factor, (3, 3), 0) * (1 - shadow)
    _scale(brush.painting.image[top:], factor)


def _scale(pixels: np.ndarray, factor: np.ndarray) -> None:
    """Multiplies pixels [H, W, 3] uint8 in place by a factor [h, w] float32 that may be coarser."""
    full = cv2.resize(factor, pixels.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    cv2.multiply(pixels, cv2.merge([full] * 3), pixels, dtype=cv2.CV_8U)


def _weather_walls(brush: Brush, view: View) -> None:
    """Plaster is never one colour: faint noise over all that is painted above the horizon."""
    rng = np.random.default_rng(view.road.grain_seed + 2)
    bottom = int(view.camera.horizon_px) + 6
    noise = rng.standard_normal((bottom // 4, WIDTH_PX // 4), dtype=np.float32)
    patches = cv2.resize(rng.standard_normal((10, 36), dtype=np.float32), noise.shape[::-1])
    _scale(brush.painting.image[:bottom], 1 + 0.01 * noise + 0.025 * patches)


def _shadows(brush: Brush, view: View, top: int) -> np.ndarray:
    """How dark the ground lies in shadow, 0 to 1, at half the resolution [R, C] float32."""
    mask = np.zeros((HEIGHT_PX, WIDTH_PX), np.uint8)
    road, sun = view.road, brush.light.shadow
    reach = 5.0 if sun > 0.3 else 0.0

    def cast(strip: np.ndarray, darkness: float) -> None:
        shape = brush.visible(strip)
        if len(shape) > 2:
            pixels = np.clip(view.camera.project(shape), -9000, 9000)
            cv2.fillPoly(mask, [np.round(pixels).astype(np.int32)], round(255 * darkness))

    if reach:
        for z1, z2 in ((view.camera.z_m, -4.0), (road.cross + 4, FAR_M)):
            cast(_strip(road.wall - reach - 3, road.wall, z1, z2), 0.8 * sun)
    for thing in view.things:
        if isinstance(thing, Tree) and reach:
            cast(_strip(thing.x - 4.5, thing.x - 0.5, thing.z - 1.4, thing.z + 1.6), 0.8 * sun)
        if isinstance(thing, Car):
            half = thing.width / 2
            cast(_strip(thing.x - half - reach * 0.2, thing.x + half, thing.z - 0.25, thing.z + thing.length), 0.55)
    soft = cv2.GaussianBlur(mask[top:], (0, 0), 3)
    return soft[::2, ::2].astype(np.float32) / 255


def _paint_building(brush: Brush, building: Building, in_row: bool) -> None:
    """The face towards the ego car and the face towards the road, each with its slope of the hipped roof.

    Of a house in a row, the first of these is a blank wall: only what is higher than its neighbour shows.
    """
    inner, outer = sorted((building.x1, building.x2), key=abs)
    if building.x1 < 0 < building.x2:  # it closes the street
        inner, outer = building.x1, building.x2
    side, z1, z2 = np.sign(outer - inner), building.z1, building.z2
    roof: RGB = ROOFS[building.style_seed % len(ROOFS)]
    sunny = building.x2 <= 0 or brush.light.shadow < 0.3
    faces = (
        (np.array([inner, 0, z1]), np.array([outer - inner, 0, 0]), np.array([side * 3, 2.6, 3]), 0.85),
        (np.array([inner, 0, z1]), np.array([0, 0, z2 - z1]), np.array([side * 3, 2.6, 3]), 1.0 if sunny else 0.6),
    )
    for start, along, ridge, gain in faces:
        depth = brush.camera.depth(start[2] + along[2])
        if depth < 3 or _is_aside(brush, start, along):
            continue
        eaves = start + _UP * building.height
        far_ridge = eaves + along + ridge * ([-1, 1, 1] if along[0] else [1, 1, -1])
        slope = np.array([eaves, eaves + along, far_ridge, eaves + ridge])
        brush.polygons([slope], brush.shade(roof, depth, gain))
        if in_row and along[0]:
            wall = np.array([start, start + along, eaves + along, eaves])
            brush.polygons([wall], brush.shade(building.colour, depth, gain))
        else:
            _paint_facade(brush, building, start, along, gain)


def _is_aside(brush: Brush, start: np.ndarray, along: np.ndarray) -> bool:
    """Whether a wall lies wholly left or right of the picture."""
    ends = np.array([start, start + along])
    ends[:, 2] = np.maximum(ends[:, 2], brush.camera.z_m + 2)
    columns = brush.camera.project(ends)[:, 0]
    return bool((columns < 0).all() or (columns > WIDTH_PX).all())


def _paint_facade(brush: Brush, building: Building, start: np.ndarray, along: np.ndarray, gain: float) -> None:
    """One wall that begins at ``start`` and runs ``along``, with shops, windows and cornice."""
    rng = np.random.default_rng(building.style_seed)
    length = float(np.abs(along).sum())
    depth = max(4.0, float(brush.camera.depth(start[2] + along[2] / 2)))

    def wall(shapes_sy: list, colour: RGB, light: float = 1.0) -> None:
        """Fills shapes in metres along and up the wall."""
        if shapes_sy:
            points = np.array(shapes_sy, float)  # [S, 4, 2]
            world = start + points[..., :1] / length * along + points[..., 1:] * _UP
            brush.polygons(world, brush.shade(colour, depth, gain * light))

    floor_m, bay_m = rng.uniform(3.0, 3.6), rng.uniform(2.1, 3.3)
    ground_m, height = rng.uniform(3.4, 4.2), building.height
    pane_w, pane_h = bay_m * rng.uniform(0.4, 0.56), floor_m * rng.uniform(0.48, 0.6)
    trim: RGB = ((214, 210, 202), (236, 234, 228), (150, 140, 128))[rng.integers(3)]
    wall([_pane(0, length, 0, height)], building.colour)
    wall([_pane(0, length, 0, ground_m)], building.colour, 0.72)
    if depth < 110:
        wall([_pane(0, length, height - 0.45, height), _pane(0, length, ground_m, ground_m + 0.2)], trim, 0.9)
        _paint_shops(brush, wall, rng, length, ground_m)

    bays, floors = max(1, int(length / bay_m)), max(1, int((height - ground_m - 0.6) / floor_m))
    lefts = (np.arange(bays) + 0.5) * length / bays - pane_w / 2
    places = [(s, ground_m + 0.75 + f * floor_m) for f in range(floors) for s in lefts]
    if depth < 110:
        wall([_pane(s - 0.13, s + pane_w + 0.13, y - 0.16, y + pane_h + 0.12) for s, y in places], trim)
    panes = [_pane(s, s + pane_w, y, y + pane_h) for s, y in places]
    chance = rng.random(len(panes))
    wall(panes, (52, 60, 68), 0.9)
    wall([_pane(s, s + pane_w, y + 0.45 * pane_h, y + pane_h) for s, y in places], (96, 112, 128), 0.8)
    curtains = [pane for pane, c in zip(panes, chance, strict=True) if c > 0.72]
    wall(curtains, (186, 184, 176), 0.8)
    lit = [pane for pane, c in zip(panes, chance, strict=True) if c < brush.light.lit_windows]
    wall(lit, (255, 206, 124), 0.75 / max(brush.light.daylight))
    if depth < 70:
        wall([_pane(s + pane_w / 2 - 0.05, s + pane_w / 2 + 0.05, y, y + pane_h) for s, y in places], trim, 0.9)


_UP = np.array([0.0, 1.0, 0.0])


def _pane(s1: float, s2: float, y1: float, y2: float) -> list[tuple[float, float]]:
    return [(s1, y1), (s2, y1), (s2, y2), (s1, y2)]


def _paint_shops(
    brush: Brush, wall: Callable[..., None], rng: np.random.Generator, length: float, ground_m: float
) -> None:
    """Shop windows with coloured boards, some of them red, green or yellow: distractors, at dusk lit ones."""
    at_night = brush.light.lit_windows > 0.2
    glow = 0.8 / max(brush.light.daylight) if at_night else 1.0
    count = max(1, int(length / 5.5))
    width = length / count
    boards: tuple[RGB, ...] = (
        (186, 26, 30), (18, 118, 72), (232, 176, 22), (26, 70, 150), (60, 58, 56), (216, 212, 204), (120, 40, 90),
    )  # fmt: skip
    for i in range(count):
        s, style = i * width, rng.random()
        wall([_pane(s + 0.5, s + width - 0.5, 0.5, ground_m - 1.1)], (44, 50, 56), 1.0)
        if at_night and style < 0.5:
            wall([_pane(s + 0.6, s + width - 0.6, 0.6, ground_m - 1.2)], (238, 206, 150), glow * 0.7)
        if style < 0.65:
            board = boards[rng.integers(len(boards))]
            wall([_pane(s + 0.4, s + width - 0.4, ground_m - 0.95, ground_m - 0.3)], board, glow)
            letters = np.arange(s + 0.9, s + width - 1.2, 0.42)
            marks = [_pane(x, x + rng.uniform(0.12, 0.3), ground_m - 0.75, ground_m - 0.5) for x in letters]
            wall(marks, (240, 238, 230), glow)
