"""The demo, small: every cell is there, the report holds the numbers of results.json, and its sentences follow from them."""

import json

import pytest
import torch
from rich.console import Console

from steindiff.report.demo import write_report
from steindiff.study.demo import MODELS, RUNS, SOLVERS, run_demo


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    study = run_demo(folder, nfe=5, samples=64, first_seed=100)
    with open(folder / "console.txt", "w") as file:
        write_report(folder, study, Console(file=file, width=200))
    return folder


def test_every_cell_is_measured(report):
    cells = json.loads((report / "results.json").read_text())
    assert {(c["model"], c["solver"], c["run"]) for c in cells} == {(m, s, r) for m in MODELS for s in SOLVERS for r in RUNS}
    plain = {(c["model"], c["solver"]): c["endpoint"]["value"] for c in cells if c["run"] == "plain"}
    for cell in cells:
        assert cell["verdict"] in ("", "better", "worse", "within noise", "diverged")
        if cell["run"] == "plain":
            assert cell["stats"]["nfe"] == 5
            assert cell["stats"]["forward_equivalents"] == 5
            assert 0 < cell["energy"]["se"] < 10
            assert 0 < cell["endpoint"]["value"] < 2
        if cell["run"] == "plain_double":
            assert cell["stats"]["nfe"] == 10
            assert cell["endpoint"]["value"] < plain[cell["model"], cell["solver"]]
        if cell["run"] == "clamped":
            assert max(t["gamma"] for t in cell["trace"]) <= 1
            assert cell["stats"]["vjps"] == 5
            assert cell["stats"]["forward_equivalents"] > 5


def test_the_report_says_where_the_printed_rule_diverges(report):
    cells = json.loads((report / "results.json").read_text())
    text = (report / "report.md").read_text()
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
    assert (report / "gamma.png").stat().st_size > 5_000
    assert json.loads((report / "run.json").read_text())["config"]["nfe"] == 5
    assert "reference flow" in (report / "console.txt").read_text()


def test_the_same_seeds_give_the_same_numbers(report, tmp_path, monkeypatch):
    torch.manual_seed(123)  # the global generator must not matter
    monkeypatch.setattr("steindiff.study.demo.MODELS", ("digits",))
    run_demo(tmp_path, nfe=5, samples=64, first_seed=100)
    first, second = (json.loads((f / "results.json").read_text()) for f in (report, tmp_path))
    assert len(second) == len(SOLVERS) * len(RUNS)
    for a, b in zip(first, second, strict=False):
        if a["run"] != "literal":  # a diverging run amplifies the last bit
            assert a["energy"]["value"] == pytest.approx(b["energy"]["value"], rel=1e-3)
