"""Small charts as inline SVG, in the colours of the page: no script, no file.

In: shares of 1. Out: markup.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

WIDTH, HEIGHT = 360, 230  # of a chart of curves
LEFT, RIGHT, TOP, BOTTOM = 38, 10, 10, 34
BAR_WIDTH, BAR_HEIGHT = 120, 14


def bar(share: float, model: int, interval: Sequence[float] | None = None) -> str:
    """A bar from 0 to a share of the whole width, with a line from end to end of its interval."""
    reach = "" if interval is None else _whisker(*interval)
    width = BAR_WIDTH * min(max(share, 0), 1)
    return (
        f'<svg class="bar m{model}" viewBox="0 0 {BAR_WIDTH} {BAR_HEIGHT}" aria-hidden="true">'
        f'<rect class="ground" width="{BAR_WIDTH}" height="{BAR_HEIGHT}"/>'
        f'<rect class="fill" width="{width:.1f}" height="{BAR_HEIGHT}"/>{reach}</svg>'
    )


def _whisker(low: float, high: float) -> str:
    middle, (x1, x2) = BAR_HEIGHT / 2, (BAR_WIDTH * end for end in (low, high))
    return (
        f'<path class="reach" d="M{x1:.1f} 3V{BAR_HEIGHT - 3}M{x1:.1f} {middle}H{x2:.1f}M{x2:.1f} 3V{BAR_HEIGHT - 3}"/>'
    )


def curves(
    title: str,
    steps: Sequence[float],
    lines: Sequence[tuple[int, str, Sequence[float | None]]],
    mark: float,
) -> str:
    """Lines of shares over confidence: (model, ``recall`` or ``precision``, values), and a mark at the threshold."""
    grid = "".join(
        f'<path class="grid" d="M{_x(0)} {_y(share)}H{_x(1)}"/>'
        f'<text x="{LEFT - 5}" y="{_y(share) + 4}" text-anchor="end">{share:g}</text>'
        f'<text x="{_x(share)}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{share:g}</text>'
        for share in (0, 0.25, 0.5, 0.75, 1)
    )
    drawn = "".join(f'<path class="line m{model} {kind}" d="{_path(steps, values)}"/>' for model, kind, values in lines)
    return (
        f'<svg class="curves" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">{grid}'
        f'<path class="mark" d="M{_x(mark)} {_y(0)}V{_y(1)}"/>{drawn}'
        f'<text x="{_x(0.5)}" y="{HEIGHT - 4}" text-anchor="middle">confidence</text></svg>'
    )


def key(model: int, kind: str) -> str:
    """A bit of such a line, for a legend."""
    return (
        f'<svg class="key" viewBox="0 0 30 8" aria-hidden="true"><path class="line m{model} {kind}" d="M0 4H30"/></svg>'
    )


def _path(steps: Sequence[float], values: Sequence[float | None]) -> str:
    """A path through the values that are there, interrupted where one is not.

    >>> _path([0.0, 0.5, 1.0], [1.0, None, 0.0])
    'M38.0 10.0M350.0 196.0'
    """
    points, pen_up = [], True
    for step, value in zip(steps, values, strict=True):
        if value is not None:
            points.append(f"{'M' if pen_up else 'L'}{_x(step)} {_y(value)}")
        pen_up = value is None
    return "".join(points)


def _x(share: float) -> float:
    return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)


def _y(share: float) -> float:
    return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)
