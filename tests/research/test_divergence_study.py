"""The studies of divergence estimators: exact values are exact, files whole, and their claims hold on a small run."""

import json
import math

import pytest
import torch

from research import divergence_study
from steindiff.divergence import Exact


@pytest.fixture(scope="module")
def study():
    return divergence_study


@pytest.fixture(scope="module")
def result(study, tmp_path_factory):
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("study")
    argv = ["--laws", "digits_mixture", "--seeds", "12", "--rounds", "1", "--batch", "16", "--outdir", str(folder)]
    study.main(argv)
    return folder, json.loads((folder / "study.json").read_text())


def test_the_closed_form_is_the_trace_by_a_full_basis(study):
    pytest.importorskip("sklearn")
    law = study.law_of("digits_mixture")
    batch = study.Batch.draw(law, 0.5, 4, 0)
    exact, _ = Exact()(lambda y: study.residual(batch.sigma, law, y), batch.y, 0)
    assert float(exact.mean) == pytest.approx(batch.divergence, rel=1e-4)
    assert batch.errors(batch.divergence)[0] == 0
    assert batch.errors(batch.divergence)[1] == pytest.approx(0.25 * batch.divergence / batch.spread - 1)


def test_gamma_of_a_large_batch_is_one_over_one_minus_r(study):
    pytest.importorskip("sklearn")
    law = study.law_of("digits_mixture")
    batch = study.Batch.draw(law, 0.5, 8192, 0)
    assert abs(batch.errors(batch.divergence)[1]) < 4 * math.sqrt(2 / 64 / 8192)


def test_files_and_rows(study, result):
    folder, values = result
    assert sorted(p.name for p in folder.iterdir()) == ["divergence_accuracy.png", "study.json", "table.md"]
    assert values["laws"]["digits_mixture"]["settings"]["seeds"] == 12
    assert values["sigmas"] == list(study.SIGMAS)
    rows = values["laws"]["digits_mixture"]["results"]
    assert len(rows) == 7 * 6 + 4 + 2 * 3 + 1  # seven families of six, Hutch++ of four, m = 4, 8, 16 twice, the floor
    assert all(r["cost"] > 0.5 for name, r in rows.items() if name != "exact divergence")
    assert rows["exact divergence"]["divergence"] == 0
    assert all(0 < r["divergence"] < 0.5 for name, r in rows.items() if name != "exact divergence")
    assert "| Hutch++, VJP | – | – |" in (folder / "table.md").read_text()


def test_what_the_page_says_holds_on_a_small_run(result):
    rows = result[1]["laws"]["digits_mixture"]["results"]
    one, sixteen, floor = (rows[name] for name in ("Rademacher, VJP, k = 1", "Rademacher, VJP, k = 16", "exact divergence"))
    assert one["gamma"] < 1.5 * floor["gamma"]  # one probe works
    assert sixteen["divergence"] < 0.5 * one["divergence"]
    assert one["divergence"] < rows["Gaussian, VJP, k = 1"]["divergence"]
    assert rows["Rademacher, VJP, k = 5, m = 4"]["divergence"] > one["divergence"]


@pytest.mark.parametrize("bad", [["--batch", "3"], ["--seeds", "0"], ["--rounds", "0"], ["--laws", "digits"]])
def test_bad_arguments(study, bad, capsys):
    assert study.main(bad) == 2
    assert bad[1] in capsys.readouterr().err


def test_a_network_has_no_closed_form(study):
    with pytest.raises(study.InputError, match="is a network"):
        study.law_of("digits")


def test_errors_are_pooled_as_root_mean_squares(study):
    assert study.rms([(3.0, 0.0), (-4.0, 2.0)]) == pytest.approx((math.sqrt(12.5), math.sqrt(2.0)))
    assert torch.get_num_threads() == 1
