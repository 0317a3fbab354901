"""What the pages say of corrections and of their probes, asked of small studies."""

import math
from dataclasses import replace

import pytest
import torch

from steindiff import Corrected
from steindiff.corrections import CleanTarget
from steindiff.divergence import Choice, Exact, Hutchinson
from steindiff.grids import karras
from steindiff.noise import initial_noise
from steindiff.sampling import sample
from steindiff.solvers import DPMpp2M
from steindiff.study.grid import PLAIN, TWICE, Config
from steindiff.study.run import run_study
from steindiff.study.testbed import make, price

CLAMPED, PRINTED = "clamped(history=frozen)", "literal(history=frozen)"
"""With a derivative at every step, so that there is something to estimate."""
UNLOWERED = "dpmpp_2m(lower_order_final=False)"
PROBED = Config(
    beds=("digits_mixture",),
    solvers=(UNLOWERED,),
    grids=("karras",),
    nfe=(8,),
    corrections=(CLAMPED, TWICE),
    n=96,
    batch=32,
    first_seed=9000,
    metrics=("energy", "endpoint"),
)
ESTIMATORS = {
    "exact": {"divergence": "exact"},
    "rademacher 1": {"probes": 1},
    "rademacher 4": {"probes": 4},
    "gaussian 1": {"probes": 1, "probe_kind": "gaussian"},
    "gaussian 4": {"probes": 4, "probe_kind": "gaussian"},
    "sub-batch 4": {"sub_batch": 4},
}


def results_of(config, folder):
    """By correction."""
    return {r.cell.correction: r for r in run_study(config, folder, progress=False).results.values()}


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """Clamped on 2M without order lowering, and as printed on 2M as published, by estimator."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("probed")
    found = {}
    for name, change in ESTIMATORS.items():
        config = replace(PROBED, **change)
        literal = results_of(replace(config, solvers=("dpmpp_2m",), corrections=(PRINTED,)), folder)
        found[name] = results_of(config, folder), literal
    return folder, found


def test_costs_are_those_of_the_estimators(probed):
    folder, found = probed
    vjp = price(make("digits_mixture"), PROBED.seeds[: PROBED.batch], folder).cost("vjp")
    products = {"exact": 64, "rademacher 1": 1, "gaussian 4": 4, "sub-batch 4": 4 / 32}
    for name, count in products.items():
        runs = found[name][0]
        assert runs[CLAMPED].stats["forward_equivalents"] == pytest.approx(8 * (1 + count * vjp))
        assert runs[PLAIN].stats["forward_equivalents"] == 8
        assert runs[TWICE].stats["forward_equivalents"] == 16


def test_gamma_matters_and_the_number_of_probes_does_not(probed):
    """2M without order lowering gains, with one probe as much as with all products."""
    clamped = {name: runs[CLAMPED] for name, (runs, _) in probed[1].items()}
    exact, change = clamped["exact"], clamped["exact"].changes["energy"]
    gain = -change.value
    assert gain > 3 * change.se
    for name in ("rademacher 1", "rademacher 4", "gaussian 1", "gaussian 4"):
        off = abs(clamped[name].values["energy"].value - exact.values["energy"].value)
        assert off < 0.1 * gain
        assert off < exact.excess["energy"].se


@pytest.fixture(scope="module")
def bed():
    pytest.importorskip("sklearn")
    return make("digits_mixture")


def run(bed, estimator, seeds, steps=8):
    """The clamped rule on 2M without order lowering, and its γ."""
    solver = Corrected(DPMpp2M(lower_order_final=False), CleanTarget(gamma_max=1.0, history="frozen"), divergence=estimator)
    result = sample(solver, bed.denoiser, initial_noise(seeds.tolist(), bed.event_shape), karras(steps))
    return result.x, torch.tensor([record.gamma for record in result.trace])


CHOICE = Choice("vjp", {"vjp": 1.0}, {})


def test_a_sub_batch_moves_gamma_most(bed):
    """RMS distances of γ to the exact divergence's, over two draws of three batches in an order of their own."""
    estimators = {
        "m = 4": Hutchinson(method="vjp", choice=CHOICE, samples=4),
        "k = 4": Hutchinson(4, method="vjp", choice=CHOICE),
    }
    parts = torch.arange(9000, 9096).split(32)
    exact = torch.stack([run(bed, Exact(CHOICE), part)[1] for part in parts])
    assert (exact[:, :4] == 1).all()
    assert 0 < exact[:, 6].mean() < 1
    inside, apart = (exact > 1e-5) & (exact < 1), {}
    for name, estimator in estimators.items():
        squares = []
        for repeat in (0, 1):
            g = torch.Generator().manual_seed(repeat)
            orders = [part[torch.randperm(len(part), generator=g)] for part in parts]
            found = [run(bed, estimator.seeded(1000 * repeat + i), part)[1] for i, part in enumerate(orders)]
            squares.append((torch.stack(found) - exact)[inside].square().mean())
        apart[name] = float(torch.stack(squares).mean().sqrt())
    assert apart["m = 4"] > 2 * apart["k = 4"] > 0


def test_as_printed_the_rule_diverges_with_every_estimator(probed):
    for _, runs in probed[1].values():
        plain, printed = runs[PLAIN].values["endpoint"].value, runs[PRINTED].values.get("endpoint")
        assert printed is None or not printed.value <= 100 * plain
        assert math.isfinite(plain)


def test_images_in_another_order_are_the_same_images(bed):
    """The exact divergence knows no probes, so that a batch gives the same images in any order; other probes give another γ."""
    seeds = torch.arange(5, 21)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    (x, gamma), (y, other) = run(bed, Exact(CHOICE), seeds, 6), run(bed, Exact(CHOICE), seeds[order], 6)
    torch.testing.assert_close(y, x[order], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(other, gamma, rtol=1e-3, atol=1e-4)
    one, two = (run(bed, Hutchinson(method="vjp", choice=CHOICE, seed=s), seeds, 6)[1] for s in (0, 1000))
    assert (one - two).abs().max() > 1e-3


LOCAL = ("energy(moment=target)", "energy(moment=target,bands=4)")
TRACK = ("energy(moment=target,deficit=track)", "energy(moment=target,bands=4,deficit=track)")
ENERGY = Config(
    beds=("digits_mixture",), solvers=("dpmpp_2m", "heun"), grids=("karras",), nfe=(6,), corrections=LOCAL, n=256, batch=256,
    first_seed=7000, metrics=("energy",),
)  # fmt: skip


def test_the_accumulated_deficit_beside_the_local_one_leaves_it_as_it_was(tmp_path):
    """M is measured once on samples of the testbed; `track` is another rule, and every step says what η was."""
    pytest.importorskip("sklearn")
    alone = run_study(ENERGY, tmp_path / "alone", progress=False).results
    both = run_study(replace(ENERGY, corrections=(*TRACK, *LOCAL)), tmp_path / "both", progress=False).results
    assert {cell: both[cell].values for cell in alone} == {cell: result.values for cell, result in alone.items()}
    found = {name: [both[cell] for cell in both if cell.correction == name] for name in (PLAIN, *TRACK, *LOCAL)}
    assert [len(runs) for runs in found.values()] == [2] * 5
    assert [r.values for r in found[TRACK[1]]] != [r.values for r in found[LOCAL[1]]]
    assert all(run.stats["vjps"] == 0 for run in both.values())
    first, second = found[LOCAL[0]][0].trace[:2]
    assert (first["sigma"], first["reason"], first["eta"]) == (80, "zero_residual", pytest.approx([1.0]))
    assert second["sigma"] == pytest.approx(30.2, abs=0.05)
