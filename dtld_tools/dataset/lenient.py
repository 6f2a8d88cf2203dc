"""A dataset's files in, what of them can be read out: what cannot is one line of text each, so that nothing hides it.

`dtld_tools.dataset.dataset` reads the same files and stops at the first thing wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import fastjsonschema

import schemas
from dtld_tools.errors import DatasetError
from schemas import strict
from schemas.strict import StrictError


def read_lines(path: Path, schema: str, defects: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The byte offset and the object of each line that satisfies its schema; the others become ``defects``.

    Raises DatasetError if there is no such file.
    """
    check, offset = validator(schema), 0
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    found = check(strict.load_json(line))
                except (StrictError, fastjsonschema.JsonSchemaValueException) as error:
                    reason = str(error).replace("data", "the line", 1)
                    defects.append(f"{path.name}: line {number}: {reason}; make the dataset again")
                else:
                    yield offset, found
                offset += len(line)
    except OSError as error:
        raise DatasetError(
            f"{path}: {error.strerror}; expected a dataset made by dtld convert, tile or prepare "
            "(--near-duplicates alone works on any YOLO dataset)"
        ) from error


def read_report(path: Path, defects: list[str]) -> tuple[dict[str, Any], bool]:
    """report.json, empty where there is none, and whether it satisfies its schema; if not, ``defects`` says why."""
    try:
        report = strict.read_json(path)
        # The reports of earlier versions have no notes.
        validator("report")({"notes": [], **report} if isinstance(report, dict) else report)
    except OSError as error:
        defects.append(f"{path.name}: {error.strerror}, expected the report of dtld")
        return {}, False
    except StrictError as error:
        defects.append(f"{path.name}: {error}; expected the report of dtld")
        return {}, False
    except fastjsonschema.JsonSchemaValueException as error:
        defects.append(f"{path.name}: {str(error).replace('data', 'the report', 1)}")
        return report if isinstance(report, dict) else {}, False
    return report, True


def read_data_yaml(path: Path) -> Mapping[str, Any]:
    """A dataset's data.yaml. Raises DatasetError."""
    try:
        document = strict.read_yaml(path)
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}; expected a YOLO dataset's data.yaml") from error
    except StrictError as error:
        raise DatasetError(f"{path}: {error}; expected a YOLO dataset's data.yaml") from error
    if not isinstance(document, dict):
        raise DatasetError(f"{path}: got no keys, expected train, val, test and names")
    return document


@lru_cache
def validator(schema: str) -> Callable[[Any], Any]:
    """A function that raises JsonSchemaValueException unless its argument satisfies a schema of schemas/."""
    return fastjsonschema.compile(schemas.load(schema), use_default=False)
