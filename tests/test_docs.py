"""README.md and docs/ are true of what is here: commands, options with their defaults, links, names of files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from dtld_tools.commands import app as dtld_app
from kd.commands import app as kd_app
from tests.dtld_data import REPOSITORY

TOOLS = {"dtld": dtld_app, "kd": kd_app}
README = REPOSITORY / "README.md"
PAGES = sorted([README, *(REPOSITORY / "docs").rglob("*.md")])
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def commands_of(tool: str) -> dict[str, list]:
    """Each command of a tool and its options, as Typer has them."""
    group = typer.main.get_command(TOOLS[tool])
    return {
        name: [option for option in command.params if option.param_type_name == "option"]
        for name, command in group.commands.items()
    }


def default_of(option) -> str:
    """A default as docs/options.md writes it: that of the help text where that states one, else the value's."""
    stated = re.search(r"\[default: (.+)\]$", option.help)
    if option.required:
        return "required"
    if stated:
        return stated[1]
    return "off" if option.default is False else str(option.default or ("-" if option.default != 0 else 0))


def documented(text: str, tool: str) -> set[tuple[str, str, str]]:
    """(command, option, default) of every row of a tool's tables in docs/options.md."""
    part = re.search(rf"^## {tool}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)[1]
    rows = re.findall(r"^\| `(--[\w-]+)` \| ([\w, -]+) \| ([^|]+) \|", part, re.MULTILINE)
    return {(command, option, default) for option, commands, default in rows for command in commands.split(", ")}


@pytest.mark.parametrize("tool", TOOLS)
def test_every_option_is_documented_with_its_default_and_nothing_else_is(tool):
    there = {
        (name, option.opts[0], default_of(option)) for name, found in commands_of(tool).items() for option in found
    }
    assert documented(text_of(REPOSITORY / "docs" / "options.md"), tool) == there


def test_a_missing_option_and_a_wrong_default_are_seen():
    page = text_of(REPOSITORY / "docs" / "options.md")
    whole = documented(page, "dtld")
    assert whole - documented(page.replace("| `--mask-partial` | tile, prepare |", "| tile |"), "dtld") == {
        ("tile", "--mask-partial", "off"), ("prepare", "--mask-partial", "off"),
    }  # fmt: skip
    assert documented(page.replace("| 640 |", "| 641 |"), "dtld") != whole


@pytest.mark.parametrize("tool", TOOLS)
def test_the_readme_lists_every_command_and_nothing_else(tool):
    listed = re.findall(rf"^\| `{tool} ([\w-]+)` \|", text_of(README), re.MULTILINE)
    assert sorted(listed) == sorted(commands_of(tool))


def test_the_readme_is_read_in_one_sitting():
    assert len(text_of(README).splitlines()) <= 200


def anchors_of(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page: lower case, no punctuation, dashes for blanks."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    """The links of a page into this repository whose file or heading is not there."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)):
        place, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue  # another site
        target = (page.parent / place).resolve() if place else page
        is_there = target.exists() and target.is_relative_to(REPOSITORY)
        if not is_there or (anchor and anchor not in anchors_of(text if target == page else text_of(target))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_link_leads_to_a_file_and_a_heading(page):
    assert not broken_links(page, text_of(page))


def test_a_broken_link_is_seen():
    text = "# A `b`, c\n[1](docs/no.md) [2](#a-b-c) [3](#nothing) [4](docs/api.md#kd) [5](docs/api.md#no) [6](../x)\n"
    assert broken_links(README, text) == ["docs/no.md", "#nothing", "docs/api.md#no", "../x"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_files_of_ours_that_a_page_names_exist(page):
    named = re.findall(r"`((?:kd|dtld_tools|schemas|tests|benchmarks|findings|docs)/[\w./-]+)`", text_of(page))
    assert not [name for name in named if not (REPOSITORY / name).exists()]


def test_every_page_is_reached_from_the_readme():
    reached, left = set(), [README]
    while left:
        page = left.pop()
        reached.add(page)
        links = re.findall(r"\]\(([^)\s#]+\.md)[^)]*\)", text_of(page))
        left += {(page.parent / link).resolve() for link in links if not link.startswith("http")} - reached
    assert reached >= set(PAGES)


def test_the_tests_that_the_list_of_refusals_names_exist():
    rows = re.findall(r"^\|.*\| ([^|]+) \|$", text_of(REPOSITORY / "docs" / "refused.md"), re.MULTILINE)
    named = [name for row in rows for name in row.split(", ") if name.split("/")[-1].startswith("test_")]
    assert len(named) > 30
    assert not [name for name in named if not (REPOSITORY / "tests" / f"{name}.py").exists()]


def test_the_citation_is_of_this_version():
    version = re.search(r'^version = "(.+)"$', text_of(REPOSITORY / "pyproject.toml"), re.MULTILINE)[1]
    assert f"\nversion: {version}\n" in text_of(REPOSITORY / "CITATION.cff")
