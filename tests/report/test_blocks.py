"""Blocks in all three renderings: one emphasis, foreign text as it is, pictures and parts as files."""

import io
from pathlib import PurePosixPath

import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas
from rich.console import Console

from steindiff.metrics import Value
from steindiff.report import show, write
from steindiff.report.blocks import Bullets, Code, Details, Entry, Figure, Heading, Markup, Part, Table, Text, place, walk
from steindiff.report.figures import drawing, strips, style
from steindiff.report.markdown import escape, markdown
from steindiff.report.numbers import number
from steindiff.report.numbers import show as shown
from steindiff.report.page import page

BLOCKS = [
    Heading("What was found"),
    Text("[red]*plain*[/red] <b>"),
    Bullets((Markup("*Floor*: `n` of **all**"), "one_two")),
    Code("a | b"),
    Table(("name", "value"), (("<r>", Entry("1", "2 ▲", "win")), (Markup("`heun-5`"), "3"))),
    Details("more", (Text("inside"),)),
    Part("metrics/cost", "Costs", (Text("in a file"),)),
]


def printed(blocks, width=80):
    file = io.StringIO()
    show(Console(file=file, width=width), blocks)
    return file.getvalue()


def test_the_terminal_shows_the_same_words():
    text = printed(BLOCKS)
    for words in ("What was found", "[red]*plain*[/red] <b>", "Floor: n of all", "one_two", "a | b", "<r>", "2 ▲"):
        assert words in text
    for words in ("heun-5", "more\ninside ", "Costs\nin a file "):
        assert words in text
    assert "`" not in text


def test_a_long_cell_is_folded_and_not_cut():
    name = "x" * 60
    assert printed([Table(("name",), ((name,),))], width=40).count("x") == 60


def test_our_own_emphasis_is_rendered_and_foreign_text_is_not():
    assert markdown(BLOCKS[2:3]) == "- *Floor*: `n` of **all**\n- one_two\n"
    assert "| `heun-5` | 3 |" in markdown(BLOCKS)
    text = page("t", BLOCKS)
    assert "<li><em>Floor</em>: <code>n</code> of <strong>all</strong></li>" in text
    assert '<th scope="row"><code>heun-5</code></th>' in text
    assert "<p>[red]*plain*[/red] &lt;b&gt;</p>" in text


def test_html_and_images_in_markup_stay_text():
    text = page("t", [Text(Markup("<script>x</script> ![a](http://b/c.png)"))])
    assert "<script>" not in text
    assert "<img" not in text


@pytest.mark.parametrize("name", ["a*b", "_x_", "<b>&|`$1$", "[link](x)", "~~no~~", "plain"])
def test_an_escaped_name_inside_markup_is_itself_everywhere(name):
    block = Text(Markup(f"**{escape(name)}**: x"))
    assert printed([block]).rstrip() == f"{name}: x"


def test_a_report_is_two_documents_and_the_files_they_name(tmp_path):
    image = np.zeros((2, 4, 4, 1), dtype=np.uint8)
    with style():
        canvas = Canvas(figsize=(2, 2), layout="constrained")
        canvas.subplots().plot([0, 1], label="a line")
        figure = drawing("figures/My line", "a line.", canvas, ["a line"])
    rows = strips("samples", "Samples.", ["NFE 5"], [("heun", [image]), ("ddim", [None])])
    write(tmp_path, "steindiff test", [figure, Details("more", (rows,)), Part("parts/one", "One", (figure,))])
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")}
    assert files == {"figures/my-line.png", "samples.png", "parts/one.md", "report.md", "report.html"}
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# steindiff test\n\n![My line](figures/my-line.png)\n\nA line.\n")
    assert "[One](parts/one.md)" in text
    assert (tmp_path / "parts/one.md").read_text().startswith("# One\n\n![My line](../figures/my-line.png)")
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert rows.rows[1] == ("ddim", (b"",))
    assert isinstance(figure, Figure)


def test_names_and_numbers():
    assert place("figures/My model, 2") == "figures/my-model-2"
    assert len(list(walk([Details("a", (Part("b", "c", (Text("d"),)),))]))) == 3
    assert [number(v) for v in (1234.5, float("nan"), None, 0.5)] == ["1.23e+03", "–", "–", "0.5"]
    assert shown(Value(0.5, 0.12), signed=True) == "+0.50 ± 0.12"


def test_no_picture_lies_outside_its_report():
    for name in ("../../x", "/etc/x", "..", "", "figures//x", "figures/" + "x" * 300):
        path = PurePosixPath("report", place(name))
        assert path.parts[0] == "report"
        assert ".." not in path.parts
        assert all(0 < len(piece.encode()) <= 200 for piece in path.parts)
