"""Options of a command in groups: a frozen dataclass declares them once, and a command takes an instance of it.

In: a function with parameters of such classes. Out: the function for Typer, with one option for each of their fields.
Invariant: an option stands in the help where its group stands among the parameters, in the order of the fields.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, get_args, get_type_hints


@dataclass(frozen=True)
class Option:
    """An option in a declaration that does without Typer; it is named as its parameter, and a flag has no ``--no-``."""

    help: str
    metavar: str | None = None


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command with each parameter that is annotated with a dataclass spread into options, for ``@app.command()``.

    >>> @dataclass(frozen=True)
    ... class Size:
    ...     width: Annotated[int, Option("In pixels.")] = 640
    >>> @grouped
    ... def draw(out: str, size: Size) -> None:
    ...     print(out, size)
    >>> draw(out="a.png", width=320)
    a.png Size(width=320)
    """
    groups: dict[str, type] = {}
    parameters = []
    # Not by get_type_hints: before Python 3.11 it hides what is annotated in an Optional where the default is None.
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        hint = parameter.annotation
        if isinstance(hint, type) and is_dataclass(hint):
            groups[parameter.name] = hint
            own = get_type_hints(hint, include_extras=True)
            members = inspect.signature(hint).parameters.values()
            parameters += [_for_typer(member, own[member.name]) for member in members]
        else:
            parameters.append(_for_typer(parameter, hint))

    @functools.wraps(command)
    def spread(**values: Any) -> None:
        made = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**values, **made)

    spread.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # inspect looks for it there
    spread.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return spread


def _for_typer(parameter: inspect.Parameter, hint: Any) -> inspect.Parameter:
    """The parameter with its type hint, in which `typer.Option` stands for an `Option`.

    It takes keywords alone: one without a default may then stand behind a group of options that have defaults.
    """
    option = next((part for part in get_args(hint) if isinstance(part, Option)), None)
    if option:
        import typer

        name = f"--{parameter.name.replace('_', '-')}"
        hint = Annotated[get_args(hint)[0], typer.Option(name, metavar=option.metavar, help=option.help)]
    return parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hint)
