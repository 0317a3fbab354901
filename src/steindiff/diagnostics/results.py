"""What `steindiff diagnose` finds: local Lipschitz constants, the growth of actual errors, γ and σ̂/σ step by step, a toy."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from steindiff.diagnostics.meters import TraceSummary
from steindiff.diagnostics.setup import Setup
from steindiff.diagnostics.toy import Turn
from steindiff.diagnostics.trajectory import Reference, StepReport
from steindiff.models import Model


def largest(values: Iterable[float]) -> float:
    """The largest of those that are numbers; NaN where none is."""
    return max((v for v in values if v == v), default=math.nan)


def median(values: Iterable[float]) -> float:
    """The median of those that are numbers; NaN where none is."""
    return float(torch.tensor([*values, math.nan], dtype=torch.float64).nanquantile(0.5))


@dataclass(frozen=True, eq=False)
class Profile:
    """L_D = ‖∂D/∂x‖₂ along the reference flow, (levels, B), and ‖Jv‖/‖v‖ of random directions, (levels, k·B)."""

    sigmas: Tensor
    lipschitz: Tensor
    random: Tensor
    converged: bool

    def bound(self, sigmas: Tensor) -> Tensor:
        """max over trajectories of r + (1−r) L_D for the steps of a grid, L_D at the nearest level: where to look."""
        nearest = (sigmas[:-1, None].log() - self.sigmas.log()).abs().argmin(1)
        r = sigmas[1:] / sigmas[:-1]
        return r + (1 - r) * self.lipschitz.amax(1).to(r)[nearest]


@dataclass(frozen=True, eq=False)
class Flow:
    """A model, noise, the exact flow from there, and L_D along it."""

    model: Model
    noise: Tensor
    reference: Reference
    profile: Profile

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model.name


@dataclass(frozen=True)
class StepRun:
    """The steps of one solver at one NFE on one model: `steps` in the run, `reports` on those that were measured."""

    model: str
    solver: str
    nfe: int
    steps: int
    reports: tuple[StepReport, ...]

    def peak(self, key: Literal["lipschitz", "actual"]) -> tuple[StepReport, float]:
        """The step where the worst direction or the actual error grows most, and that value; NaN where there is none."""
        scored = [(r, largest(getattr(r, key))) for r in self.reports]
        return max(scored, key=lambda s: s[1] if s[1] == s[1] else -1.0)

    def beside_peak(self) -> tuple[float, float]:
        """At the step and on the trajectory of the largest ‖J‖₂: the median of ‖Jv‖/‖v‖, and the growth of the actual error."""
        report, value = self.peak("lipschitz")
        j = report.lipschitz.index(value)
        return median(report.random[j :: len(report.lipschitz)]), report.actual[j]


@dataclass(frozen=True)
class TraceRun:
    """γ and σ̂/σ of one run, step by step; σ̂/σ asked of the denoiser at each state. `failure`: where it became infinite."""

    model: str
    solver: str
    rule: str
    sigmas: list[float]
    gammas: list[float]
    noise: list[float]
    summary: TraceSummary | None
    failure: str = ""


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Everything that was found; `seconds` it took."""

    setup: Setup
    flows: tuple[Flow, ...]
    cells: tuple[StepRun, ...]
    traces: tuple[TraceRun, ...]
    toy: tuple[Turn, ...]
    seconds: float

    def runs(self, flow: Flow) -> list[StepRun]:
        """Those on one model."""
        return [run for run in self.cells if run.model == flow.name]

    def as_json(self) -> dict[str, object]:
        """Every number, for `write_json`."""
        denoiser = {
            flow.name: {
                **{name: getattr(flow.profile, name).tolist() for name in ("sigmas", "lipschitz", "random")},
                "converged": flow.profile.converged,
                "reference_error": float(flow.reference.errors.max()),
            }
            for flow in self.flows
        }
        toy = {turn.name: turn.as_json() for turn in self.toy}
        cells, traces = ([asdict(run) for run in runs] for runs in (self.cells, self.traces))
        return {"denoiser": denoiser, "cells": cells, "traces": traces, "toy": toy}
