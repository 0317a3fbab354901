"""Corrections by spec: every name makes what it says, with options; objects pass; nonsense is refused by name."""

import json

import pytest
import torch

import steindiff as sd
from steindiff import corrections, grids, rules
from steindiff.corrections import (
    DCW,
    BotNguyen,
    Chain,
    CleanTarget,
    Corrected,
    Correction,
    Energy,
    EpsilonScaling,
    FixedGamma,
    NoiseConsistent,
    Outcome,
    SelfConsistent,
    Sparse,
    second_moment,
)
from steindiff.corrections.bands import Channels, Cosine, Whole
from steindiff.errors import InputError

CLAMPED = CleanTarget(gamma_max=1.0)
X = sd.initial_noise(range(4), (1, 4, 4))


@pytest.mark.parametrize(
    ("spec", "made"),
    [
        ("none", None),
        ("literal", CleanTarget()),
        ("literal", CleanTarget.printed()),
        ("clamped", CleanTarget.clamped()),
        ("clamped(gamma_max=0.9, gamma_min=0.1)", CleanTarget(0.1, 0.9)),
        ("analytical", CleanTarget(mode="analytical")),
        ("adaptive", CleanTarget(mode="adaptive", threshold=1.0)),
        ("adaptive(threshold=0.5)", CleanTarget(mode="adaptive", threshold=0.5)),
        ("tweedie", CleanTarget(mode="tweedie")),
        ("fast_km", CleanTarget(mode="analytical")),
        ("clamped(mode=analytical)", CleanTarget(gamma_max=1.0, mode="analytical")),
        ("noise_consistent", NoiseConsistent(0.0, 2.0)),
        ("energy", Energy()),
        ("energy(bands=8, moment=(1, 2))", Energy((1.0, 2.0), Cosine(8))),
        ("energy(bands=channels, deficit=track)", Energy(bands=Channels(), deficit="track")),
        ("energy_bands", Energy(bands=Cosine())),
        ("self_consistent", Chain(CleanTarget(gamma_max=1.0, mode="tweedie"), SelfConsistent(1.0, 1.0, "state"))),
        ("self_consistent(eta=0.5, proposal=none)", SelfConsistent(eta=0.5)),
        ("self_consistent(look_ahead=proposal, proposal=clamped)", Chain(CLAMPED, SelfConsistent(look_ahead="proposal"))),
        ("sparse(clamped, below=1.0)", Sparse(CLAMPED, below=1.0)),
        ("bot_nguyen", BotNguyen(3.0, 1.0)),
        ("bot_nguyen(s=0.5)", BotNguyen(s=0.5)),
        ("epsilon_scaling(1.01)", EpsilonScaling(1.01)),
        ("dcw(scale=0.1)", DCW(0.1)),
        ("chain(clamped, bot_nguyen)", Chain(CLAMPED, BotNguyen())),
        (CLAMPED, CLAMPED),
    ],
)
def test_specs_make_what_they_say(spec, made):
    assert corrections.make(spec) == made


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("clampd", "did you mean 'clamped'"),
        ("clamped(gamma=1)", "takes gamma_min, gamma_max"),
        ("energy(bands=cosin)", "did you mean 'cosine'"),
        ("energy(moment=nowhere.json)", "nowhere.json is not a list of second moments"),
        ("chain(clamped, none)", "unknown correction 'none'"),
        (3, "no correction"),
    ],
)
def test_nonsense_is_refused_by_name(spec, message):
    with pytest.raises(InputError, match=message):
        corrections.make(spec)


def test_tables_of_gamma_and_moments_are_read_from_files(tmp_path):
    table, moments = tmp_path / "gamma.json", tmp_path / "m.json"
    table.write_text("[0.5, 1]")
    moments.write_text(json.dumps(second_moment(X, Cosine(2)).tolist()))
    assert corrections.make(str(table)) == corrections.make(f"fixed({table})") == FixedGamma((0.5, 1.0))
    energy = corrections.make(f"energy(bands=2, moment={moments})")
    torch.testing.assert_close(torch.tensor(energy.moment), second_moment(X, Cosine(2)).double().float())


def test_a_moment_of_the_target_is_filled_in_and_refused_where_it_is_not():
    energy = corrections.make("energy(moment=target)")
    assert energy.given(X) == Energy(second_moment(X, Whole()))
    assert corrections.make("chain(energy(moment=target), dcw)").given(X).parts[0] == energy.given(X)
    assert CLAMPED.given(X) is CLAMPED
    with pytest.raises(InputError, match="moment='target' is for studies"):
        sd.sample(Corrected("heun", energy), lambda x, s: 0.5 * x, X, grids.karras(3))


def test_corrected_takes_names_and_specs_and_refuses_none():
    solver = Corrected("dpmpp_3m(exact=True)", "clamped")
    assert (solver.solver, solver.rule) == (sd.solvers.make("dpmpp_3m(exact=True)"), CLAMPED)
    assert corrections.apply("none", "ddim") == sd.solvers.make("ddim")
    assert corrections.apply("clamped", "ddim", frame="ve") == Corrected("ddim", CLAMPED, frame="ve")
    with pytest.raises(InputError, match="'none': use the solver"):
        Corrected("ddim", "none")
    assert rules.CleanTarget is CleanTarget


class PerImage(Correction):
    """γ of every image its own."""

    def correct(self, proposal, state):
        gamma = torch.linspace(0, 1, len(proposal.x), dtype=torch.float64)
        return Outcome(proposal.blend(gamma), None, {"gamma": gamma})


def test_gamma_may_be_per_image():
    sigmas = torch.tensor([80.0, 1.0], dtype=torch.float64)
    run = sd.sample(Corrected("ddim", PerImage()), lambda x, s: 0 * x, X, sigmas)
    for image, x, gamma in zip(run.x, X, (0, 1 / 3, 2 / 3, 1), strict=True):
        torch.testing.assert_close(image, (1 - gamma) * x + gamma * x / 80)
    record = run.trace[0]
    assert record.numbers["gamma"] == pytest.approx((0, 1 / 3, 2 / 3, 1))
    assert record.gamma == pytest.approx(0.5)
    assert json.loads(json.dumps(record.as_json()))["gamma"] == pytest.approx(0.5)
