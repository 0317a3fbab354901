"""The demo, small: every cell is there, the report holds the numbers of results.json, and its sentences follow from them."""

import json
from dataclasses import replace

import pytest
import torch
from recipes import pages
from rich.console import Console
from torch.nn.modules.module import register_module_forward_hook

from steindiff.errors import InputError
from steindiff.models.networks.precond import Preconditioned
from steindiff.report.demo import write_report
from steindiff.study import demo, testbed

MODELS, STRONG = ("digits", "cifar10_mixture"), ("dpmpp_2m", "ipndm_4")


class Evaluated:
    """A hook that counts the images that networks see."""

    images = 0

    def __call__(self, module, given, _):
        self.images += len(given[0]) if isinstance(module, Preconditioned) else 0


@pytest.fixture(scope="module")
def evaluated():
    return Evaluated()


@pytest.fixture(scope="module")
def report(tmp_path_factory, evaluated):
    folder = tmp_path_factory.mktemp("demo")
    hook = register_module_forward_hook(evaluated)
    with pytest.MonkeyPatch.context() as patch:  # the larger network and all solvers would take minutes
        for name, value in {"MODELS": ("digits",), "LARGER": ("cifar10_mixture",), "STRONG": STRONG}.items():
            patch.setattr(demo, name, value)
        patch.setattr(testbed, "REPEATS", 1)
        found = demo.run_demo(folder, nfe=5, samples=64, first_seed=100)
    hook.remove()
    with open(folder / "console.txt", "w") as file:
        write_report(folder, found, Console(file=file, width=200))
    return folder


TABLES = {"digits": ("universal", "calibrated"), "cifar10_mixture": ("universal",)}


def _cells(folder, of_tables=False):
    """The cells of the paper's study, or those of the first one, which come before them."""
    cells = json.loads((folder / "results.json").read_text())
    first = len(demo.FEW) * (sum(map(len, TABLES.values())) + len(MODELS) * len(STRONG) * len(demo.GRIDS))
    return cells[:first] if of_tables else cells[first:]


def test_every_cell_of_the_tables_and_of_the_strong_solvers_is_measured(report):
    cells = _cells(report, of_tables=True)
    plain = {(m, s, g, n) for m in MODELS for s in STRONG for g in demo.GRIDS for n in demo.FEW}
    ours = {(m, s, "own", n) for m in MODELS for s in TABLES[m] for n in demo.FEW}
    assert {(c["model"], c["solver"], c["grid"], c["nfe"]) for c in cells} == plain | ours
    for cell in cells:
        assert cell["stats"]["nfe"] == cell["stats"]["forward_equivalents"] == cell["nfe"]
        assert 0 < cell["endpoint"]["value"] < 2
        assert ("energy" in cell) == (cell["model"] == "digits")


@pytest.mark.parametrize(("solver", "rows", "wins"), [("universal", 6, 3), ("calibrated", 3, 3)])
def test_the_table_has_the_best_plain_solver_and_how_much_nearer_ours_are(report, solver, rows, wins):
    cells, text, factors = _cells(report, of_tables=True), (report / "report.md").read_text(), []
    for model in (m for m in MODELS if solver in TABLES[m]):
        for nfe in demo.FEW:
            of = [c for c in cells if (c["model"], c["nfe"]) == (model, nfe)]
            best = min((c for c in of if c["solver"] in STRONG), key=lambda c: c["endpoint"]["value"])
            (ours,) = (c for c in of if c["solver"] == solver)
            factors.append(best["endpoint"]["value"] / ours["endpoint"]["value"])
            theirs, own = (f"{c['endpoint']['value']:.4f} ± {c['endpoint']['se']:.4f}" for c in (best, ours))
            (line,) = (row for row in text.splitlines() if row.startswith(f"| {model} | {nfe} | {theirs} ({best['solver']}"))
            assert f" | {own} | {factors[-1]:.1f}× |" in line
    said = f"in {sum(f > 1 for f in factors)} of {rows} rows: {min(factors):.1f} to {max(factors):.1f} times as near"
    assert said in text
    assert said in (report / "console.txt").read_text()
    assert min(factors[-wins:]) > 1, "it is known to win there"


def test_nothing_is_evaluated_twice(report, evaluated):
    """Of the digits, in evaluations of the whole batch."""
    references = 3 * 50 + 100  # end points, target and floor; the check has twice the steps
    first = 2 * 16 + 2 * 2 * 16 - (12 - 1)  # two tables, two strong solvers on two grids; 12 runs begin with one noise
    plain = (5 + 9) + (4 + 8) + (4 + 8)  # three solvers, also at twice the evaluations; all begin with the same noise
    corrected = (5 + 4) + (5 + 5) + (5 + 4)  # those that take no derivative at the first step share it
    price = 4 + 1 + 2 * 2  # quotients, a product, and one turn after one that warms up
    rounding = 1  # whether 2M and iPNDM, at twice the evaluations, round their first step alike is the machine's
    least = references + first + plain + corrected + price
    assert least <= evaluated.images / 64 <= least + rounding


def test_the_report_says_what_auto_took(report):
    line = next(line for line in (report / "report.md").read_text().splitlines() if line.startswith("steindiff.sample"))
    assert all(f"{kind} table of {n} evaluations" in line for n in demo.FEW for kind in ("universal", "calibrated"))
    assert "cifar10_mixture" in line


def test_every_cell_is_measured(report):
    cells = _cells(report)
    assert {(c["model"], c["solver"], c["run"]) for c in cells} == {
        (m, s, r) for m in MODELS for s in demo.SOLVERS for r in demo.RUNS
    }
    plain = {(c["model"], c["solver"]): c["endpoint"]["value"] for c in cells if c["run"] == "plain"}
    for cell in cells:
        assert cell["verdict"] in ("", "better", "worse", "within noise", "diverged")
        if cell["run"] == "plain":
            assert cell["stats"]["nfe"] == 5
            assert cell["stats"]["forward_equivalents"] == 5
            assert 0 < cell["energy"]["se"] < 10
            assert 0 < cell["endpoint"]["value"] < 2
        if cell["run"] == "plain_double":
            assert cell["stats"]["nfe"] == cell["nfe"] == 10
            assert cell["endpoint"]["value"] < plain[cell["model"], cell["solver"]]
        if cell["run"] == "clamped":
            assert max(t["gamma"] for t in cell["trace"]) <= 1
            assert cell["stats"]["vjps"] == {"heun": 5, "dpmpp_2m": 2, "ipndm_3": 1}[cell["solver"]]  # not where a history is
            assert cell["stats"]["forward_equivalents"] > 5


def test_the_report_says_where_the_printed_rule_diverges(report):
    cells, text = _cells(report), (report / "report.md").read_text()
    plain = {(c["model"], c["solver"]): c["endpoint"]["value"] for c in cells if c["run"] == "plain"}
    diverged = [
        c for c in cells
        if c["run"] == "literal" and not (c["endpoint"]["value"] or 1e99) <= 10 * plain[c["model"], c["solver"]]
    ]  # fmt: skip
    assert diverged, "the literal rule is known to diverge on exact models"
    for cell in diverged:
        assert f"Eq. 11 as printed **diverges** on {cell['model']} with {cell['solver']}" in text
    for name in MODELS:
        assert f"## {name}" in text
        assert (report / f"{name}.png").stat().st_size > 10_000
        assert (report / f"correction-{name}.png").stat().st_size > 10_000
    assert (report / "gamma.png").stat().st_size > 5_000
    about = json.loads((report / "run.json").read_text())
    assert about["config"]["nfe"] == 5
    whole, *parts = about["seconds"].values()
    assert list(about["seconds"]) == ["all", "references", "measuring", "runs", "prices"]
    assert 0.7 * whole < sum(parts) < whole + 0.5
    assert "reference flow" in (report / "console.txt").read_text()


def test_the_pages_take_the_tables_of_the_report(report, tmp_path):
    text = (report / "report.md").read_text()
    readme, correction = (found for found in pages.shown(report).values())
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    shown = set(readme.splitlines())
    assert len([row for row in rows if row in shown]) == 1 + 2 * len(demo.FEW) + 1  # with the columns, and one rule
    assert all(row in correction for row in rows if "Eq. 11" in row)
    assert "![" not in correction.split("<!-- demo -->")[1].split("<!-- end of demo -->")[0]
    with pytest.raises(InputError, match="make demo"):
        pages.shown(tmp_path)


def test_the_same_seeds_give_the_same_numbers(report, tmp_path, monkeypatch):
    torch.manual_seed(123)  # the global generator must not matter
    *_, paper = demo._configs(5, 64, 100)
    monkeypatch.setattr(demo, "_configs", lambda *_: (replace(paper, beds=("digits",)),))
    demo.run_demo(tmp_path, nfe=5, samples=64, first_seed=100)
    first, second = _cells(report), json.loads((tmp_path / "results.json").read_text())
    assert len(second) == len(demo.SOLVERS) * len(demo.RUNS)
    for a, b in zip(first, second, strict=False):
        if a["run"] != "literal":  # a diverging run amplifies the last bit
            assert a["energy"]["value"] == pytest.approx(b["energy"]["value"], rel=1e-3)
