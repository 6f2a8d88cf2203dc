"""Values of files in, text that is safe to print out: one line, printable, not endless. For both commands."""

from __future__ import annotations

LINE = 2000  # characters of a printed line; the longest of ours, a table of cities, has some hundreds


def one_line(value: object, limit: int = LINE) -> str:
    """A value as one printable line: what would begin another line or move the cursor is escaped, the middle left out.

    >>> one_line("red\\nerror: all is lost\\x1b[2K")
    'red\\\\nerror: all is lost\\\\x1b[2K'
    >>> one_line("a" * 50 + "b" * 50, limit=30)
    'aaaaaaaaaaaaa ... bbbbbbbbbbbb'
    """
    text = str(value)
    if len(text) > limit:
        head = (limit - 5 + 1) // 2
        text = f"{text[:head]} ... {text[len(text) - (limit - 5 - head) :]}"
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
