"""What runs of a study have in common is evaluated once, and every run gives the bits that it gives alone."""

from dataclasses import replace

import pytest
import torch

from steindiff import rules, solvers
from steindiff.corrections import Corrected
from steindiff.study.common import BEGINNING, Common
from steindiff.study.draw import draw
from steindiff.study.testbed import make

SEEDS = range(4)
DATA, NOISE = ("dpmpp_2m", "unipc_2", "ddim"), ("deis_3", "ipndm_4")


class Counted:
    """A denoiser, and how often it was asked."""

    def __init__(self, denoiser):
        self.denoiser, self.calls = denoiser, 0

    def __call__(self, x, sigma):
        self.calls += 1
        return self.denoiser(x, sigma)


@pytest.fixture
def bed():
    law = make("digits_mixture")
    return replace(law, denoiser=Counted(law.denoiser))


def ends(bed, solver, common=None, steps=5):
    return draw(solvers.make(solver), bed, bed.setting.karras(steps), SEEDS, common=common)


def test_multistep_methods_share_their_first_two_evaluations(bed):
    """The second one among those that extrapolate data, and among those that extrapolate noise: their arithmetic differs."""
    solvers = DATA + NOISE
    alone = {name: ends(bed, name) for name in solvers}
    bed.denoiser.calls = 0
    common = Common()
    together = {name: ends(bed, name, common) for name in solvers}
    assert BEGINNING == 2
    assert bed.denoiser.calls == 1 + 2 + 3 * len(solvers)
    for name in solvers:
        assert torch.equal(together[name].samples, alone[name].samples)
        assert together[name].stats == alone[name].stats, "what a run costs is what it would cost alone"


def test_another_grid_shares_the_noise_alone(bed):
    common = Common()
    ends(bed, "ddim", common)
    bed.denoiser.calls = 0
    ends(bed, "ddim", common, steps=6)
    assert bed.denoiser.calls == 6 - 1


def test_other_seeds_and_other_states_share_nothing(bed):
    common, sigmas = Common(), bed.setting.karras(3)
    draw(solvers.make("ddim"), bed, sigmas, SEEDS, common=common)
    bed.denoiser.calls = 0
    draw(solvers.make("ddim"), bed, sigmas, range(4, 8), common=common)
    assert bed.denoiser.calls == 3
    x, sigma = torch.randn(4, 1, 8, 8), torch.tensor(2.0)
    denoiser = common.of(bed.denoiser, SEEDS, keep=True)
    assert not torch.equal(denoiser(x, sigma), common.of(bed.denoiser, SEEDS, keep=True)(x + 1e-6, sigma))


def test_a_corrected_run_is_its_own_and_keeps_nothing(bed):
    solver, sigmas = Corrected("heun", rules.CleanTarget(gamma_max=1.0)), bed.setting.karras(3)
    alone, common = draw(solver, bed, sigmas, SEEDS), Common()
    ends(bed, "heun", common, steps=3)
    held = common.bytes
    together = draw(solver, bed, sigmas, SEEDS, common=common)
    assert torch.equal(together.samples, alone.samples)
    assert together.trace == alone.trace
    assert together.stats["nfe"] == alone.stats["nfe"]
    assert common.bytes == held > 0


def test_no_more_is_kept_than_there_is_room_for(bed):
    state = len(SEEDS) * 64 * 4
    common = Common(limit=3 * state)
    ends(bed, "ddim", common)
    assert common.bytes == 2 * state
