"""Rows that others have published, to stand beside our own, marked as theirs.

In: a YAML, JSON or CSV file of the user's, or the seed paper's rows, which are shipped. Out: Published values.
Invariant: what is shown is as it was published, with its source; what cannot be right in it is said, not mended.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from statistics import fmean
from typing import Any

import fastjsonschema

import schemas
from kd.errors import DataError
from schemas import strict

NUMBERS = ("gflops", "params_m", "map50", "map50_95", "inference_ms")
SCORES = {"map50": "mAP50", "map50_95": "mAP50-95"}
SHIPPED = {"paper": Path(__file__).with_name("paper.yaml")}


@dataclass(frozen=True)
class Published:
    """A row of a table that others have published; scores in per cent, ``params_m`` in millions.

    ``per_class`` has the scores of every class: ``{"red": {"map50": 45.25, "map50_95": 18.9}, ...}``.
    """

    model: str
    source: str
    map50_95: float
    map50: float | None = None
    teacher: str | None = None
    method: str | None = None
    gflops: float | None = None
    params_m: float | None = None
    data: str | None = None
    inference_ms: float | None = None
    per_class: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """'yolov5n', or 'yolov5n from yolov5l' of a distilled row."""
        return f"{self.model} from {self.teacher}" if self.teacher else self.model


def file_of(spec: str | Path) -> Path:
    """The file that is meant: a path, or the name of shipped rows, ``paper``."""
    return Path(spec) if Path(spec).is_file() else SHIPPED.get(str(spec), Path(spec))


def read_published(spec: str | Path) -> list[Published]:
    """The rows of a file by schemas/published.schema.json; DataError names the row and the column.

    CSV has the same names in its first line, and an empty cell for what is not known; it has no ``per_class``.
    """
    path = file_of(spec)
    try:
        rows = _csv_rows(path) if path.suffix.lower() == ".csv" else strict.read_document(path)
    except OSError as error:
        raise DataError(f"{path}: got {error.strerror}, expected a YAML, JSON or CSV file of published rows") from error
    except (ValueError, csv.Error) as error:
        line = " ".join(str(error).split())[:160]
        raise DataError(f"{path}: got nothing readable ({line}), expected YAML, JSON or CSV") from error
    check = fastjsonschema.compile(schemas.load("published"), use_default=False)
    try:
        check(rows)
    except fastjsonschema.JsonSchemaValueException as error:
        raise DataError(f"{path}: {_complaint(error)}") from error
    return [Published(**row) for row in rows]


def contradictions(rows: Iterable[Published]) -> Iterator[str]:
    """The scores that are not the mean of their classes', by more than the digits that they are given with explain.

    >>> one = {"red": {"map50_95": 20.0}, "green": {"map50_95": 10.0}}
    >>> list(contradictions([Published("n", "x", 15.1, per_class=one), Published("s", "x", 15.2, per_class=one)]))
    ['s: mAP50-95 15.2, of its classes 20.0 and 10.0, whose mean is 15.0']
    """
    for row in rows:
        for key, name in SCORES.items():
            whole, parts = getattr(row, key), [scores[key] for scores in row.per_class.values() if key in scores]
            if whole is None or not parts or len(parts) < len(row.per_class):
                continue
            mean = fmean(parts)
            if abs(whole - mean) > _half_digit(whole) + fmean(map(_half_digit, parts)) + 1e-9:
                yield (
                    f"{row.title}: {name} {whole}, of its classes {' and '.join(map(str, parts))}, whose mean is "
                    f"{round(mean, 3)}"
                )


def _half_digit(value: float) -> float:
    """Half a unit of the last digit: what a figure may be off by rounding."""
    return 0.5 * 10.0 ** int(Decimal(str(value)).as_tuple().exponent)


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    """Rows as the schema has them: cells that are empty left out, numbers where numbers belong if they are some."""
    with path.open("rb") as stream:
        content = stream.read(strict.MAX_YAML_BYTES + 1)
    if len(content) > strict.MAX_YAML_BYTES:
        raise ValueError(f"more than {strict.MAX_YAML_BYTES} bytes")
    text = content.decode("utf-8-sig")
    if "\0" in text:
        raise ValueError(f"NUL at character {text.index(chr(0))}")
    rows = csv.DictReader(io.StringIO(text, newline=""), restkey="a cell beyond the first line's", strict=True)
    for name, times in Counter(rows.fieldnames or ()).items():
        if times > 1:
            raise ValueError(f"the column {name!r} {times} times")
    return [{key: _number(key, cell) for key, cell in row.items() if cell} for row in rows]


def _number(key: str, cell: Any) -> Any:
    """A cell's number where one belongs; a text, and NaN and infinity too, is left for the schema to refuse."""
    try:
        number = float(cell) if key in NUMBERS else cell
    except (ValueError, TypeError):
        return cell
    return number if key not in NUMBERS or math.isfinite(number) else cell


def _complaint(error: fastjsonschema.JsonSchemaValueException) -> str:
    """'row 2: map50: got 'high', expected a number' from the schema's words; rows count from 1."""
    place = ": ".join(
        [f"row {int(part) + 1}" if part.isdecimal() else part for part in map(str, error.path[1:])] or ["rows"]
    )
    expected = error.message.removeprefix(error.name or "").strip().removeprefix("must ")
    for theirs, ours in (
        ("be number", "be a number"),
        ("be array", "be a list of rows"),
        ("be string", "be a text"),
        ("be object", "be a mapping"),
    ):
        expected = expected.replace(theirs, ours)
    hint = "; scores are in per cent, not shares of 1" if error.path[-1] in ("map50", "map50_95") else ""
    return f"{place}: got {str(error.value)[:80]!r}, expected it to {expected}{hint}"
