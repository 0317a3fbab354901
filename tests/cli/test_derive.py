"""A command's options are those of its configuration: type, default, least value and help, and what they refuse."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import typer
from typer.testing import CliRunner

from steindiff.cli.derive import options_of


@dataclass(frozen=True)
class Recipe:
    """What to cook.

    Args:
        dish: what it is.
        guests: how many there are;
            each gets a `portion`.
        portion: grams.
        spices: what goes in.
        times: minutes.
        heat: low or high.
        book: where it stands.
        vegan: leave meat out.
        oven: an object.
    """

    LEAST: ClassVar = {"guests": 1}

    dish: str
    guests: int = 4
    portion: float | None = None
    spices: tuple[str, ...] = ("salt",)
    times: tuple[int, ...] = (10, 20)
    heat: Literal["low", "high"] = "low"
    book: Path | None = None
    vegan: bool = False
    oven: object = None


def cooked(*words: str, **options: object) -> tuple[dict[str, object], str]:
    """What a command is given, and what it prints."""
    seen: dict[str, object] = {}

    @options_of(Recipe, flags={"book": "--from"}, dish=("soup", "pie"), **options)
    def command(day: str, guests_too: bool = False, **given: object) -> None:
        """Cook."""
        seen.update(given, day=day, recipe=Recipe(**given) if "dish" in given else None)

    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    return seen, result.output


def test_whole_numbers_may_be_ranges():
    assert cooked("mon", "--dish", "pie", "--times", "3,5-8, 10")[0]["times"] == (3, 5, 6, 7, 8, 10)
    assert cooked("mon", "--dish", "pie", "--times", "soon")[0]["times"] == ("soon",)


def test_what_is_given_and_what_is_not():
    seen, _ = cooked("mon", "--dish", "pie")
    assert seen == {"day": "mon", "dish": "pie", "guests": 4, "heat": "low", "vegan": False, "recipe": Recipe("pie")}
    words = ("--spices", "pepper, f(a,b)", "--times", "5,x", "--from", "a.txt", "--vegan", "--portion", "2")
    seen, _ = cooked("mon", "--dish", "pie", *words)
    assert seen["recipe"] == Recipe("pie", 4, 2.0, ("pepper", "f(a,b)"), (5, "x"), "low", Path("a.txt"), True)


def test_changes_of_a_preset_are_only_what_is_given():
    assert cooked("mon", "--guests", "2", "--spices", "", changes=True)[0] == {"day": "mon", "guests": 2, "recipe": None}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("mon",), "--dish"),
        (("mon", "--dish", "pie", "--guests", "0"), "Invalid value for '--guests'"),
        (("mon", "--dish", "pie", "--guests", "some"), "Invalid value for '--guests'"),
        (("mon", "--dish", "pie", "--oven", "x"), "--oven"),
    ],
)
def test_refusals(words, text):
    seen, output = cooked(*words)
    assert not seen
    assert text in output


def test_help_is_the_docstrings():
    text = " ".join(cooked("--help")[1].split())
    listed = ("What it is. Known: soup, pie.", "Minutes. Comma-separated.")
    assert all(part in text for part in (*listed, "How many there are; each gets a --portion.", "[default: 4]"))
