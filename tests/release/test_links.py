"""Every relative link of every page leads to a file that is there, and to a heading that it has."""

import itertools
import re
from functools import cache
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.md")])
PARSER = MarkdownIt("commonmark")
"""Without tables, which are many: a link in a table is a link in a paragraph here."""


@cache
def _tokens(page: Path) -> list[Token]:
    return PARSER.parse(page.read_text(encoding="utf-8"))


def _links(page: Path) -> list[str]:
    if "](" not in page.read_text(encoding="utf-8"):
        return []
    inner = (token for block in _tokens(page) for token in block.children or ())
    found = [str(token.attrs.get("href") or token.attrs.get("src") or "") for token in inner]
    return [link for link in found if link and "://" not in link]


def _slug(heading: Token) -> str:
    """The anchor of a heading, as hosts of repositories and mkdocs make it."""
    text = "".join(token.content for token in heading.children or ())
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


@cache
def _anchors(page: Path) -> set[str]:
    tokens = _tokens(page)
    return {_slug(inner) for token, inner in itertools.pairwise(tokens) if token.type == "heading_open"}


def _broken(page: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = (page.parent / name).resolve() if name else page
    return not target.is_file() or (bool(anchor) and anchor not in _anchors(target))


def test_there_are_pages_with_links():
    assert len(PAGES) > 50
    assert sum(len(_links(page)) for page in PAGES) > 100


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_hold(page):
    assert [link for link in _links(page) if _broken(page, link)] == []


def test_a_wrong_link_would_be_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One head: `x_1`\n\n[a](#one-head-x_1) [b](#two) [c](gone.md) [d](page.md#one)\n", encoding="utf-8")
    assert [link for link in _links(page) if _broken(page, link)] == ["#two", "gone.md", "page.md#one"]
