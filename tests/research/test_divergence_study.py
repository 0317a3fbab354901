"""The studies of divergence estimators: exact values are exact, files whole, and their claims hold on a small run."""

import json
import math

import pytest
import torch

from research import divergence_study, probe_quality
from steindiff.divergence import Exact
from steindiff.metrics import Shares


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


# ---------------------------------------------------------------- sample quality against probes


@pytest.fixture(scope="module")
def quality_script():
    pytest.importorskip("sklearn")
    return probe_quality


@pytest.fixture(scope="module")
def quality(quality_script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality")
    shared = ["--outdir", str(folder), "--solvers", "2m_unlowered", "--nfe", "8", "--repeats", "2", "--exact"]
    first = ["--samples", "96", "--batch", "32", "--probes", "1", "4", "--kinds", "rademacher", "gaussian", "--parts", "4"]
    assert quality_script.main([*shared, *first, "--literal"]) == 0
    assert quality_script.main([*shared, "--samples", "32", "--batch", "8", "--probes", "2", "--parts", "2", "8"]) == 0
    return folder, json.loads((folder / "quality.json").read_text())


def test_quality_files_and_rows(quality):
    folder, entries = quality
    assert sorted(p.name for p in folder.iterdir()) == ["divergence_quality.png", "quality.json", "table.md"]
    assert list(entries) == ["digits_mixture, B = 32", "digits_mixture, B = 8"]
    rows, small = (entry["results"]["cells"]["2M unlowered, 8 NFE"] for entry in entries.values())
    plain = ["plain", "plain, as published", "plain, as published, twice the NFE"]
    names = ["exact", *(f"{kind}, k = {k}" for kind in ("rademacher", "gaussian") for k in (4, 1)), "sub-batch, m = 4"]
    assert list(rows) == [*plain, *names]
    assert list(small) == [*plain, "exact", "rademacher, k = 2", "sub-batch, m = 2"]  # m = 8 is the batch
    assert [rows[name]["repeats"] for name in names] == [1, 2, 2, 2, 2, 2]
    assert all(0 < row["rmse"][0] < 1 and row["rmse"][1] > 0 for row in rows.values())
    text = (folder / "table.md").read_text()
    assert "| sub-batch, m = 4 |" in text
    assert "| exact | 0.0000 / " in text
    assert "digits_mixture, B = 32: 2M unlowered, 8 NFE" in text


def test_quality_costs_are_those_of_the_runs(quality):
    results = quality[1]["digits_mixture, B = 32"]["results"]
    rows, vjp = results["cells"]["2M unlowered, 8 NFE"], results["vjp_cost"]
    products = {"plain": 0, "exact": 64, "rademacher, k = 1": 1, "gaussian, k = 4": 4, "sub-batch, m = 4": 4 / 32}
    for name, count in products.items():
        assert rows[name]["cost"] == pytest.approx(8 * (1 + count * vjp))
    assert rows["plain, as published, twice the NFE"]["cost"] == 16


def test_what_the_page_says_of_quality_holds_on_a_small_run(quality):
    """γ matters, the number of probes does not, and the printed rule diverges with every estimator."""
    results = quality[1]["digits_mixture, B = 32"]["results"]
    rows = results["cells"]["2M unlowered, 8 NFE"]
    gain = rows["plain"]["energy_change"][0]
    assert gain > 3 * rows["plain"]["energy_change"][1]
    for name in ("rademacher, k = 1", "rademacher, k = 4", "gaussian, k = 1", "gaussian, k = 4"):
        assert abs(rows[name]["energy_change"][0]) < 0.1 * gain
        assert abs(rows[name]["energy_change"][0]) < rows["exact"]["energy"][1]
    assert rows["sub-batch, m = 4"]["gamma_off"] > 2 * rows["rademacher, k = 4"]["gamma_off"] > 0
    assert rows["exact"]["gamma"][:4] == [1, 1, 1, 1]
    assert 0 < rows["exact"]["gamma"][6] < 1
    plain, *corrected = results["literal"].values()
    assert all(value is None or value > 100 * plain for value in corrected)


def test_a_repeat_reorders_images_and_gives_them_back(quality_script):
    """The exact divergence knows no probes: another repeat is the same run, image by image."""
    q = quality_script
    bed = q.Bed.of("digits_mixture", 32, 5)
    assert abs(bed.perfect.value.value) < 4 * bed.perfect.value.se
    choice = q.Choice("vjp", {"vjp": 1.0}, {})
    solver = q.Corrected(q.SOLVERS["2m_unlowered"][0], q.CleanTarget(gamma_max=1.0), q.Exact(choice))
    first, second = (q.measure(bed, solver, 6, 16, repeat) for repeat in (0, 1))
    torch.testing.assert_close(first.squares, second.squares, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(first.gammas, second.gammas, rtol=1e-3, atol=1e-4)
    assert first.gammas.shape == (2, 6)
    probed = q.Corrected(q.SOLVERS["2m_unlowered"][0], q.CleanTarget(gamma_max=1.0), q.Hutchinson(method="vjp", choice=choice))
    first, second = (q.measure(bed, probed, 6, 16, repeat) for repeat in (0, 1))
    assert (first.gammas - second.gammas).abs().max() > 1e-3


def test_quality_statistics_by_hand(quality_script):
    """Two runs of three images; a reference of one run; a perfect score of zero."""
    q = quality_script

    def made(distance, of_x, squares, gamma):
        shares = Shares(distance, torch.tensor(of_x, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
        return q.Run(shares, torch.tensor(squares, dtype=torch.float64), torch.tensor([gamma], dtype=torch.float64), 2.0)

    perfect = Shares(0.0, torch.zeros(3, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    reference = [made(1.0, [0.0, 0.0, 0.0], [4.0, 4.0, 4.0], [1.0, 0.5])]
    runs = [made(2.0, [0.0, 1.0, 2.0], [9.0, 9.0, 9.0], [0.9, 0.6]), made(4.0, [0.0, 3.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.4])]
    row = q.summary(runs, perfect, reference)
    assert row["energy"] == pytest.approx((3.0, math.sqrt(1.0 / 3)))  # shares (0, 2, 1): variance 1
    assert row["energy_sd"] == pytest.approx(math.sqrt(2.0))
    assert row["energy_change"] == pytest.approx((2.0, math.sqrt(1.0 / 3 + 2.0 / 2)))
    assert row["rmse"] == pytest.approx((2.0, 0.0))
    assert row["rmse_change"] == pytest.approx((0.0, math.sqrt(2.0) / math.sqrt(2)))
    assert row["gamma_off"] == pytest.approx(0.1)  # the first step's γ is at its bound
    base = q.summary(reference, perfect, reference)
    assert base["energy_change"] == base["rmse_change"] == (0.0, 0.0)
    assert math.isnan(base["energy_sd"])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (["--samples", "8"], "--samples 8: must be at least 32"),
        (["--repeats", "0"], "--repeats 0: must be at least 1"),
        (["--first-seed", "-1"], "--first-seed -1: must be at least 0"),
        (["--probes", "1", "0"], "--probes 1 0: each must be at least 1"),
    ],
)
def test_bad_options_of_the_quality_script(quality_script, bad, message, capsys):
    assert quality_script.main(bad) == 2
    assert message in capsys.readouterr().err
