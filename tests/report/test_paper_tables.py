"""The paper's Tables 1 and 2: their layouts, the published numbers, and when a difference is taken."""

import re

import pytest

from commandline import run_command
from steindiff.errors import InputError
from steindiff.metrics import Value
from steindiff.report.blocks import walk
from steindiff.report.markdown import markdown
from steindiff.report.paper import check, paper_blocks, trio
from steindiff.report.published import PUBLISHED, SOURCES
from steindiff.report.tables import improvement, improvement_table
from steindiff.study.compare import Study
from steindiff.study.grid import Cell, Config
from steindiff.study.store import BedSummary, Result

CONFIG = Config(
    beds=("digits",),
    solvers=("ddim", "dpmpp_2m", "dpmpp_3m", "unipc_3", "heun"),
    grids=("karras", "log_snr"),
    nfe=(5, 6),
    corrections=("none", "clamped", "energy", "twice"),
    n=64,
)


def at(solver, grid, nfe, rule="none"):
    return Cell("digits", solver, grid, nfe, rule)


def run(cell, change=None, se=0.01, **values):
    """A result whose change is the same in every metric."""
    changes = {} if change is None else {name: Value(change, se) for name in values}
    return Result(cell, "0" * 16, 64, {name: Value(v, 0.001) for name, v in values.items()}, changes)


def study(*results, config=CONFIG):
    return Study.of(config, results, [BedSummary("digits", "network", (1, 8, 8), "fine runs", 256, {}, {})])


def rows(found, model=""):
    """The lines of every table that has a published column, by what names them."""
    text = markdown(b for b in walk(paper_blocks(found, model)) if hasattr(b, "columns") and "as published" in b.columns)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {tuple(line[:-3]): tuple(line[-3:]) for line in lines if line[-1] not in ("difference", "---")}


def text(found, model=""):
    return markdown(block for part in paper_blocks(found, model) if hasattr(part, "blocks") for block in part.blocks)


# -- Table 2's layout ----------------------------------------------------------------------------------------------------


def test_the_layout_of_table_2_cell_by_cell():
    cell = at("heun", "log_snr", 5, "clamped")
    found = study(run(cell.plain, energy=0.2, recall=0.5), run(cell, 0.05, energy=0.25, recall=0.55))
    table = improvement_table(found, "digits", "clamped", ("unipc_3", "heun"), ("energy", "recall"))
    assert table.columns == (
        "metric", "schedule", "steps (NFE)", "unipc_3: Base", "unipc_3: Stein", "unipc_3: Improvement",
        "heun: Base", "heun: Stein", "heun: Improvement",
    )  # fmt: skip
    lines = {row[:3]: [str(entry) for entry in row[3:]] for row in table.rows}
    assert list(lines)[:3] == [
        ("energy distance", "karras", "3 (5)"),
        ("energy distance", "karras", "3.5 (6)"),
        *list(lines)[2:3],
    ]
    assert lines["energy distance", "log_snr", "3 (5)"] == [
        "–", "–", "–", "0.2000 ± 0.0010", "0.2500 ± 0.0010", "−25.0 ± 5.0 % (▼)",
    ]  # fmt: skip
    assert lines["recall", "log_snr", "3 (5)"][3:] == ["0.5000 ± 0.0010", "0.5500 ± 0.0010", "+10.0 ± 2.0 % (▲)"]
    assert lines["recall", "karras", "3.5 (6)"] == ["–"] * 6


def test_no_part_of_nothing():
    """Where Base is within noise of 0, or a run has diverged, there is a change or a mark, and no percentage."""
    cell = at("heun", "karras", 5, "clamped")
    within = study(run(cell.plain, energy=0.0019), run(cell, -0.05, energy=-0.048))
    assert improvement(within, cell, "energy") is None
    assert str(improvement_table(within, "digits", "clamped", ("heun",), ("energy",)).rows[0][5]) == "change −0.050 ± 0.010 ▲"
    beyond = study(run(cell.plain, energy=0.0021), run(cell, -0.05, energy=-0.048))
    assert improvement(beyond, cell, "energy").value == pytest.approx(100 * 0.05 / 0.0021)
    same = study(run(cell.plain, energy=0.2), run(cell, 0.0, se=0.0, energy=0.2))
    assert str(improvement_table(same, "digits", "clamped", ("heun",), ("energy",)).rows[0][5]) == "0 ± 0 % (·)"
    lost = study(run(cell.plain, energy=0.2), Result(cell, "0" * 16, 0, failure="NaN"))
    assert improvement(lost, cell, "energy") is None
    assert [str(e) for e in improvement_table(lost, "digits", "clamped", ("heun",), ("energy",)).rows[0][4:]] == [
        "✕ diverged",
        "✕",
    ]


def test_the_three_solvers_are_those_of_the_paper():
    assert trio(study()) == ("dpmpp_3m", "unipc_3", "heun")
    assert trio(study(config=CONFIG.but({"solvers": ["ipndm_3", "heun", "dpmpp_2m", "ddim"]}))) == ("dpmpp_2m", "heun")
    assert trio(study(config=CONFIG.but({"solvers": ["ddim", "ipndm_3", "deis_2", "deis_3"]}))) == ("ddim", "ipndm_3", "deis_2")


# -- published numbers ---------------------------------------------------------------------------------------------------


def test_the_published_numbers_stand_where_the_paper_has_them():
    lines = rows(study())
    first, known = {key: row[0] for key, row in lines.items() if len(key) == 2}, ("5", "6", "8", "10", "12", "15", "20")
    assert [first["DPM-Solver++ 3M, in the SteinDiff paper; ours: dpmpp_3m", n] for n in known] == [
        "18.61", "8.52", "4.15", "3.61", "3.43", "3.28", "3.17",
    ]  # fmt: skip
    ours = "SteinDiff, self-consistent; ours: dpmpp_3m + clamped"
    assert [first[ours, n] for n in known] == [
        "7.64", "4.71", "3.72", "3.38", "3.01", "2.86", "2.77",
    ]  # fmt: skip
    second = {key[2:]: row[0] for key, row in lines.items() if key[:2] == ("karras", "DPM-Solver++; ours: dpmpp_3m")}
    assert [second[s, "Base"] for s in ("3 (5)", "3.5 (6)", "4.5 (8)", "5.5 (10)")] == ["17.95", "11.00", "5.48", "3.66"]
    assert [second[s, "Stein; ours: clamped"] for s in ("3 (5)", "3.5 (6)")] == ["14.84", "9.45"]
    assert second["3 (5)", "Improvement; ours: clamped"] == "17.3 %"
    assert lines["log_snr", "Heun; ours: heun", "3 (5)", "Improvement; ours: clamped"] == ("45.8 %", "–", "–")
    assert {one.paper_table for one in PUBLISHED} == {0, 1, 2}
    assert all(part in SOURCES for one in PUBLISHED for gain in one.improvements for part in gain.source.split(", "))


def test_other_models_stand_beside_the_paper_and_are_never_subtracted():
    cells = [
        at("dpmpp_3m", grid, nfe, rule) for grid in CONFIG.grids for nfe in (5, 6) for rule in ("none", "clamped", "energy")
    ]
    found = study(*(run(cell, None if cell.plain == cell else -0.05, energy=0.2, fid=30.0) for cell in cells))
    lines = rows(found)
    assert lines["karras", "DPM-Solver++; ours: dpmpp_3m", "3 (5)", "Base"] == ("17.95", "30.0000 ± 0.0010", "–")
    assert {row[2] for row in lines.values()} == {"–"}
    assert text(found).count("never subtracted") == 2
    assert rows(found, "lsun")["karras", "DPM-Solver++; ours: dpmpp_3m", "3 (5)", "Base"][2] == "–", "another model's table"


def test_on_the_paper_s_model_the_difference_is_ours_less_published():
    plain, stein = at("dpmpp_3m", "karras", 5), at("dpmpp_3m", "karras", 5, "clamped")
    found = study(run(plain, fid=18.0), run(stein, -3.6, se=0.09, fid=14.4))
    key = ("karras", "DPM-Solver++; ours: dpmpp_3m", "3 (5)")
    lines = rows(found, "imagenet64")
    assert lines[(*key, "Base")] == ("17.95", "18.0000 ± 0.0010", "+0.0500 ± 0.0010")
    assert lines[(*key, "Stein; ours: clamped")] == ("14.84", "14.4000 ± 0.0010", "−0.4400 ± 0.0010")
    assert lines[(*key, "Improvement; ours: clamped")] == ("17.3 %", "20.00 ± 0.50 %", "+2.70 ± 0.50 %")
    assert (*key, "Improvement; ours: energy") not in lines, "one row says that there is nothing"
    assert "FID grows as images become fewer" in text(found, "imagenet64")
    energy = study(run(plain, energy=0.2))
    assert rows(energy, "imagenet64")[(*key, "Base")] == ("17.95", "0.2000 ± 0.0010", "–"), "another metric"
    assert "No run has an FID yet" in text(energy, "imagenet64")


def test_a_plain_run_of_twice_the_nfe_is_no_correction():
    assert "twice" not in re.sub(r"\| .* \+ twice \|.*", "", text(study()))
    assert len(paper_blocks(study(config=CONFIG.but({"corrections": ["none", "twice"]})))) == 4, "without Table 2"


def test_a_study_of_tables_with_their_own_grids_has_none_of_the_paper_s():
    assert paper_blocks(study(config=CONFIG.but({"solvers": ["universal"]}))) == []


# -- the command ---------------------------------------------------------------------------------------------------------


def test_a_study_that_is_not_of_the_paper_s_model_is_refused_before_it_runs(monkeypatch, capsys, tmp_path):
    check("", ("digits", "cifar10"), inception=False)
    check("imagenet64", ("big.safetensors",), inception=True)
    with pytest.raises(InputError, match="did you mean 'imagenet64'"):
        check("imagenet", ("digits",), inception=True)
    with pytest.raises(InputError, match="one testbed: choose it by --beds"):
        check("lsun", ("digits", "cifar10"), inception=True)
    code, _, error = run_command(
        monkeypatch, capsys, "bench", "--beds", "digits", "--paper-model", "lsun", "--outdir", tmp_path
    )
    assert code == 2
    assert "name the extractor by --inception" in error
    assert not list(tmp_path.iterdir())
