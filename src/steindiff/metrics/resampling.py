"""Standard errors of statistics that are no means of samples, by leaving out groups or by halving.

Both sets are dealt into g groups; θ_(i) is the statistic without group i of one set, and

    Var θ = Σ over both sets of (g−1)/g Σ_i (θ_(i) − θ̄)².

Where two runs start from the same noise, their groups hold the same seeds, and the same formula with θ_(i) − θ'_(i) gives the
error of the difference: what both have in common cancels.

That serves smooth statistics. Where samples act through their neighbours it overstates the error, twofold in tests: it counts
what samples do together once for each of them. There both sets are split in random halves, S and its complement, many times:

    Var θ = mean over splits of (θ_S − θ_S')²/4,

which is right where n Var θ depends little on n.

Sources: Efron & Stein, "The jackknife estimate of variance" (1981); McCarthy, "Pseudo-replication: half samples" (1969).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steindiff.arguments import check_samples
from steindiff.errors import require, require_whole
from steindiff.metrics.values import Paired, Value, centred

Statistic = Callable[[Tensor, Tensor], float]
"""A number computed from samples x (n, …) and y (m, …)."""


@dataclass(frozen=True, eq=False)
class Replicates(Paired):
    """A statistic θ of x and y, and θ_(i) without each group of either, (g,); empty for a set that is fixed."""

    statistic: float
    without_x: Tensor
    without_y: Tensor
    sizes: tuple[int, int]

    @classmethod
    def of(cls, statistic: float, without: tuple[Sequence[float], Sequence[float]], sizes: tuple[int, int]) -> "Replicates":
        """From numbers."""
        without_x, without_y = (torch.tensor(values, dtype=torch.float64) for values in without)
        return cls(float(statistic), without_x, without_y, sizes)

    @property
    def value(self) -> Value:
        """The statistic with its jackknife error."""
        sets = [v for v in (self.without_x, self.without_y) if len(v)]
        return Value(self.statistic, math.sqrt(sum((len(v) - 1) / len(v) * float((v - v.mean()).square().sum()) for v in sets)))

    @property
    def spread(self) -> Tensor:
        """√((g−1)/g) (θ_(i) − θ̄) of both sets."""
        sets = [v for v in (self.without_x, self.without_y) if len(v)]
        return torch.cat([math.sqrt((len(v) - 1) / len(v)) * centred(v) for v in sets])


@dataclass(frozen=True, eq=False)
class Halves(Paired):
    """A statistic θ of x and y, and how much it differs between their halves, θ_S − θ_S', (splits,)."""

    statistic: float
    gaps: Tensor
    sizes: tuple[int, int]

    @property
    def value(self) -> Value:
        """The statistic with its standard error."""
        return Value(self.statistic, float(self.gaps.square().mean().sqrt() / 2))

    @property
    def spread(self) -> Tensor:
        """(θ_S − θ_S')/(2 √splits)."""
        return self.gaps.detach().to("cpu", torch.float64) / (2 * math.sqrt(len(self.gaps)))


def dealt(n: int, groups: int) -> Tensor:
    """The group of each of n samples in turn, 0, 1, …, groups−1, 0, …, (n,). Raises InputError for fewer than two a group."""
    require_whole(0, groups=groups)
    enough = groups > 1 and n >= 2 * groups
    require(enough, f"a jackknife of {n} samples needs at least 2 groups of at least 2 samples", groups=groups)
    return torch.arange(n) % groups


def jackknife(statistic: Statistic, x: Tensor, y: Tensor, groups: int = 20) -> Replicates:
    """Any statistic of two sets, computed 2g + 1 times: once as a whole, and once without each group of either."""
    x, y = check_samples(x), check_samples(y)
    of_x, of_y = dealt(len(x), groups).to(x.device), dealt(len(y), groups).to(y.device)
    without_x = [statistic(x[of_x != i], y) for i in range(groups)]
    without_y = [statistic(x, y[of_y != i]) for i in range(groups)]
    return Replicates.of(statistic(x, y), (without_x, without_y), (len(x), len(y)))


def jackknife_difference(statistic: Statistic, x: Tensor, base: Tensor, y: Tensor, groups: int = 20) -> Value:
    """Statistic of x and y less that of base and y, x and base from the same noise, with the paired standard error."""
    return jackknife(statistic, x, y, groups).minus(jackknife(statistic, base, y, groups))
