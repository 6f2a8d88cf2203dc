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
    """An option's help text, name (where it is not the parameter's) and metavar, for modules that do without Typer."""

    help: str
    name: str | None = None
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
    hints = get_type_hints(command, include_extras=True)
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        if is_dataclass(hint):
            groups[parameter.name] = hint
            own = get_type_hints(hint, include_extras=True)
            members = inspect.signature(hint).parameters.values()
            parameters += [member.replace(annotation=_for_typer(own[member.name])) for member in members]
        else:
            parameters.append(parameter.replace(annotation=_for_typer(hint)))

    @functools.wraps(command)
    def spread(**values: Any) -> None:
        made = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**values, **made)

    # A group may have defaults before a parameter that has none, which only keywords allow.
    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    spread.__signature__ = inspect.Signature(keywords)
    spread.__annotations__ = {parameter.name: parameter.annotation for parameter in keywords}
    return spread


def _for_typer(hint: Any) -> Any:
    """A type hint with what Typer knows in place of an `Option`."""
    option = next((part for part in get_args(hint) if isinstance(part, Option)), None)
    if option is None:
        return hint
    import typer

    names = [option.name] if option.name else []
    return Annotated[get_args(hint)[0], typer.Option(*names, metavar=option.metavar, help=option.help)]
