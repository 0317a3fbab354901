"""The report of a study, on results made here: verdicts, counts, exact cells, what is missing or diverged, both documents."""

import math
import random
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from matplotlib.figure import Figure

from steindiff.metrics import Value, weigh
from steindiff.report.blocks import Bullets, Code, Details, Entry, Heading, Strips, Table, Text
from steindiff.report.figures import _legend
from steindiff.report.markdown import markdown
from steindiff.report.numbers import show
from steindiff.report.page import page
from steindiff.report.published import PUBLISHED, SOURCES
from steindiff.report.study import command, write_report
from steindiff.report.study_figures import every_metric, image_strips, overview, quality, spectra, traces
from steindiff.report.tables import best_table, cost_table, counts, gamma_table, losing_table, quality_table
from steindiff.study.compare import Study, against_best, equal_cost, rival, verdict
from steindiff.study.grid import PRESETS, Cell, Config
from steindiff.study.store import BedSummary, Result

VOID = {"meta", "br", "img", "hr", "link", "input"}
CONFIG = Config(
    beds=("digits_mixture", "digits"),
    solvers=("ddim", "dpmpp_2m"),
    grids=("karras",),
    nfe=(5, 8, 10),
    corrections=("none", "literal", "energy"),
    n=64,
)


def run(cell, energy, change=None, cost=None, endpoint=0.1, **more):
    values = {"energy": Value(energy, 0.001), "endpoint": Value(endpoint, 0.002), "recall": Value(0.5, 0.01)}
    changes = {} if change is None else {"energy": change, "recall": Value(0.1, 0.01), "endpoint": Value(0.0, 0.001)}
    stats = {"nfe": float(cell.nfe), "forward_equivalents": float(cell.nfe if cost is None else cost)}
    return Result(cell, "0" * 16, 64, values, changes, stats, **more)


def failed(cell):
    return Result(cell, "0" * 16, 0, failure="the network's output is NaN at step 2, <sigma> = 3")


def bed(name, **more):
    floors = {"energy": Value(0.0002, 0.0003), "recall": Value(0.55, 0.01)}
    perfect = {"energy": Value(-0.0001, 0.0003), "endpoint": Value(0.0, 0.0)}
    return BedSummary(name, "exact", (1, 8, 8), "256 exact samples", 256, floors, perfect, **more)


def trace(steps, gamma):
    return [{"index": i, "gamma": gamma * (1 + i), "noise_ratio": None if i else 1.2, "eta": []} for i in range(steps)]


def study(results, config=CONFIG, beds=("digits_mixture", "digits")):
    return Study.of(config, results, [bed(name) for name in beds])


def whole_study(config=CONFIG):
    """Every cell but those of the last NFE on the last testbed; "literal" fails on ddim."""
    random.seed(0)
    results = []
    for cell in config.cells():
        if cell.bed == config.beds[-1] and cell.nfe == config.nfe[-1]:
            continue
        if (cell.solver, cell.correction) == ("ddim", "literal"):
            results.append(failed(cell))
            continue
        energy = 1 / cell.nfe**2 * random.uniform(0.5, 1.5)
        change = None if cell.correction == "none" else Value(random.uniform(-0.01, 0.01), 0.002)
        cost = cell.nfe * (2.5 if cell.correction == "literal" else 1)
        shown = torch.randint(0, 256, (3, 8, 8, 1), dtype=torch.uint8)
        results.append(
            run(cell, energy, change, cost, trace=trace(4, 0.5), spectrum=[0.1, -0.2, -1.5, 0.0], shown=shown, seconds=1.5)
        )
    return results


# -- verdicts ------------------------------------------------------------------------------------------------------------

CELL = Cell("digits", "ddim", "karras", 5, "energy")


@pytest.mark.parametrize(
    "metric, change, expected",
    [
        ("energy", Value(-0.21, 0.1), "win"),
        ("energy", Value(0.21, 0.1), "loss"),
        ("energy", Value(-0.2, 0.1), "noise"),
        ("energy", Value(0.0, 0.0), "noise"),
        ("energy", Value(0.1, math.nan), "noise"),
        ("recall", Value(0.21, 0.1), "win"),
        ("coverage", Value(-0.21, 0.1), "loss"),
        ("precision", Value(0.1, 0.1), "noise"),
    ],
)
def test_a_change_counts_beyond_two_standard_errors_in_the_metric_s_direction(metric, change, expected):
    assert weigh(change, metric) == expected


def test_a_run_without_numbers_or_far_from_the_flow_has_diverged_whatever_its_change():
    plain, better = run(CELL.plain, 0.2, endpoint=0.1), Value(-1.0, 0.01)
    assert verdict(run(CELL, 0.1, better), plain, "energy") == "win"
    assert verdict(run(CELL, 0.1, better, endpoint=1.0), plain, "energy") == "win"
    assert verdict(run(CELL, 0.1, better, endpoint=1.01), plain, "energy") == "diverged"
    assert verdict(run(CELL, 0.1, better, endpoint=math.nan), plain, "recall") == "diverged"
    assert verdict(run(CELL, math.inf, better), plain, "energy") == "diverged"
    assert verdict(failed(CELL), plain, "energy") == "diverged"


def test_nothing_to_compare_is_missing_and_not_a_tie():
    plain = run(CELL.plain, 0.2)
    assert verdict(None, plain, "energy") == "missing"
    assert verdict(run(CELL, 0.1), plain, "energy") == "missing"
    assert verdict(run(CELL, 0.1), None, "energy") == "missing"
    assert verdict(run(CELL, 0.1, Value(-1.0, 0.01)), plain, "components") == "missing"
    assert verdict(run(CELL, 0.1, Value(math.nan, math.nan)), plain, "energy") == "missing"


def test_counts_hold_every_comparison_once():
    found = Counter(["win", "win", "loss", "noise", "diverged", "missing", "missing"])
    assert counts(found) == "2 / 1 / 1 / 1 (2 –)"
    assert counts(Counter(["noise"])) == "0 / 0 / 1 / 0"


# -- numbers and tables --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number, signed, text",
    [
        (Value(0.01234, 0.00041), False, "0.01234 ± 0.00041"),
        (Value(0.5, 0.12), True, "+0.50 ± 0.12"),
        (Value(-0.5, 0.12), True, "−0.50 ± 0.12"),
        (Value(321.4, 25.0), False, "321 ± 25"),
        (Value(123456.0, 7000.0), False, "1.2e5 ± 7e3"),
        (Value(3.2e12, math.nan), True, "+3.2e12 ± –"),
        (Value(0.0, 0.0), True, "0 ± 0"),
        (Value(0.25, math.nan), False, "0.25 ± –"),
        (Value(0.1234567, 2e-7), False, "0.1235 ± 2e−7"),
        (Value(math.inf, math.nan), False, "diverged"),
        (Value(math.nan, 0.1), True, "diverged"),
    ],
)
def test_numbers_carry_their_standard_error_and_stay_short(number, signed, text):
    assert show(number, signed) == text


def test_the_layout_of_table_1_cell_by_cell():
    def at(nfe, rule="none", solver="ddim"):
        return Cell("digits", solver, "karras", nfe, rule)

    results = [
        run(at(5), 0.2), run(at(8), 0.1), run(at(10), 0.05),
        run(at(5, "energy"), 0.15, Value(-0.05, 0.01)), run(at(8, "energy"), 0.12, Value(0.02, 0.004)),
        run(at(10, "energy"), 0.0501, Value(0.0001, 0.0004)),
        failed(at(5, "literal")), run(at(8, "literal"), 54321.0, Value(54320.0, 1000.0), endpoint=30.0),
    ]  # fmt: skip
    table = quality_table(study(results), "digits", "karras", "energy")
    assert table.columns == ("solver", "NFE 5", "NFE 8", "NFE 10")
    rows = {row[0]: [str(cell) for cell in row[1:]] for row in table.rows}
    assert list(rows) == [
        "ddim", "ddim + literal", "ddim + energy", "dpmpp_2m", "dpmpp_2m + literal", "dpmpp_2m + energy",
        "floor: independent samples", "floor: reference flow",
    ]  # fmt: skip
    assert rows["ddim"] == ["0.2000 ± 0.0010", "0.1000 ± 0.0010", "0.0500 ± 0.0010"]
    assert rows["ddim + energy"] == [
        "0.1500 ± 0.0010 (−0.050 ± 0.010 ▲)", "0.1200 ± 0.0010 (+0.0200 ± 0.0040 ▼)", "0.0501 ± 0.0010 (+0.00010 ± 0.00040 ·)",
    ]  # fmt: skip
    assert rows["ddim + literal"] == ["✕ diverged", "5.4e4 ± 1e−3 (+5.4e4 ± 1e3 ✕)", "–"]
    assert rows["dpmpp_2m"] == ["–", "–", "–"]
    assert rows["floor: independent samples"] == ["0.00020 ± 0.00030", "″", "″"]
    assert rows["floor: reference flow"] == ["−0.00010 ± 0.00030", "″", "″"]


def test_a_value_without_its_plain_run_is_shown_and_compared_with_nothing():
    table = quality_table(study([run(CELL, 0.2)]), "digits", "karras", "energy")
    assert table.rows[2][1] == Entry("0.2000 ± 0.0010", "–", "missing")


@pytest.mark.parametrize("width", [3.0, 5.0, 12.0])
def test_the_legend_of_many_corrections_is_not_cut_off(width):
    picture = Figure(figsize=(width, 3), layout="constrained")
    axis = picture.subplots()
    names = [f"a_long_correction_{i}" for i in range(9)]
    for i, name in enumerate(names):
        axis.plot([0, 1], [0, i], "x" if i else "-", label=name)
    axis.plot([0, 1], [1, 1], "-", label=names[1])
    _legend(picture, names)
    (legend,) = picture.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    assert legend.get_window_extent().width <= picture.bbox.width
    assert [line.get_marker() for line in legend.get_lines()] == ["None", "None", *["x"] * 7]


def test_a_correction_that_only_diverges_is_in_the_legend_too():
    config = replace(CONFIG, beds=("digits",), solvers=("ddim",))
    results = [r for r in whole_study(config) if r.failure or r.cell.nfe != 10]
    assert all(r.failure for r in results if r.cell.correction == "literal")
    picture = quality(study(results, config, ("digits",)), "digits", "karras", "nfe").svg
    assert [name for name in ("plain", "literal", "energy") if f">{name}</text>" in picture] == ["plain", "literal", "energy"]


def test_a_corrected_run_meets_the_best_plain_run_of_any_solver():
    better, same = Value(-0.5, 0.01), Value(-0.0001, 0.01)
    heun, ddim = (Cell("digits", solver, "karras", 5, "energy") for solver in ("dpmpp_2m", "ddim"))
    found = study([run(heun.plain, 0.9), run(heun, 0.4, better), run(ddim.plain, 0.1), run(ddim, 0.0999, same)])
    assert found.verdict(heun, "energy") == "win"
    assert against_best(found, heun) == "loss", "0.4 against ddim's 0.1, as if independent"
    assert against_best(found, ddim) == "noise", "paired with itself"
    assert against_best(study([run(heun.plain, 0.9), run(heun, 0.4, better)]), heun) == "win"
    assert against_best(study([run(heun.plain, 0.9), failed(heun)]), heun) == "diverged"
    assert against_best(study([run(heun, 0.4, better)]), heun) == "missing"


def test_what_gamma_was_is_told_over_all_steps():
    records = [{"gamma": 1.0, "eta": []}, {"gamma": None, "eta": []}, {"gamma": 0.25}]
    literal = run(replace(CELL, correction="literal"), 0.1, trace=[*records, {"gamma": 0.75}, {"gamma": math.inf}])
    banded = run(CELL, 0.1, trace=[{"gamma": 9.0, "eta": [1.0, 0.5]}])
    plain = run(CELL.plain, 0.1, trace=[{"gamma": 1.0}])
    table = gamma_table(study([literal, banded, plain]))
    assert table.rows == (
        ("digits", "literal", "3", "33%", "0.275", "0.5", "0.725"),
        ("digits", "energy", "2", "50%", "0.5", "0.5", "0.5"),
    )
    still = run(CELL, 0.1, trace=[{"gamma": 1.0}])
    assert gamma_table(study([still])).rows == (("digits", "energy", "1", "100%", "–", "–", "–"),)


def test_losing_cells_are_listed():
    results = whole_study()
    lost = losing_table(study(results), "literal")
    assert [row[2] for row in lost.rows if row[4] != "–"] == ["ddim", "ddim"]
    assert lost.rows[0][3:] == ("–", "5, 8, 10")
    wanted = {r.cell for r in results if r.cell.correction == "energy" and weigh(r.changes["energy"], "energy") == "loss"}
    text = " ".join(row[3] for row in losing_table(study(results), "energy").rows)
    assert wanted
    assert text.count(": +") == len(wanted)


# -- equal cost ----------------------------------------------------------------------------------------------------------


def test_a_dear_correction_meets_the_plain_run_its_cost_would_have_bought():
    plain = [run(Cell("digits", "ddim", "karras", n, "none"), e) for n, e in ((5, 0.2), (8, 0.1), (10, 0.05))]
    corrected = run(CELL, 0.15, Value(-0.05, 0.01), cost=9.5)
    found = study([*plain, corrected])
    assert rival(found, corrected, ["ddim"]) is plain[1]
    assert found.verdict(CELL, "energy") == "win"
    assert equal_cost(found, CELL) == ("loss", False)
    cheap = study([*plain, replace(corrected, stats={"forward_equivalents": 5.0})])
    assert equal_cost(cheap, CELL) == ("win", False), "its own plain run: the paired change"


def test_a_rival_that_could_have_had_more_is_marked():
    plain = [run(Cell("digits", "ddim", "karras", n, "none"), e) for n, e in ((5, 0.2), (10, 0.05))]
    corrected = run(CELL, 0.01, Value(-0.19, 0.01), cost=12)
    found = study([*plain, corrected])
    assert equal_cost(found, CELL) == ("win", True)
    row = best_table(found, "digits", "karras").rows[0]
    assert [str(cell) for cell in row] == [
        "5", "ddim: 0.2000 ± 0.0010", "ddim + energy: 0.0100 ± 0.0010", "−0.190 ± 0.010 ▲", "12.0",
        "ddim at NFE 10: 0.0500 ± 0.0010 †", "−0.0400 ± 0.0014 ▲", "ddim at NFE 10: 0.0500 ± 0.0010 †", "−0.0400 ± 0.0014 ▲",
    ]  # fmt: skip


def test_the_best_are_the_best_that_did_not_diverge():
    other = Cell("digits", "dpmpp_2m", "karras", 5, "none")
    results = [
        run(CELL.plain, 0.2), run(other, 0.1, endpoint=0.01), run(CELL, 0.15, Value(-0.05, 0.01)),
        run(replace(other, correction="energy"), 0.01, Value(-0.09, 0.01), endpoint=0.2),
    ]  # fmt: skip
    row = best_table(study(results), "digits", "karras").rows[0]
    assert row[1] == "dpmpp_2m: 0.1000 ± 0.0010"
    assert row[2] == "ddim + energy: 0.1500 ± 0.0010"
    assert str(row[3]) == "+0.0500 ± 0.0014 ▼"
    assert row[7] == "dpmpp_2m at NFE 5: 0.1000 ± 0.0010"


def test_costs_stand_in_the_same_layout():
    rows = {row[0]: row[1:] for row in cost_table(study([run(CELL, 0.1, cost=7.25)]), "digits", "karras").rows}
    assert rows["ddim + energy"] == ("7.2", "–", "–")


# -- documents -----------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Checks that elements nest, and keeps references, texts and ids."""

    def __init__(self):
        super().__init__()
        self.open, self.references, self.ids, self.tags, self.text = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.references += [value for name, value in attrs if name in ("src", "href", "xlink:href", "data", "action", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(text):
    result = Page()
    result.feed(text)
    result.close()
    assert result.open == []
    return result


def check_tables(text):
    """Every Markdown table has as many cells in each row as in its head."""
    tables = re.findall(r"(?:^\|.*\|$\n?)+", text, flags=re.MULTILINE)
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.strip().split("\n")}
        assert len(widths) == 1, table
    return len(tables)


ABOUT = {
    "steindiff": "0.1.0", "git": "abc<1>+", "python": "3.11", "machine": {"platform": "Linux", "cpus": 2}, "time": "2026",
    "command": ["pytest"], "rerun": "steindiff bench --preset quick --outdir 'a b'", "study": {"n": 64},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("report")
    shown = torch.randint(0, 256, (3, 8, 8, 1), dtype=torch.uint8)
    write_report(place, Study.of(CONFIG, whole_study(), [bed(name, shown=shown) for name in CONFIG.beds]), ABOUT)
    return place


def test_the_page_parses_and_needs_nothing_else(folder):
    text = (folder / "report.html").read_text(encoding="utf-8")
    found = parsed(text)
    assert "script" not in found.tags
    assert "link" not in found.tags
    for reference in found.references:
        assert reference.startswith(("#", "data:image/png;base64,")), reference
    inner = {r[1:] for r in found.references if r.startswith("#")}
    assert inner <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))
    assert not re.search(r"@import|url\((?!#)", text)
    assert "prefers-color-scheme: dark" in text
    assert "currentColor" in text
    assert "#1b1e21" not in text.split("</style>")[1], "ink of a fixed colour would vanish in a dark theme"
    assert found.tags.count("svg") == 2 + 2 * (2 + 2 + 1 + 1)
    assert any(tag == "img" for tag in found.tags)


def test_the_markdown_has_whole_tables_and_its_pictures(folder):
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert check_tables(text) > 10
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    links = re.findall(r"(?<!!)\[.*?\]\((.*?)\)", text)
    assert links == ["paper/table-1.md", "paper/table-2.md", "metrics/recall.md", "metrics/endpoint.md", "metrics/cost.md"]
    assert check_tables((folder / links[0]).read_text(encoding="utf-8")) == 2 * 2
    assert check_tables((folder / links[1]).read_text(encoding="utf-8")) == 2 * (2 + 1)
    for link in links[2:]:
        assert check_tables((folder / link).read_text(encoding="utf-8")) == 2
    assert text.count("<details>") == text.count("</details>") > 5


def test_the_sections_stand_in_order_and_say_what_was_counted(folder):
    text = (folder / "report.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert sections == [
        "What was found", "Energy distance in the layout of the paper's Table 1",
        "The best plain solver against the best corrected one", "Figures", "Losses, cell by cell",
        "The paper's Tables 1 and 2", "As published, not ours",
        "How this was made", "Other metrics and costs",
    ]  # fmt: skip
    results = whole_study()
    found = study(results)
    for rule in ("literal", "energy"):
        expected = counts(Counter(found.verdict(c, "energy") for c in found.corrected if c.correction == rule))
        assert f"{rule} {expected}" in text
    missing = len(list(CONFIG.cells())) - len(results)
    assert f"{len(results)} of {len(list(CONFIG.cells()))} cells have a result, {missing} are missing; 5 of the results" in text
    assert "digits, grid karras: energy distance, lower is better. 6 of 18 runs are missing." in text
    assert "5 × the network's output is NaN at step 2, &lt;sigma&gt; = 3" in text
    assert "steindiff bench --preset quick --outdir 'a b'" in text
    assert "| git | abc&lt;1&gt;+ |" in text
    assert "| machine.cpus | 2 |" in text
    assert "higher is better" in (folder / "metrics" / "recall.md").read_text(encoding="utf-8")


def test_two_reports_of_the_same_results_are_the_same(tmp_path):
    config = CONFIG.but({"beds": ["digits"], "nfe": [5], "solvers": ["dpmpp_2m"]})
    results = [replace(r, shown=r.shown * 0) for r in whole_study() if r.cell in set(config.cells())]
    for name in ("a", "b"):
        write_report(tmp_path / name, Study.of(config, results, [bed("digits")]), ABOUT)
    for name in ("report.html", "report.md", "figures/digits-karras-nfe.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_study_that_has_only_begun_still_has_a_report(tmp_path):
    write_report(tmp_path, Study.of(CONFIG, [], []), {})
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "0 of 36 cells have a result, 36 are missing" in text
    assert "Not looked at yet." in text
    assert command(CONFIG) in text
    check_tables(text)
    parsed((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_a_study_without_corrections_has_a_report(tmp_path):
    config = CONFIG.but({"corrections": ["none"], "beds": ["digits"]})
    write_report(tmp_path, Study.of(config, [run(c, 0.1) for c in config.cells()], [bed("digits")]), ABOUT)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "0 of the results ended without numbers." in text
    assert "wins / losses" not in text
    check_tables(text)


def test_foreign_names_are_text_in_both_documents(tmp_path):
    name = "odd/<b>&|`*_x_$1$.safetensors"
    config = CONFIG.but({"beds": [name], "nfe": [5], "solvers": ["ddim"]})
    results = [run(c, 0.1, None if c.correction == "none" else Value(0.1, 0.01), trace=trace(3, 1.0)) for c in config.cells()]
    write_report(tmp_path, Study.of(config, results, [bed("<b>&|`*_x_$1$")]), ABOUT)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    found = parsed(text)
    assert "b" not in found.tags
    assert "<b>&|`*_x_$1$.safetensors" in found.text
    assert "<b>&|`*_x_$1$: an exact law" in " ".join(found.text), "a model file's summary is under the model's name"
    markdown_text = (tmp_path / "report.md").read_text(encoding="utf-8")
    check_tables(markdown_text)
    assert "### &lt;b&gt;&amp;\\|\\`\\*\\_x\\_\\$1\\$.safetensors" in markdown_text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figures", "metrics", "paper", "report.html", "report.md"]


def test_blocks_are_escaped_one_by_one():
    blocks = [
        Heading("a <i>", 2), Text("x & y < z"), Bullets(("*one*",)), Code("a < b | c"),
        Table(("n", "v|w"), (("<r>", Entry("1", "2 ▲", "win")),)), Details("<s>", (Text("in_side _out_"),)),
    ]  # fmt: skip
    assert markdown(blocks) == (
        "## a &lt;i&gt;\n\nx &amp; y &lt; z\n\n- \\*one\\*\n\n```\na < b | c\n```\n\n| n | v\\|w |\n| --- | --- |\n"
        "| &lt;r&gt; | 1 (2 ▲) |\n\n<details><summary>&lt;s&gt;</summary>\n\nin_side \\_out\\_\n\n</details>\n"
    )
    text = page("<t>", blocks)
    parsed(text)
    assert '<td class="win">1<br><small>2 ▲</small></td>' in text
    assert "<code>a &lt; b | c</code>" in text
    assert "<title>&lt;t&gt;</title>" in text


# -- figures, published numbers, commands --------------------------------------------------------------------------------


def test_figures_leave_out_what_is_not_there():
    bare = study([run(CELL.plain, 0.1), run(CELL, -0.001, Value(-0.1, 0.01))])
    assert overview(bare, "nfe").svg.startswith('<svg role="img"')
    assert traces(bare, "digits") is None
    assert spectra(bare, "digits") is None
    assert image_strips(bare, "digits", "ddim") is None


def test_images_have_a_row_per_run_and_the_same_seeds():
    full = Study.of(CONFIG, whole_study(), [bed("digits", shown=torch.zeros(3, 8, 8, 1, dtype=torch.uint8))])
    strips = image_strips(full, "digits", "ddim")
    assert isinstance(strips, Strips)
    assert [label for label, _ in strips.rows] == ["ddim", "+ literal", "+ energy", "reference flow"]
    assert strips.columns == ("NFE 5", "NFE 8", "NFE 10")
    assert [bool(png) for png in strips.rows[1][1]] == [False] * 3, "diverged"
    assert [png[:4] for png in strips.rows[0][1]] == [b"\x89PNG", b"\x89PNG", b""], "the last one is missing"


def test_images_of_a_testbed_with_classes_are_one_of_each():
    white = torch.full((10, 8, 8, 1), 255, dtype=torch.uint8)
    full = Study.of(CONFIG, whole_study(), [bed("digits", shown=white, labels=tuple(range(10)))])
    strips = image_strips(full, "digits", "ddim")
    assert strips.caption.endswith("one of each class (0, 1, 2, 3, 4, 5, 6, 7, 8, 9); “–”: no result, or no number left.")
    width = int.from_bytes(strips.rows[-1][1][0][16:20], "big")  # of a PNG, in its header
    assert width == 10 * 9 - 1


def test_every_metric_has_its_panel():
    fid = [replace(r, values={**r.values, "fid": Value(7.0, 0.1)}) if r.values else r for r in whole_study()]
    one = study(fid)
    figure = every_metric(one, "digits_mixture", "dpmpp_2m")
    assert figure.name == "figures/digits_mixture-dpmpp_2m-metrics"
    for title in ("energy distance ↓", "recall ↑", "endpoint RMSE ↓", "FID ↓"):
        assert title in figure.svg
    assert figure.svg.count("↓") + figure.svg.count("↑") == len(one.metrics["digits_mixture"]) == 4
    for rule in ("plain", "literal", "energy"):
        assert f">{rule}</text>" in figure.svg


def test_published_numbers_name_their_source_and_what_they_need():
    for setting in PUBLISHED:
        assert check_tables(markdown([setting.table])) == 1
        for row in setting.rows:
            assert all(part in SOURCES for part in row.source.split(", "))
            assert row.needs
            assert all(float(v) > 1 for v in row.fid.values())
    cifar = {row.method: row for row in PUBLISHED[0].rows}
    assert cifar["iPNDM-4"].fid == {5: "13.59", 6: "7.05", 8: "3.69", 10: "2.77"}
    assert cifar["GAS"].fid[6] == "2.49"
    assert PUBLISHED[0].table.columns[0] == "method, as published, not ours"


def test_commands_say_what_differs_from_the_nearest_preset():
    assert command(PRESETS["paper"]) == "steindiff bench --preset paper --outdir outputs/bench"
    changed = PRESETS["quick"].but({"n": 1024, "first_seed": 7})
    assert command(changed, "my out", solvers=["heun"]) == (
        "steindiff bench --preset quick --solvers heun --samples 1024 --seed 7 --outdir 'my out'"
    )
    assert command(CONFIG, nfe=(5,)).startswith("steindiff bench --preset quick --solvers ddim,dpmpp_2m --nfe 5 --corrections")
    assert command(PRESETS["quick"].but({"probes": 4})) == "steindiff bench --preset quick --probes 4 --outdir outputs/bench"
