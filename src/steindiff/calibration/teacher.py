"""Trajectories of the exact flow, with the state at any noise level: what a table is fitted to."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import pairwise

import torch
from torch import Tensor

from steindiff import grids
from steindiff.denoisers import Denoiser
from steindiff.errors import InputError, NonFiniteError, require
from steindiff.io import processes
from steindiff.io.memory import Room
from steindiff.owning import Lender
from steindiff.sampling import steps

STEPS = 64
"""Steps of a fine run: UniPC-3 on the EDM grid is then off by far less than any table is."""
Conditioned = Callable[[Tensor], Denoiser]
"""The denoiser of images with these numbers, (B,) int64, where images have classes or prompts of their own."""


@dataclass(frozen=True, eq=False)
class InBatches:
    """A denoiser of many images that evaluates a few at a time, each with its own class or prompt.

    Where several processes work together, each evaluates its share of the images, and all get all of them: calibrations that
    run alike in every process then wait for a part of the network only. One that is `apart` evaluates all of them by itself.

    Args:
        denoiser: D(x, sigma), where one serves all images.
        conditioned: gives the denoiser of some images; None where one serves all.
        index: the images' numbers, (B,); None is 0, 1, ….
        room: how many images one evaluation has.
        apart: whether the other processes do something else.
    """

    denoiser: Denoiser
    conditioned: Conditioned | None = None
    index: Tensor | None = None
    room: Room = field(default_factory=Room)
    apart: bool = False
    _lend: Lender = field(default_factory=Lender, init=False, repr=False)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x, sigma), x (B, *event); sigma (). Raises InputError where memory runs out with the fewest images too."""
        index = torch.arange(len(x)) if self.index is None else self.index
        if (
            self.apart or not processes.active() or self.room.least > 1
        ):  # images that one evaluation must see together are not shared
            return self._in_turn(x, sigma, index)
        mine = processes.share(len(x))
        own = slice(mine.start, mine.stop)
        return processes.gather(self._in_turn(x[own], sigma, index[own]) if mine else x[:0])

    def _in_turn(self, x: Tensor, sigma: Tensor, index: Tensor) -> Tensor:
        """D of these images, as many at a time as there is room for."""
        parts, done = list[Tensor](), 0
        while done < len(x):
            some = slice(done, done + self.room.most)
            call = partial(self._evaluated, x[some], sigma, index[some])
            found = self.room.tried(call, len(x[some]), x.device)
            if found is not None:
                parts.append(found)
                done += len(found)
        return torch.cat(parts)

    def _evaluated(self, x: Tensor, sigma: Tensor, some: Tensor) -> Tensor:
        found: Tensor = self._lend(self._of(some), x, sigma)
        return found

    def _of(self, some: Tensor) -> Denoiser:
        return self.denoiser if self.conditioned is None else self.conditioned(some)


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Where the exact flow takes some noise, at every level between the first and the last.

    Attributes:
        denoiser: D(x, sigma), whose flow it is.
        levels: the noise levels of the fine run, decreasing, (n+1,).
        states: y at these levels, about the mean, (n+1, B, *event).
        slopes: dy/d log σ = y − D at these levels, of the same shape.
        weight: what one squared coordinate of an error counts in a fit, (), or one number a coordinate, (*event).
        mean: the data's mean m, broadcastable to an event; states are y − m.
        stacked: whether the denoiser treats every image of a batch alike, so that several runs may be one batch.
        conditioned: gives the denoiser of some images, where they have classes or prompts; then they may be stacked.
        index: the images' numbers, which `conditioned` knows them by, (B,); None is 0, 1, ….
        room: how many images one evaluation has, where runs are stacked.
        apart: whether evaluations are this process's alone, while others do something else.

    Raises:
        InputError: the levels do not decrease to one above 0, or states and slopes are not one a level.
    """

    denoiser: Denoiser
    levels: tuple[float, ...]
    states: Tensor
    slopes: Tensor
    weight: Tensor
    mean: Tensor
    stacked: bool = True
    conditioned: Conditioned | None = None
    index: Tensor | None = None
    room: Room = field(default_factory=Room)
    apart: bool = False

    def __post_init__(self) -> None:
        falling = len(self.levels) > 1 and all(math.inf > s > t > 0 for s, t in pairwise(self.levels))
        require(falling, "need two or more finite levels that decrease and are above 0", levels=self.levels)
        fits = len(self.levels) == len(self.states) and self.states.shape == self.slopes.shape
        shapes = {"states": tuple(self.states.shape), "slopes": tuple(self.slopes.shape)}
        require(fits, f"need a state and a slope at each of {len(self.levels)} levels", **shapes)

    @property
    def noise(self) -> Tensor:
        """The states at the first level, (B, *event)."""
        return self.states[0]

    @property
    def ends(self) -> Tensor:
        """The states at the last level, (B, *event)."""
        return self.states[-1]

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """D − m of states about the mean, (..., B, *event): several runs may be stacked before the batch."""
        runs = x.reshape(-1, *self.noise.shape)
        level = torch.tensor(sigma, dtype=torch.float64, device=x.device)
        index = torch.arange(len(self.noise)) if self.index is None else self.index
        stack = (runs.flatten(0, 1),) if self.stacked else runs.unbind()
        index, room = (index.repeat(len(runs)), self.room) if self.stacked else (index, _whole(len(self.noise)))
        denoiser = InBatches(self.denoiser, self.conditioned, index, room, self.apart)
        return torch.cat([denoiser(batch + self.mean, level) - self.mean for batch in stack]).reshape(x.shape)

    def part(self, chosen: Tensor) -> "Trajectories":
        """The trajectories of some images, by their places in the batch, (b,); an error as large as their spread counts one."""
        index = torch.arange(len(self.noise)) if self.index is None else self.index
        here = chosen.to(self.states.device)
        states, slopes = self.states[:, here], self.slopes[:, here]
        weight = self.weight.new_tensor(1 / _spread(states[-1]))
        return replace(self, states=states, slopes=slopes, weight=weight, index=index[chosen.cpu()])

    def at(self, sigma: float) -> Tensor:
        """y(σ), by the cubic in log σ that has the values and slopes of the two nearest levels.

        Raises:
            InputError: σ lies outside the levels.
        """
        first, last = self.levels[0], self.levels[-1]
        require(last * (1 - 1e-9) <= sigma <= first * (1 + 1e-9), f"need a level between {last:g} and {first:g}", sigma=sigma)
        i = max(0, min(sum(level > sigma for level in self.levels) - 1, len(self.levels) - 2))
        h = math.log(self.levels[i + 1] / self.levels[i])
        u = math.log(sigma / self.levels[i]) / h
        rise, out, into = u * u * (3 - 2 * u), u * (1 - u) ** 2, u * u * (u - 1)
        value = (1 - rise) * self.states[i] + rise * self.states[i + 1]
        return value + h * (out * self.slopes[i] + into * self.slopes[i + 1])

    @cached_property
    def variance(self) -> float:
        """The mean variance of a coordinate of the end states; of one image, its mean square."""
        return _spread(self.ends) / self.ends.numel()

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """The weighted inner product of two fields (B, *event), ()."""
        return (a.double() * b.double() * self.weight).sum()

    def rmse(self, x: Tensor) -> float:
        """The root mean square error of end states, in units of the data."""
        return float((x - self.ends).double().square().mean().sqrt())


def trajectories(
    denoiser: Denoiser,
    noise: Tensor,
    sigma_max: float = grids.SIGMA_MAX,
    sigma_min: float = grids.SIGMA_MIN,
    *,
    solver: str = "unipc_3",
    count: int = STEPS,
    mean: Tensor | None = None,
    stacked: bool = True,
    conditioned: Conditioned | None = None,
    room: Room | None = None,
    tick: Callable[[], object] = lambda: None,
) -> Trajectories:
    """A fine run from noise at σ_max, (B, *event); errors weigh 1/(B × variance of the end states).

    Args:
        denoiser: D(x, sigma) in VE coordinates.
        noise: the states at σ_max: σ_max ε.
        sigma_max: the first level.
        sigma_min: the last level.
        solver: what runs, on the EDM grid.
        count: the number of its steps.
        mean: the data's mean; None is zero.
        stacked: see `Trajectories`; the fine run of a denoiser that is not is one batch.
        conditioned: see `Trajectories`.
        room: see `Trajectories`; None is a new one.
        tick: is called after every step.

    Raises:
        NonFiniteError: the fine run diverged, or its end states do not vary.
    """
    states, slopes, sigmas = list[Tensor](), list[Tensor](), grids.karras(count, sigma_min, sigma_max)
    m = torch.zeros((), dtype=noise.dtype, device=noise.device) if mean is None else mean.to(noise)
    room = room or Room()
    network = InBatches(denoiser, conditioned, None, room if stacked else _whole(len(noise)))
    for event in steps(solver, network, noise, sigmas):
        x = event.x_before
        states.append(x - m)
        slopes.append(x - event.step.denoised)
        tick()
    last = event.step.x
    states.append(last - m)
    with torch.no_grad():
        slopes.append(last - network(last, sigmas[-1].to(last.device)))
    spread = _spread(states[-1])
    rounding = (16 * torch.finfo(noise.dtype).eps) ** 2 * float(states[-1].double().square().sum())
    if not rounding < spread < math.inf:
        raise NonFiniteError(f"the end states of a fine run have the spread {spread:g}: the denoiser's law is degenerate")
    weight = torch.tensor(1 / spread, dtype=torch.float64, device=noise.device)
    levels = tuple(sigmas.tolist())
    return Trajectories(denoiser, levels, torch.stack(states), torch.stack(slopes), weight, m, stacked, conditioned, None, room)


def _whole(images: int) -> Room:
    """The room of a denoiser whose batch cannot be divided."""
    return Room(images, least=images)


def _spread(ends: Tensor) -> float:
    """The sum of squares about the mean of end states, (B, *event); of one image, the sum of its squares."""
    wide = ends.double()
    return float((wide - wide.mean(0)).square().sum() if len(wide) > 1 else wide.square().sum())


def check(sets: Sequence[Trajectories], levels: Sequence[float]) -> None:
    """Raise InputError where there are no trajectories, or where one does not begin and end with these levels."""
    require(len(sets) > 0, "need the trajectories of at least one law", laws=len(sets))
    for law in sets:
        own, given = (law.levels[0], law.levels[-1]), (levels[0], levels[-1])
        if any(abs(s - t) > 1e-6 * s for s, t in zip(own, given, strict=True)):
            raise InputError(
                f"trajectories from {own[0]:g} to {own[1]:g} for levels from {given[0]:g} to {given[1]:g}: a table and all "
                "trajectories it is fitted to need one range"
            )
