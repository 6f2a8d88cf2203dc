"""Pictures of single traffic lights: housing, backplate, visors, lenses, pictograms.

In: a light as a frame shows it, and how the daylight falls on painted surfaces.
Out: its pixels (sRGB) and its silhouette, exactly as large as its box.
Invariant: the silhouette touches all four edges of the box, so that the label is tight.

A light is drawn at a fixed scale, many times larger than most boxes, and shrunk by area: that is the
anti-aliasing, and it makes a light look the same from far and near.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from dtld_tools.synthetic.scene.world import RGB, Sighting, Signal

Shade = Callable[[RGB], RGB]  # the colour of a surface -> its colour in this weather, at this distance

PX_PER_M = 320
#: Lit lenses from the rim to the core. Lamps are brighter than the film can hold, so the core pales.
LIT: dict[str, tuple[RGB, RGB, RGB]] = {
    "red": ((232, 22, 16), (255, 52, 36), (255, 120, 88)),
    "yellow": ((246, 158, 10), (255, 186, 30), (255, 226, 120)),
    "green": ((14, 214, 138), (44, 244, 172), (170, 255, 222)),
    "white": ((216, 222, 226), (244, 246, 248), (255, 255, 255)),
}
GLASS: dict[str, RGB] = {"red": (66, 14, 12), "yellow": (74, 52, 12), "green": (10, 50, 40), "white": (30, 32, 34)}
BLACK: RGB = (9, 9, 10)
LENSES = {1: ("green",), 2: ("red", "green"), 3: ("red", "yellow", "green"), 4: ("red", "yellow", "green", "green")}
ON_BLACK = ("pedestrian", "bicycle", "pedestrian_bicycle", "tram")  # figures that glow on a dark lens

_UP = np.array([(-0.14, 0.72), (-0.14, -0.05), (-0.5, -0.05), (0, -0.78), (0.5, -0.05), (0.14, -0.05), (0.14, 0.72)])
_LEFT, _RIGHT = _UP[:, ::-1], _UP[:, ::-1] * [-1, 1]
_STANDING = np.array(
    [(-0.2, -0.4), (0.2, -0.4), (0.26, 0.15), (0.16, 0.15), (0.16, 0.85), (-0.16, 0.85), (-0.16, 0.15), (-0.26, 0.15)]
)
_WALKING = np.array(
    [(-0.12, -0.4), (0.16, -0.4), (0.42, 0.05), (0.2, 0.1), (0.46, 0.85), (0.24, 0.85), (0, 0.35), (-0.3, 0.85),
     (-0.5, 0.8), (-0.18, 0.15), (-0.4, 0.1)]
)  # fmt: skip
_BAR = np.array([(-0.75, -0.17), (0.75, -0.17), (0.75, 0.17), (-0.75, 0.17)])


def signal_sprite(sighting: Sighting, shade: Shade) -> tuple[np.ndarray, np.ndarray]:
    """One light's pixels [h, w, 3] uint8 RGB and its silhouette [h, w, 1] float32, h and w those of its box."""
    signal = sighting.signal
    large_wh = max(8, round(signal.width * PX_PER_M)), max(8, round(signal.height * PX_PER_M))
    image = np.zeros((large_wh[1], large_wh[0], 3), np.uint8)
    if signal.direction in ("left", "right"):
        mask = _draw_side(image, signal, shade)
    else:
        mask = _draw_face(image, signal, shade)
        if signal.direction == "front":
            _draw_lenses(image, sighting, shade)
    box_wh = int(sighting.box.width), int(sighting.box.height)
    # premultiplied, so that shrinking does not mix the black outside the silhouette into its rim
    solid = np.dstack([image * (mask[..., None] / 255.0), mask]).astype(np.float32)
    small = cv2.resize(solid, box_wh, interpolation=cv2.INTER_AREA)
    alpha = small[..., 3:] / 255
    return (small[..., :3] / np.maximum(alpha, 1e-3)).clip(0, 255).astype(np.uint8), alpha


def lamp_centres(sighting: Sighting) -> list[tuple[float, float, float, str]]:
    """The burning lenses as x, y, radius (pixels of the frame) and colour: where the light glows."""
    signal, box = sighting.signal, sighting.box
    if signal.direction != "front":
        return []
    colours, lit = _lens_colours(signal), _lit_lenses(sighting)
    radius = _lens_radius(signal) * box.width / signal.width
    return [
        (box.x1 + x * box.width, box.y1 + y * box.height, radius, colours[i])
        for i, (x, y) in enumerate(_lens_places(signal))
        if i in lit
    ]


def _lens_radius(signal: Signal) -> float:
    """Metres; a lens fills most of its module."""
    breadth = min(signal.width, signal.height) if signal.aspects > 1 else signal.width
    return 0.37 * (breadth - (0.12 if signal.framed else 0.02))


def _lens_places(signal: Signal) -> list[tuple[float, float]]:
    """The lenses' middles as shares of the silhouette, red first."""
    along = [(i + 0.5) / signal.aspects for i in range(signal.aspects)]
    length = max(signal.width, signal.height)
    margin = (0.06 if signal.framed else 0.01) / length
    along = [margin + (1 - 2 * margin) * share for share in along]
    return [(0.5, share) if signal.orientation == "vertical" else (share, 0.5) for share in along]


def _lens_colours(signal: Signal) -> tuple[str, ...]:
    return ("white",) * signal.aspects if signal.pictogram == "tram" else LENSES[signal.aspects]


def _lit_lenses(sighting: Sighting) -> set[int]:
    signal = sighting.signal
    if signal.pictogram == "tram":  # a white bar burns whatever it tells the driver: the state is not a colour
        return {signal.track % signal.aspects}
    colours = LENSES[signal.aspects]
    return {colours.index(colour) for colour in sighting.state.split("_") if colour in colours}


def _draw_face(image: np.ndarray, signal: Signal, shade: Shade) -> np.ndarray:
    """Backplate and housing, from the front or the back; returns the silhouette [H, W] uint8."""
    height, width = image.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    corner = round(0.1 * min(width, height))
    _rounded(mask, 0, 0, width, height, corner, (255,))
    front = signal.direction == "front"
    margin = round((0.06 if signal.framed else 0.0) * PX_PER_M)
    if signal.framed:
        _rounded(image, 0, 0, width, height, corner, shade((226, 226, 222) if front else (96, 98, 100)))
        rim = margin // 4 if front else 1
        _rounded(image, rim, rim, width - rim, height - rim, corner, shade((20, 21, 22) if front else (70, 72, 74)))
    red, green, blue = signal.colour
    body = (red, green, blue) if front else (red + 22, green + 22, blue + 22)
    _rounded(image, margin, margin, width - margin, height - margin, corner, shade(body))
    seam = shade((red // 2, green // 2, blue // 2))
    for x, y in _lens_places(signal)[:-1]:
        step = (0.5 / signal.aspects) * (1 - 2 * margin / max(width, height))
        if signal.orientation == "vertical":
            row = round((y + step) * height)
            cv2.line(image, (margin, row), (width - margin, row), seam, 2)
        else:
            column = round((x + step) * width)
            cv2.line(image, (column, margin), (column, height - margin), seam, 2)
    if not front:
        cv2.rectangle(image, (width // 2 - 4, 0), (width // 2 + 4, height), shade((104, 108, 108)), -1)
    light = np.linspace(1.22, 0.8, width, dtype=np.float32)[None, :, None]  # the sky is brighter on one side
    image[:] = np.clip(image * light, 0, 255).astype(np.uint8)
    return mask


def _draw_side(image: np.ndarray, signal: Signal, shade: Shade) -> np.ndarray:
    """A housing seen from the side, visors towards where it shines; returns the silhouette [H, W] uint8."""
    height, width = image.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    body = round(0.56 * width)
    red, green, blue = signal.colour
    for target, paint, visor in (
        (mask, (255,), (255,)),
        (image, shade((red + 14, green + 14, blue + 14)), shade(BLACK)),
    ):
        _rounded(target, 0, 0, body, height, round(0.08 * width), paint)
        for i in range(signal.aspects):
            top, module = i * height / signal.aspects, height / signal.aspects
            hood = [
                (body - 2, 0.08),
                (width, 0.14),
                (width, 0.3),
                (body + 0.4 * (width - body), 0.82),
                (body - 2, 0.88),
            ]
            points = np.array([(x, top + share * module) for x, share in hood])
            _fill(target, points, visor)
    if signal.direction == "left":
        image[:], mask = image[:, ::-1].copy(), mask[:, ::-1].copy()
    return mask


def _draw_lenses(image: np.ndarray, sighting: Sighting, shade: Shade) -> None:
    signal, lit = sighting.signal, _lit_lenses(sighting)
    height, width = image.shape[:2]
    radius = _lens_radius(signal) * PX_PER_M
    for i, (colour, (x, y)) in enumerate(zip(_lens_colours(signal), _lens_places(signal), strict=True)):
        centre = np.array([x * width, y * height])
        _disc(image, centre, radius * 1.16, shade(BLACK))
        if i in lit:
            _draw_burning(image, centre, radius, colour, _figure(signal.pictogram, colour, i, radius, centre, image))
        else:
            _disc(image, centre, radius, shade(GLASS[colour]))
            _disc(image, np.add(centre, (0, 0.35 * radius)), radius * 0.5, shade(_brighter(GLASS[colour])))
        hood = (round(centre[0]), round(centre[1] - 0.04 * radius))
        axes = (round(radius * 1.1), round(radius * 1.12))
        cv2.ellipse(image, hood, axes, 0, 190, 350, shade((14, 15, 16)), max(2, round(radius * 0.2)), cv2.LINE_AA)


def _brighter(colour: RGB) -> RGB:
    red, green, blue = (min(255, round(channel * 1.3) + 4) for channel in colour)
    return red, green, blue


def _draw_burning(image: np.ndarray, centre: np.ndarray, radius: float, colour: str, figure: np.ndarray | None) -> None:
    """A lit lens; ``figure`` [H, W] float32 is the share of each pixel that lets the light through."""
    lamp = image.copy()
    for share, rgb in zip((1.0, 0.8, 0.5), LIT[colour], strict=True):
        _disc(lamp, centre, radius * share, rgb)
    if figure is None:
        image[:] = lamp
        return
    _disc(image, centre, radius, BLACK)
    image[:] = (image + (lamp.astype(np.float32) - image) * figure[..., None]).astype(np.uint8)


def _figure(
    pictogram: str, colour: str, lens: int, radius: float, centre: np.ndarray, image: np.ndarray
) -> np.ndarray | None:
    """Where a lit lens shows light [H, W] float32, or None for all of it.

    German arrows: a black arrow on the red or yellow lens, a green arrow on a black one.
    """
    if pictogram in ("circle", "unknown"):
        return None
    mask = np.zeros(image.shape[:2], np.uint8)
    _PICTOGRAMS[pictogram](mask, centre, radius, colour, lens)
    figure = mask.astype(np.float32) / 255
    if pictogram in ON_BLACK or colour == "green":
        return figure
    lens_disc = np.zeros_like(mask)
    _disc(lens_disc, centre, radius, (255,))
    return lens_disc.astype(np.float32) / 255 * (1 - figure)


def _arrows(*shapes: np.ndarray) -> Callable[..., None]:
    def draw(mask: np.ndarray, centre: np.ndarray, radius: float, colour: str, lens: int) -> None:
        for shape in shapes:
            _fill(mask, centre + radius * shape, (255,))

    return draw


def _person(mask: np.ndarray, centre: np.ndarray, radius: float, colour: str, lens: int) -> None:
    _disc(mask, np.add(centre, (0, -0.66 * radius)), 0.2 * radius, (255,))
    _fill(mask, centre + radius * (_WALKING if colour == "green" else _STANDING), (255,))


def _bicycle(mask: np.ndarray, centre: np.ndarray, radius: float, colour: str, lens: int) -> None:
    stroke = max(2, round(0.13 * radius))
    left, right, seat, bar, pedal = (
        tuple(np.round(centre + radius * np.array(at)).astype(int).tolist())
        for at in ((-0.48, 0.28), (0.48, 0.28), (-0.22, -0.3), (0.3, -0.34), (0.0, 0.28))
    )
    for wheel in (left, right):
        cv2.circle(mask, wheel, round(0.33 * radius), 255, stroke, cv2.LINE_AA)
    for a, b in ((left, seat), (seat, bar), (bar, right), (seat, pedal), (pedal, bar), (left, pedal)):
        cv2.line(mask, a, b, 255, stroke, cv2.LINE_AA)


def _person_and_bicycle(mask: np.ndarray, centre: np.ndarray, radius: float, colour: str, lens: int) -> None:
    _person(mask, np.add(centre, (-0.42 * radius, -0.1 * radius)), 0.62 * radius, colour, lens)
    _bicycle(mask, np.add(centre, (0.36 * radius, 0.16 * radius)), 0.6 * radius, colour, lens)


def _tram_bar(mask: np.ndarray, centre: np.ndarray, radius: float, colour: str, lens: int) -> None:
    _fill(mask, centre + radius * (_BAR if lens == 0 else _BAR[:, ::-1]), (255,))


_PICTOGRAMS: dict[str, Callable[..., None]] = {
    "arrow_straight": _arrows(_UP),
    "arrow_left": _arrows(_LEFT),
    "arrow_right": _arrows(_RIGHT),
    "arrow_straight_left": _arrows(_UP * [0.8, 0.95] + [0.2, 0], _LEFT * [0.8, 0.75] + [-0.12, 0.3]),
    "pedestrian": _person,
    "bicycle": _bicycle,
    "pedestrian_bicycle": _person_and_bicycle,
    "tram": _tram_bar,
}


def _fill(image: np.ndarray, points: np.ndarray, colour: tuple[int, ...]) -> None:
    cv2.fillPoly(image, [np.round(points * 16).astype(np.int32)], colour, cv2.LINE_AA, shift=4)


def _disc(image: np.ndarray, centre: np.ndarray, radius: float, colour: tuple[int, ...]) -> None:
    x, y = (round(float(c) * 16) for c in centre)
    cv2.circle(image, (x, y), round(radius * 16), colour, -1, cv2.LINE_AA, shift=4)


def _rounded(image: np.ndarray, x1: int, y1: int, x2: int, y2: int, corner: int, colour: tuple[int, ...]) -> None:
    """A filled rectangle with round corners, half-open like every box here."""
    cv2.rectangle(image, (x1 + corner, y1), (x2 - corner - 1, y2 - 1), colour, -1)
    cv2.rectangle(image, (x1, y1 + corner), (x2 - 1, y2 - corner - 1), colour, -1)
    for x in (x1 + corner, x2 - corner - 1):
        for y in (y1 + corner, y2 - corner - 1):
            cv2.circle(image, (x, y), corner, colour, -1, cv2.LINE_AA)
