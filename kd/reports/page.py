"""The report as one page that stands alone.

In: the report's Markdown, and its pictures as markup. Out: HTML with its style inside.
Invariant: the page is made of the Markdown, so that both say the same; it loads nothing and runs nothing.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from typing import Any

from markdown_it import MarkdownIt

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --paper: #ffffff; --faint: #d8dee4; --shade: #f6f8fa;
  --link: #0959b8 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --paper: #14181d; --faint: #3a424b; --shade: #1d232a; --link: #79b8ff }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif }
main { max-width: 78rem; margin: 0 auto; padding: 1.5rem clamp(1rem, 4vw, 3rem) 4rem }
h1, h2, h3 { line-height: 1.25; margin: 2.2em 0 .6em }
h1 { margin-top: .5em }
h2 { border-bottom: 1px solid var(--faint); padding-bottom: .25em }
p, li { max-width: 48rem; overflow-wrap: anywhere }
p:has(.scroll) { max-width: none }
a { color: var(--link) }
.scroll { display: block; overflow-x: auto; margin: 1em 0 }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums }
th, td { padding: .35em .6em; border-bottom: 1px solid var(--faint); text-align: left; white-space: nowrap }
th { background: var(--shade); font-weight: 600; vertical-align: bottom }
tbody tr:hover { background: var(--shade) }
svg { display: block; width: 100%; max-width: 50rem; min-width: 32rem; height: auto }
img { display: block; width: 100%; min-width: 44rem; height: auto }
"""
NOTHING_FROM_OUTSIDE = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def to_html(markdown: str, pictures: Mapping[str, str], title: str) -> str:
    """The page: every picture that the Markdown names is replaced by its markup, an SVG or `embedded`'s.

    HTML within the Markdown is text. A picture without markup is a KeyError: the page would be missing it.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.add_render_rule("table_open", _open)
    parser.add_render_rule("table_close", _close)
    parser.add_render_rule("image", _picture)
    body = parser.render(markdown, {"pictures": pictures})
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{NOTHING_FROM_OUTSIDE}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n"
        "</body>\n</html>\n"
    )


def embedded(png: bytes, words: str) -> str:
    """A PNG as an image element that carries its bytes."""
    return f'<img alt="{html.escape(words)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _open(*_: Any) -> str:
    return '<div class="scroll" tabindex="0"><table>\n'


def _close(*_: Any) -> str:
    return "</table></div>\n"


def _picture(_: Any, tokens: Any, index: int, __: Any, env: Mapping[str, Any]) -> str:
    return f'<span class="scroll" tabindex="0">{env["pictures"][tokens[index].attrs["src"]]}</span>'
