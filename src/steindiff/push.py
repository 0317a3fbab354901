"""Runs that are fed evaluations: a solver asks for them (pull), and a scheduler is given them (push).

A step is pure: `solver.step` sees a denoiser, a state and what it remembers, and changes nothing. So it can be replayed. A run
here calls the step with a denoiser that returns the evaluations of this step known so far and stops it where it asks for one
more: that is the next query, a state and a level. Given its answer, the step is called again. Every solver runs unmodified,
however often it evaluates in a step, and ends where `sample` ends, to the bit.

    run = Fed.start(solver, x, sigmas)
    while run.query is not None:
        run = run.told(denoiser(*run.query))
    run.x

A replay repeats the arithmetic of a step and no evaluation. A correction that differentiates the network cannot be fed values
alone, and is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from steindiff import grids
from steindiff.arguments import check_dense, check_state
from steindiff.corrections import Corrected
from steindiff.divergence.products import fresh
from steindiff.errors import InputError, require
from steindiff.owning import Lender, Writes, writes
from steindiff.sampling import Generators, seeds
from steindiff.solvers import Grid, Solver, State, Step


class Query(NamedTuple):
    """What a run must be told next: D(x, sigma)."""

    x: Tensor
    """(B, *event), in VE coordinates."""
    sigma: Tensor
    """() in float64, or (B,)."""


class _Lent(NamedTuple):
    """A query as the step asks it, and the counters of writes of what is lent in its place."""

    own: Query
    writes: Writes


class _Asked(BaseException):
    """A step has asked for an evaluation that is not known; no handler of errors is to catch it."""

    def __init__(self, query: Query) -> None:
        super().__init__()
        self.query = query


class _Replay:
    """A denoiser that knows some evaluations, in the order in which they are asked for."""

    def __init__(self, known: Sequence[Tensor], about: object) -> None:
        self._known = iter(known)
        self.denoiser = about  # what it says of itself is found there

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        value = next(self._known, None)
        if value is None:
            raise _Asked(Query(x, sigma))
        return value


@dataclass(frozen=True, eq=False)
class Fed:
    """A run between two evaluations; `told` gives the run after the next one.

    Attributes:
        solver: what runs, a correction included.
        grid: its levels.
        index: the step that is under way; the number of steps where the run is over.
        x: the state at the start of that step, in VE coordinates; the end state where the run is over.
        query: what must be evaluated next; None where the run is over.
    """

    solver: Solver
    grid: Grid
    index: int
    x: Tensor
    query: Query | None
    _state: State
    _known: tuple[Tensor, ...]
    _about: object
    _lender: Lender
    _lent: _Lent | None = None
    _offset: Tensor | None = None

    @classmethod
    def start(cls, solver: Solver, x: Tensor, sigmas: Tensor, about: object = None, generator: Generators = None) -> "Fed":
        """A run from x, (B, *event) at sigmas[0], to its first query.

        Args:
            solver: a solver with a grid, corrected or not.
            x: the state, float32 or float64.
            sigmas: the levels, as `sample` takes them.
            about: what says the schedule, the guidance and so on, as attributes of a denoiser do; it is not called.
            generator: as `sample` takes it.

        Raises:
            InputError: the levels are malformed, or the solver differentiates the network.
        """
        check_state(x)
        solver = solver if generator is None else solver.seeded(seeds(generator, len(x)))
        x, grid = fresh(x).clone(), Grid.of(fresh(grids.validate(sigmas).to(x.device)).clone())
        if solver.differentiates(x, grid):
            raise InputError(
                f"{solver} takes derivatives of the network, and a run that is fed its values has none: choose a form without "
                "them, such as clamped(mode=tweedie), energy with moment=, or a frozen γ; or run it with steindiff.sample and "
                "a denoiser, for a pipeline steindiff.integrations.diffusers.denoiser(pipe, ...)"
            )
        with torch.no_grad():
            state = solver.init(_Replay((), about), x, grid)
        return cls(solver, grid, 0, x, None, state, (), about, Lender())._advanced()

    def told(self, denoised: Tensor) -> "Fed":
        """The run after its query is answered; the answer may be overwritten then, and so may the query be before.

        Raises:
            InputError: the run is over, or the shape or dtype is not the state's; or the query has been written into, and the
                first one of the run was not.
        """
        require(self.query is not None, "the run is over: start another", steps=self.grid.steps)
        assert self._lent is not None
        assert self.query is not None
        if not isinstance(denoised, Tensor):
            raise InputError(f"told {type(denoised).__name__}: need the denoised tensor, like the query's x")
        check_dense("the answer", denoised)
        if denoised.shape != self.x.shape or denoised.dtype != self.x.dtype:
            raise InputError(
                f"told {tuple(denoised.shape)} {denoised.dtype} for {tuple(self.x.shape)} {self.x.dtype}: they must agree"
            )
        self._lender.settle(self._lent.own, self.query, self._lent.writes)
        return replace(self, _known=(*self._known, denoised.clone()))._advanced()

    def moved(self, change: Tensor) -> "Fed":
        """The same where somebody has changed the point of the query, before it is answered.

        At the start of a step the state itself is changed. Within a step the point is, and the state at the end of the step by
        as much: otherwise a solver that goes back to the start of its step, as UniPC's corrector does, would forget the change.
        """
        require(self.query is not None, "the run is over, and nothing of it can be changed", steps=self.grid.steps)
        assert self._lent is not None
        query = self._lent.own
        if not self._known and query.x is self.x:
            return replace(self, x=self.x + change, query=None)._advanced()
        offset = change if self._offset is None else self._offset + change
        return replace(self, _offset=offset)._asking(Query(query.x + change, query.sigma))

    def _asking(self, query: Query) -> "Fed":
        """This run with a query, whose tensors are its own, or copies where the one who is asked writes into them."""
        lent = self._lender.lend(query)
        shown = query if lent is query else Query(*lent)
        return replace(self, query=shown, _lent=_Lent(query, writes(shown)))

    @torch.no_grad()
    def _advanced(self) -> "Fed":
        """To the next query, through steps that evaluate nothing, or to the end."""
        index, x, state, known, offset = self.index, self.x, self._state, self._known, self._offset
        while index < self.grid.steps:
            try:
                step: Step = self.solver.step(_Replay(known, self._about), x, self.grid.interval(index), state)
            except _Asked as asked:
                return replace(self, index=index, x=x, _state=state, _known=known, _offset=offset)._asking(asked.query)
            x, state = step.x if offset is None else step.x + offset, step.state
            index, known, offset = index + 1, (), None
        return replace(self, index=index, x=x, query=None, _state=state, _known=(), _lent=None, _offset=None)


class Asked(NamedTuple):
    """One evaluation of a run, as far as it is known before the run."""

    sigma: float
    """The level that the network is told."""
    step: int
    """The step it belongs to."""
    first: bool
    """Whether it is the first of its step."""


def asked(solver: Solver, sigmas: Tensor) -> tuple[Asked, ...]:
    """All evaluations of a run over these levels, from a run on one small image; no network is asked. Errors as `Fed.start`."""
    run, found = _small(solver, sigmas, 1.0), list[Asked]()
    while run.query is not None:
        found.append(Asked(float(run.query.sigma), run.index, not run._known))
        run = run.told(torch.zeros_like(run.x))
    return tuple(found)


def share_of_noise(solver: Solver, sigmas: Tensor) -> float:
    """∂p/∂x, p the point of the first evaluation: 1, or the weight of a free first step. Errors as `asked`."""
    points = [_small(solver, sigmas, x).query for x in (1.0, 0.0)]
    ends = [float(point.x.reshape(-1)[0]) for point in points if point is not None]
    require(len(ends) == 2, "a run without an evaluation cannot be fed", solver=str(solver))
    return ends[0] - ends[1]


def _small(solver: Solver, sigmas: Tensor, x: float) -> Fed:
    """The start of a run on one image of equal coordinates; a correction asks for no evaluation of its own, and is left out."""
    plain = solver.solver if isinstance(solver, Corrected) else solver
    assert isinstance(plain, Solver)
    return Fed.start(plain, torch.full((1, *(plain.event or (1,))), x, dtype=torch.float64), sigmas.to("cpu", torch.float64))
