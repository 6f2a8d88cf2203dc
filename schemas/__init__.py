"""The JSON Schemas of every file that the two tools read or write, loaded by name."""

import json
from functools import lru_cache
from typing import Any


@lru_cache
def load(name: str) -> dict[str, Any]:
    """The schema ``<name>.schema.json`` as a dict.

    >>> load("frame")["title"]
    'A line of frames.jsonl'
    """
    from importlib.resources import files  # here, since it is slow to import and no --help needs it

    return json.loads(files(__name__).joinpath(f"{name}.schema.json").read_text(encoding="utf-8"))
