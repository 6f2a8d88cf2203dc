"""Pieces of a page: text, tables, folded galleries, legends.

In: plain values and markup. Out: markup.
Invariant: `text` is the only way for a value of the user's into a page.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from html import escape
from os.path import commonprefix

from kd.analysis.examples import Example
from kd.analysis.measure import Analysis
from kd.analysis.pictures import OF_MODEL, TRUTH, Layer, crop
from kd.show import percent
from schemas.text import one_line

NAME = 120  # characters of a name
Picture = Callable[[Example], str]


def text(value: object) -> str:
    """A value as text within the page, on one line.

    >>> text("<b>" + chr(10))
    '&lt;b&gt;\\\\n'
    """
    return escape(one_line(value, NAME))


def table(columns: Iterable[tuple[str, int]], rows: Iterable[tuple[str, str]]) -> str:
    """A table that scrolls by itself: headings with the columns that they span; of each row its heading and cells."""
    head = "".join(f'<th scope="col" colspan="{span}">{heading}</th>' for heading, span in columns)
    body = "".join(f'<tr><th scope="row">{heading}</th>{cells}</tr>' for heading, cells in rows)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def number(value: str) -> str:
    """A cell with a number."""
    return f'<td class="n">{value}</td>'


def interval(ends: Sequence[float] | None) -> str:
    """A 95 % interval of a share in per cent, in brackets."""
    return "" if ends is None else f' <span class="interval">[{percent(ends[0])}, {percent(ends[1])}]</span>'


def definitions(rows: Iterable[tuple[str, str]]) -> str:
    """What each figure is called, and the figure."""
    return f"<dl>{''.join(f'<div><dt>{name}</dt><dd>{value}</dd></div>' for name, value in rows)}</dl>"


def note(words: str) -> str:
    """A remark in small letters."""
    return f'<p class="note">{words}</p>'


def legend(titles: Sequence[str]) -> str:
    """Which colour is whose, in the pictures."""
    whose = [("label", TRUTH), *zip(titles, OF_MODEL, strict=False)]
    items = (f'<li><span class="swatch" style="border-color:{colour}"></span> {name}</li>' for name, colour in whose)
    words = "thick: what a picture is of; the worst ones, of different frames first"
    return f'<ul class="legend">{"".join(items)}<li>{words}</li></ul>'


def gallery(summary: str, examples: Sequence[Example], picture: Picture, *, is_open: bool = True) -> str:
    """Pictures that can be folded away, under a summary; a sentence where there is none."""
    if not examples:
        return f"<p>{summary}.</p>"
    pictures = "".join(map(picture, examples))
    return (
        f"<details{' open' if is_open else ''}><summary>{summary}</summary>"
        f'<div class="gallery">{pictures}</div></details>'
    )


def pictures(analysis: Analysis) -> Picture:
    """What draws an example: truth in white, each model's sure detections in its colour, and words below.

    Frames are named below the folder that they share.
    """
    shared = commonprefix([frame.name for frame in analysis.frames]).rfind("/") + 1  # noqa: RUF071 - cut at a slash

    def draw(example: Example) -> str:
        frame = analysis.frames[example.frame]
        layers = [Layer(frame.boxes_xyxy, TRUTH)]
        layers += [
            Layer(model.sure[example.frame].boxes_xyxy, colour)
            for model, colour in zip(analysis.models, OF_MODEL, strict=False)
        ]
        jpeg = base64.b64encode(crop(frame, example.box_xyxy, layers)).decode()
        x1, y1, x2, y2 = example.box_xyxy
        place = f"{x2 - x1:.0f} &times; {y2 - y1:.0f} px at {x1:.0f}, {y1:.0f}"
        return (
            f'<figure><img alt="{text(example.words)}, {place}" src="data:image/jpeg;base64,{jpeg}">'
            f"<figcaption><b>{text(example.words)}</b><br>{place}<br>"
            f'<span class="file">{text(frame.name[shared:])}</span></figcaption></figure>'
        )

    return draw
