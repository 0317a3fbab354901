"""What a user's program with strict types calls; mypy checks it with the package, and the tests run it."""

from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import assert_type

import steindiff as sd
from steindiff.integrations.diffusers import Convention, read
from steindiff.integrations.kdiffusion import sample_steindiff
from steindiff.sampling import Event, Record


def network(x: Tensor, t: Tensor) -> Tensor:
    """A noise prediction: the best one for data at 0 under a variance-exploding schedule."""
    return x / t.reshape(-1, *[1] * (x.ndim - 1))


def from_noise(denoiser: sd.Denoiser, noise: Tensor, nfe: int) -> Tensor:
    """The end of a run by the best known solver."""
    result = sd.sample("auto", denoiser, noise, nfe=nfe)
    assert_type(result, sd.SampleResult)
    assert_type(result.trace, tuple[Record, ...])
    return result.x


def corrected(denoiser: sd.Denoiser, noise: Tensor, sigmas: Tensor) -> list[float]:
    """The γ of a corrected run, and a step by hand."""
    solver = sd.Corrected(sd.solvers.DPMpp2M(), sd.rules.CleanTarget(mode="tweedie", gamma_max=1.0))
    for event in sd.steps(solver, denoiser, noise, sigmas):
        assert_type(event, Event)
    return [record.gamma for record in sd.sample(solver, denoiser, noise, sigmas, on_step=[]).trace]


def table_of(denoiser: sd.Denoiser, noise: Tensor, path: Path) -> sd.Table:
    """A calibrated table, written and read again."""
    table = sd.calibrate(denoiser, noise, 2, options=sd.calibration.Options(steps=8))
    assert_type(table, sd.Table)
    assert_type(table.save(path), Path)
    return sd.Table.load(path)


def of_a_scheduler() -> sd.Denoiser:
    """A denoiser of a network by the config of its scheduler."""
    convention = read({"_class_name": "DDPMScheduler", "beta_schedule": "linear", "num_train_timesteps": 1000})
    assert_type(convention, Convention)
    return convention.denoiser(network)


def main(folder: Path) -> tuple[Tensor, ...]:
    """Runs of all of them; their ends."""
    denoiser = sd.denoisers.FromEps(network, sd.schedules.VE())
    noise = sd.initial_noise(range(64), (2,))
    assert_type(noise, Tensor)
    table = table_of(denoiser, noise, folder / "table.safetensors")
    universal = sd.Table.universal(5)
    sigmas = sd.grids.karras(5)
    assert len(corrected(denoiser, noise, sigmas)) == 5
    model = sd.models.load("digits")
    assert_type(model.event_shape, tuple[int, ...])
    return (
        from_noise(denoiser, noise, 4),
        sd.sample(table.solver, denoiser, noise, table.sigmas).x,
        sd.sample(universal.solver, denoiser, noise, universal.sigmas).x,
        sample_steindiff(lambda x, sigma: torch.zeros_like(x), noise, sigmas, solver="heun", disable=True),
        of_a_scheduler()(torch.ones(2, 3), torch.tensor(1.0)),
    )
