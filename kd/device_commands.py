"""The commands of `kd` on the way to a device; kd/commands.py takes them in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kd.shared_options import JsonOption, SizeOption
from kd.show import print_exported, print_json, warn

app = typer.Typer()


@app.command(epilog="Example: kd export student/weights/best.pt --format onnx --data tiles/data.yaml")
def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A trained detector (.pt).", show_default=False)],
    format: Annotated[
        str, typer.Option(metavar="onnx|openvino|engine|ncnn|...", help="What to write; a wrong name lists all.")
    ] = "onnx",
    imgsz: SizeOption = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The file or folder to write.  [default: named after the model]")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="A data.yaml: the file is checked on 8 of its training images.  [default: on noise]"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a detector for another runtime, check it against the checkpoint, and say in it what it is."""
    from kd.device.export import export as write

    found = write(model, format=format, imgsz=imgsz, out=out, data=data, tell=warn)
    print_json(found) if as_json else print_exported(found)
