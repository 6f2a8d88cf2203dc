"""Options in groups, as Typer reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from schemas.option_groups import Option, grouped


@dataclass(frozen=True)
class Size:
    width: Annotated[int, Option("In pixels.", metavar="N")] = 640
    keep_ratio: Annotated[bool, Option("Or not.")] = False


@dataclass(frozen=True)
class NamedSize(Size):
    names: Annotated[list[str] | None, typer.Option("--name", help="Again for several.")] = None


@pytest.fixture
def app():
    app = typer.Typer(rich_markup_mode=None)

    @app.command()
    @grouped
    def draw(
        context: typer.Context, size: NamedSize, out: Annotated[str, Option("Needed.")], deep: bool = False
    ) -> None:
        """Draw it."""
        given = context.get_parameter_source("width").name == "COMMANDLINE"
        print(size, out, deep, given)

    return app


def test_a_command_takes_an_instance_of_the_group(app):
    words = ["--width", "32", "--keep-ratio", "--name", "a", "--name", "b", "--out", "x", "--deep"]
    line = "NamedSize(width=32, keep_ratio=True, names=['a', 'b']) x True True\n"
    assert CliRunner().invoke(app, words).stdout == line


def test_what_is_not_given_has_the_groups_default(app):
    line = "NamedSize(width=640, keep_ratio=False, names=None) x False False\n"
    assert CliRunner().invoke(app, ["--out", "x"]).stdout == line


def test_options_stand_in_the_order_of_groups_and_fields(app):
    options = typer.main.get_command(app).params
    assert [option.name for option in options[:5]] == ["width", "keep_ratio", "names", "out", "deep"]
    width, ratio, names, out, deep = options[:5]
    assert (width.help, width.metavar, width.default, width.opts) == ("In pixels.", "N", 640, ["--width"])
    assert (ratio.opts, ratio.secondary_opts) == (["--keep-ratio"], [])
    assert (names.opts, names.multiple) == (["--name"], True)
    assert (out.required, width.required) == (True, False)
    assert deep.secondary_opts == ["--no-deep"]  # Typer's own form, where an option is not one of ours
    assert typer.main.get_command(app).help == "Draw it."


@pytest.mark.parametrize("words", [[], ["--out", "x", "--width", "wide"], ["--out", "x", "--size", "3"]])
def test_wrong_usage_stays_wrong_usage(app, words):
    assert CliRunner().invoke(app, words).exit_code == 2
