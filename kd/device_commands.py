"""The commands of `kd` on the way to a device; kd/commands.py takes them in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kd.config import TrainConfig
from kd.shared_options import DataOption, DeviceOption, JsonOption, SizeOption, is_quiet
from kd.show import print_exported, print_json, print_quantized, print_run, warn

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


@app.command(epilog="Example: kd prune teacher/weights/best.pt --data tiles/data.yaml --width 0.5 --out runs/half")
def prune(
    context: typer.Context,
    teacher: Annotated[str, typer.Argument(metavar="TEACHER", help="A trained detector (.pt).", show_default=False)],
    data: DataOption,
    out: Annotated[Path, typer.Option(metavar="RUN", help="The run's folder; its layout is RUN.yaml, beside it.")],
    width: Annotated[float, typer.Option(help="The share of the teacher's channels to keep.")] = 1.0,
    depth: Annotated[float, typer.Option(help="The share of its repeated blocks to keep.")] = 1.0,
    method: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=WEIGHT]", help="What to imitate too, as kd train --method.  [default: nothing]"),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = TrainConfig.epochs,
    imgsz: SizeOption = None,
    batch: Annotated[str, typer.Option(metavar="N|auto[:SHARE]", help="Images per step.")] = str(TrainConfig.batch),
    device: DeviceOption = None,
    seed: Annotated[int, typer.Option(help="Decides data order.")] = TrainConfig.seed,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A training setting of Ultralytics, such as lr0=0.002."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --out.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a narrower or shallower form of a teacher, from its weights; kd train --resume goes on with one cut off."""
    from kd.options import train_values
    from kd.training.prune import prune as run
    from kd.ultra.session import DEFAULT_CFG_DICT

    given: dict[str, Any] = {"method": method, "teacher": [teacher] if method else None, "set": settings}
    given |= {"epochs": epochs, "imgsz": imgsz, "batch": batch, "device": device, "seed": seed}
    values = train_values(given, DEFAULT_CFG_DICT)
    quiet = is_quiet(context) or as_json
    result = run(teacher, data, out, width=width, depth=depth, overwrite=overwrite, quiet=quiet, tell=warn, **values)
    print_json(result) if as_json else print_run(out, result)


@app.command(epilog="Example: kd quantize student/weights/best.pt --data tiles/data.yaml --format openvino")
def quantize(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A trained detector (.pt).", show_default=False)],
    data: DataOption,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The file or folder to write.  [default: named after the model]")
    ] = None,
    format: Annotated[str, typer.Option(metavar="openvino|onnx", help="The runtime that will run it.")] = "openvino",
    imgsz: SizeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a detector in INT8, calibrated on training images, and say what that costs and gains."""
    from kd.device.quantize import quantize as write

    found = write(model, data, format=format, out=out, imgsz=imgsz, quiet=is_quiet(context), tell=warn)
    print_json(found) if as_json else print_quantized(found)
