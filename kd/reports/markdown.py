"""Markdown tables, and the words and numbers in their cells.

In: plain text and numbers. Out: Markdown.
Invariant: no text of anybody's is taken for Markdown's own signs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from schemas.text import one_line

CELL = 1000  # characters; a name of ours has some dozens, a caption some hundreds


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of cells that are Markdown; columns of figures stand to the right."""
    sides = [
        "---:" if rows and all(re.match(r"[*+-]?(\d|$)", cell) for cell in column) else "---"
        for column in zip(*rows, strict=True)
    ] or ["---"] * len(head)
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, sides, *rows])


def text(words: str) -> str:
    r"""Words as Markdown shows them and takes nothing for its own signs, on one line and not endless.

    >>> print(text("a|b *c* not_relevant _d_ <e>"))
    a\|b \*c\* not_relevant \_d\_ \<e\>
    """
    words = one_line(" ".join(words.split()), CELL)
    return re.sub(r"([\\`*\[\]<>|&~]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", words)


def gflops(value: float | None) -> str:
    """Billions of floating point operations, small ones with more digits."""
    return "-" if value is None else f"{value:.{1 if value >= 1 else 2}f}"
