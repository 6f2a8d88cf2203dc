"""The distillation methods by name: a function each here, a row each in `kd.methods.facts`."""

from __future__ import annotations

from kd.methods import features, fgfi, heads, queries
from kd.methods.batch import Method

METHODS: dict[str, Method] = {**fgfi.METHODS, **features.METHODS, **heads.METHODS, **queries.METHODS}
