"""A plain method on a universal table's levels, after its free step."""

import pytest
import torch

from problems import mixture, noisy_state
from steindiff import Corrected, grids, sample, solvers
from steindiff.denoisers import Counter
from steindiff.errors import InputError
from steindiff.solvers import Setting, Table

SETTING = Setting(sigma_data=0.4)
ONE_A_STEP = [name for name in solvers.names() if name.partition("_")[0] in ("ddim", "unipc", "deis", "ipndm")] + ["dpmpp_3m"]


@pytest.mark.parametrize("name", ONE_A_STEP)
def test_it_is_the_method_on_the_other_levels_from_the_stretched_state(name):
    table, x = Table.universal(4, sigma_data=0.4), noisy_state(80.0)
    counter = Counter(mixture)
    found = sample(f"free({name})", counter, x, nfe=4, setting=SETTING)
    expected = sample(name, mixture, table.solver.rows[0].a * x, table.sigmas[1:])
    assert torch.equal(found.x, expected.x)
    assert counter.calls == found.stats.nfe == 4
    assert found.solver.endswith("after a free step")


def test_levels_are_those_of_the_universal_table():
    for nfe in (1, 6):
        _, own = solvers.make("free(dpmpp_2m)").plan(nfe, SETTING)
        assert torch.equal(own, Table.universal(nfe, sigma_data=0.4).sigmas)
        assert torch.equal(solvers.make("free(dpmpp_2m, sigma_data=0.4)").plan(nfe)[1], own)


@pytest.mark.parametrize("rule", ["clamped", "dcw", "bot_nguyen"])
def test_it_is_corrected_like_any_other(rule):
    result = sample(Corrected("free(dpmpp_2m)", rule), mixture, noisy_state(80.0), nfe=3)
    assert result.stats.nfe == 3
    assert len(result.trace) == 4
    assert bool(torch.isfinite(result.x).all())


def test_what_makes_no_sense_is_refused():
    with pytest.raises(InputError, match="one evaluation a step"):
        solvers.make("free(heun)").plan(4)
    with pytest.raises(InputError, match="unknown solver 'universal'"):
        solvers.make("free(universal)")
    with pytest.raises(InputError, match="give nfe=, and no grid"):
        sample("free(dpmpp_2m)", mixture, noisy_state(80.0), grids.karras(4))
    run, own = solvers.make("free(dpmpp_2m)").plan(4)
    with pytest.raises(InputError, match="the solver's own grid"):
        sample(run, mixture, noisy_state(80.0), grids.karras(5))
    with pytest.raises(InputError, match="for 4 evaluations"):
        run.for_nfe(5)
    assert run.for_nfe(4) == (run, 5)
    assert run.nfe(own) == 4
