"""The documentation site: it is built strictly, shows what a host of the repository shows, and needs no other host."""

import importlib
import os
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from recipes import site

ROOT = Path(__file__).parents[2]
COUNTED = ("li", "table", "tr", "td", "th", "pre", "h1", "h2", "h3", "h4", "em", "strong", "img", "code", "blockquote")
LOADED = re.compile(r"""(?:<(?:script|img|iframe|source)\b[^>]*\ssrc=|<link\b[^>]*\shref=|url\()["']?(?:https?:)?//""")
"""What a browser would fetch from another host."""


class Shown(HTMLParser):
    """Counts the elements of a page, or of its article, and keeps its words."""

    def __init__(self, text: str, inside: bool) -> None:
        super().__init__()
        self.inside, self.count, self.words, self.quoted = inside, Counter[str](), list[str](), 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.inside |= tag == "article"
        self.quoted += tag == "pre"
        if self.inside and tag in COUNTED:
            self.count[tag] += 1

    def handle_endtag(self, tag):
        self.inside &= tag != "article"
        self.quoted -= tag == "pre"

    def handle_data(self, data):
        if self.inside and not self.quoted:
            self.words += re.findall(r"\w+", data)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": "src"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def _place(built: Path, page: Path) -> Path:
    place = page.relative_to(ROOT)
    return built / (place.with_name("index.html") if place.name == "README.md" else place.with_suffix(".html"))


@pytest.mark.slow
def test_a_page_shows_what_a_host_of_the_repository_shows(built):
    pages = site.linked({ROOT / name for name in site.FIRST} | {*(ROOT / "docs" / "results").rglob("*.md")})
    others = dict[str, tuple[Counter[str], Counter[str]]]()
    markdown = MarkdownIt("gfm-like", {"linkify": False, "html": True})
    for page in pages:
        if page.suffix == ".md":
            ours = Shown(_place(built, page).read_text(encoding="utf-8"), inside=False)
            theirs = Shown(markdown.render(page.read_text(encoding="utf-8")), inside=True)
            if ours.count != theirs.count or ours.words != theirs.words:
                others[str(page)] = (ours.count - theirs.count, theirs.count - ours.count)
    assert len(pages) > 80
    assert others == {}


@pytest.mark.slow
def test_the_site_fetches_nothing_from_other_hosts(built):
    for path in (*built.rglob("*.html"), *built.rglob("*.css")):
        assert not LOADED.search(path.read_text(encoding="utf-8")), path


@pytest.mark.slow
def test_the_reference_has_every_public_name(built):
    for module in {*site.modules()[1:]} - {*site.HOSTED}:
        page = (built / "api" / f"{module}.html").read_text(encoding="utf-8")
        for name in vars(importlib.import_module(module)).get("__all__", ()):
            assert re.search(rf'<h2 id="steindiff\.[\w.]*\b{name}"', page), f"{module}.{name}"


def test_the_reference_is_of_what_users_import():
    pages = {module: site.reference(module) for module in site.modules()}
    assert "[`sample`][steindiff.sampling.sample]: Integrate" in pages["steindiff"]
    assert "::: steindiff.calibration.calibrate.calibrate\n" in pages["steindiff.calibration"]
    assert pages["steindiff.grids"] == "# steindiff.grids\n\n::: steindiff.grids\n"


def test_the_site_has_what_its_pages_link_to(tmp_path, monkeypatch):
    monkeypatch.setattr(site, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "program.py").touch()
    (tmp_path / "NOTES.md").write_text("[program](program.py) [gone](gone.py)", encoding="utf-8")
    page = tmp_path / "docs" / "page.md"
    page.write_text("[notes](../NOTES.md#here) [elsewhere](https://host/x.md) [outside](../../x.md)", encoding="utf-8")
    assert site.linked({page}) == {page, tmp_path / "NOTES.md", tmp_path / "program.py"}
