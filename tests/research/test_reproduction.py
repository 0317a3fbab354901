"""docs/reproduction.md: what it names exists, and every element of the paper that we know of has its row."""

import re
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name

import pytest

from steindiff import corrections, solvers

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ")][1:]
CODE = re.findall(r"`([^`]+)`", PAGE)


def test_every_file_that_it_names_exists():
    paths = {code for code in CODE if re.fullmatch(r"(docs|tests|research|benchmarks)/[\w/.-]+", code)}
    links = {f"docs/{target}" for target in re.findall(r"\]\(([^)#]+)", PAGE)}
    assert len(paths) > 40
    assert [path for path in paths | links if not (ROOT / path).exists()] == []


def test_every_module_that_it_runs_exists():
    modules = set(re.findall(r"python -m ([\w.]+)", PAGE))
    assert {"benchmarks.modes", "research.readings", "research.named_peers"} <= modules
    assert all(import_module(name) for name in modules)


def test_every_name_of_the_package_resolves():
    names = {m[0].removeprefix("steindiff.") for code in CODE if (m := re.match(r"[a-zA-Z_]+(\.[a-zA-Z_0-9]+)+(?=\(|$)", code))}
    assert {"rules.CleanTarget", "divergence.Hutchinson", "SteinDiff", "corrections.stein.stein_ratio"} <= names
    for name in names:
        assert resolve_name(f"steindiff.{name}") is not None


@pytest.mark.parametrize("rule", ["literal", "analytical", "adaptive", "fast_km", "bot_nguyen", "self_consistent"])
def test_every_correction_that_it_names_is_one(rule):
    assert f"`{rule}`" in PAGE
    assert corrections.make(rule) is not None


@pytest.mark.parametrize("spec", ["pndm", "pndm(2)", "restart(heun)", "evodiff"])
def test_every_solver_that_it_names_is_one(spec):
    assert f"`{spec}`" in PAGE
    assert solvers.make(spec) is not None


@pytest.mark.parametrize(
    "element",
    [
        *("Prop. 4.1", "C.1", "Thm 4.3", "Thm 4.4", "Lemma 4.6", "Thm 4.7", "Eq. 11", "Thm 4.8", "Eqs. 14 and 15", "Cor. 4.9"),
        *(
            "Thm 4.10",
            "Thm 4.11",
            "Cor. 4.12",
            "Prop. D.1",
            "Cor. D.2",
            "Eqs. 38–46",
            "Eq. 174",
            "Eq. 168",
            "Eq. 172",
            "Eq. 180",
        ),
        *("Algorithm 1", "Algorithm 2", "D.4–D.6", "E.1", "E.2", "App. E", "Prop. E.1", "Table 1", "Table 2", "Table 3"),
        *("Fig. 3", "Fig. 4", "Figs. 5, 11, 12", "Fig. 7", "Fig. 9", "Figs. 1, 2, 6, 8, 10", "Fast KM", "Sparse activation"),
        *("DPM-Solver-v3", "PNDM", "Restart", "EVODiff", "DPM-Solver++ 2M and 3M, UniPC, Heun", "FID, IS and FD-DINOv2"),
    ],
)
def test_every_element_has_a_row(element):
    assert any(element in row.split(" | ")[0] for row in ROWS)


def test_every_row_has_a_test_or_a_command_or_says_why_not():
    for row in ROWS:
        element, _, verified, source = row.strip("| ").split(" | ")
        assert re.search(r"`(tests/|python -m|steindiff|make)", verified) or "not recoverable" in source, element
