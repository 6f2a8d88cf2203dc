"""Options that several commands of `kd` take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DataOption = Annotated[Path, typer.Option(help="A YOLO dataset's data.yaml.", show_default=False)]
DeviceOption = Annotated[str | None, typer.Option(metavar="cpu|0", help="Processor or GPU.  [default: a GPU if any]")]
SizeOption = Annotated[
    int | None, typer.Option("--imgsz", help="Image size in pixels, a multiple of 32.  [default: as trained]")
]
RayAddressOption = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="A running cluster, such as auto.  [default: this machine]")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


def is_given(context: typer.Context, name: str) -> bool:
    """Whether a parameter has its value from the line."""
    return getattr(context.get_parameter_source(name), "name", None) == "COMMANDLINE"


def is_quiet(context: typer.Context) -> bool:
    """Whether --quiet stands on the line."""
    return (context.obj or {}).get("quiet", False)
