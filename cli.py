"""The frame around both commands: entry points, exit codes, error lines. The commands stand in their packages.

Exit codes: 0 done; 1 the input or the environment is wrong, one line on stderr; 2 wrong usage; 130 Ctrl-C.
"""

import os
import sys
import warnings
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Annotated

import typer

from schemas.text import one_line

MESSAGE = 900  # characters of an error; what is left out of a longer one is in the middle
GLOBAL_FLAGS = ("--quiet", "--debug")
WITH_CHILDREN = frozenset({"train", "sweep"})  # commands of kd whose child processes print on stderr too


def dtld() -> None:
    """Entry point of the console script ``dtld``."""
    _hush_libraries()
    from dtld_tools.commands import app
    from dtld_tools.errors import DtldError, UsageError

    run("dtld", app, DtldError, UsageError)


def kd() -> None:
    """Entry point of the console script ``kd``."""
    if not WITH_CHILDREN & set(sys.argv[1:]):
        _hush_libraries()
    from kd.commands import app
    from kd.errors import KdError, UsageError

    run("kd", app, KdError, UsageError)


def run(
    name: str,
    app: typer.Typer,
    expected_error: type[Exception],
    usage_error: type[Exception],
    arguments: Sequence[str] | None = None,
) -> None:
    """Run an app with the flags that both share, then leave with an exit code. Always raises SystemExit."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # A name that the terminal's encoding lacks is printed in escapes; it is no reason to fail.
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # The shared flags may stand anywhere on the line; Typer wants them before the command.
    leading = [flag for flag in arguments if flag in GLOBAL_FLAGS]
    rest = [argument for argument in arguments if argument not in GLOBAL_FLAGS]
    app.callback()(_shared_flags(name))
    try:
        for argument in arguments:
            if "\0" in argument:
                raise usage_error(f"{argument!r}: got NUL in an argument, expected text: no file has such a name")
        with warnings.catch_warnings():
            if "--debug" not in leading:  # torch's and others' name no file, and no user of the command can act on them
                warnings.simplefilter("ignore")
            app([*leading, *rest], prog_name=name)
    except expected_error as error:
        _fail(error, 2 if isinstance(error, usage_error) else 1, leading)
    except (OSError, MemoryError) as error:
        _fail(error, 1, leading)
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        _fail(error, 1, leading, f"{name} needs more than the base install (pip install 'dtld-kd[kd]'): ")
    except Exception as error:  # a defect of ours: still one line, and how to see more
        _fail(error, 1, leading, f"{type(error).__name__} (a defect of {name}; please report it with --debug): ")


def _hush_libraries() -> None:
    """Keep stdout and stderr for this program's own lines: what C libraries (libpng, MNN) print there is lost.

    It names no file, this program reports the same by name, and on stdout it would stand before the JSON. With
    ``--debug`` it is shown.
    """
    if "--debug" in sys.argv[1:]:
        return
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        try:
            own = os.dup(number)
            nowhere = os.open(os.devnull, os.O_WRONLY)
        except OSError:  # it is closed
            continue
        encoding = getattr(stream, "encoding", None) or "utf-8"
        # By lines, so that a full disk or a closed pipe is an error here, not at the interpreter's end.
        setattr(sys, name, open(own, "w", 1, encoding, errors="backslashreplace"))  # noqa: SIM115
        os.dup2(nowhere, number)
        os.close(nowhere)


def _fail(error: Exception, code: int, flags: Sequence[str], kind: str = "") -> None:
    if "--debug" in flags:
        raise error
    message = " ".join(str(error).split()) or type(error).__name__
    print(one_line(f"error: {kind}{message}", MESSAGE), file=sys.stderr)
    sys.exit(code)


def _shared_flags(name: str):  # noqa: ANN202 - a Typer callback, built per app
    def show_version(wanted: bool) -> None:
        if wanted:
            from importlib.metadata import PackageNotFoundError, version  # here, since it is slow to import

            try:
                print(f"{name} {version('dtld-kd')}")
            except PackageNotFoundError:
                print(f"{name} (not installed)")
            raise typer.Exit

    def callback(
        context: typer.Context,
        quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
        debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
        version: Annotated[
            bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version.")
        ] = False,
    ) -> None:
        context.obj = {"quiet": quiet, "debug": debug}

    return callback
