"""`SteinDiff`: the paper's rule as a module that a loop calls after each of its steps."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from steindiff.corrections.blend import Decision, Moments, Need, inner_products
from steindiff.corrections.corrected import Note
from steindiff.corrections.proposal import Divergence, by_estimator
from steindiff.corrections.stein import CleanTarget, Mode
from steindiff.denoisers import Denoiser
from steindiff.divergence import Estimator, Hutchinson
from steindiff.errors import DerivativeWarning, SteindiffError, require
from steindiff.io.processes import Gather, alone
from steindiff.noise import fresh_seed
from steindiff.owning import Lender
from steindiff.sampling import Generators
from steindiff.standalone.given import Given, Scalar, StepFunction
from steindiff.trace import Record, Trace


@dataclass(frozen=True, eq=False)
class _Found:
    """What a step is worth."""

    candidate: Tensor
    decision: Decision
    note: Note


class SteinDiff(nn.Module):
    """SteinDiff beside any sampling loop: x' = (1−γ) x + γ T(x), γ = max(γ*, γ_min) (paper, Eq. 11, Algorithm 1, App. E.1).

    Call `apply` after each step of the loop, with the state x, (B, *event), and the solver's candidate T(x). Both are in the
    loop's own coordinates, where x = α x* + σ ε: α = 1 in a k-diffusion loop, α = √ᾱ in DDPM's. γ is one number for the batch.
    The mode decides what else a step must give, and an error names what is missing:

    - "full" needs `step`, the function x -> T(x). It is evaluated once, with one derivative for each probe; where there is no
      `candidate`, this evaluation is the candidate. The function must have no side effects and call the network with gradients
      on. What it holds constant has no part in the derivative: γ* is not Eq. 9's where that is a multistep method's history.
    - "analytical" needs `linear`, a in T(x) = a x + (network outputs): σ'/σ for Euler, DDIM, Heun, DPM-Solver++ and UniPC.
    - "adaptive" needs `linear` where σ/α > `threshold`, and `step` elsewhere.
    - "tweedie" (ours) needs `denoised`, D(x) ≈ E[x* | x]. It takes no derivative and no probe, and it is right for multistep
      methods too: prefer it there.

    The module has no weights, and its state_dict is empty. The number of the next step, which picks the probes, and the trace
    stand in the object; `reset` begins another run. A step that takes a derivative cannot itself be differentiated. For float16
    and bfloat16 states, sums and the blend are taken in float32.

    Example:
        >>> stein = SteinDiff("tweedie", gamma_max=1.0)
        >>> x, D, sigma, sigma_next = torch.tensor([[4.0, -3.0]]), torch.tensor([[0.5, 0.5]]), 4.0, 1.0
        >>> stein.apply(x, x + (sigma_next - sigma) * (x - D) / sigma, 1.0, sigma, denoised=D)
        tensor([[ 1.3750, -0.3750]])
        >>> round(stein.trace[0].gamma_raw, 4)
        1.3333

    Args:
        mode: "full", "analytical", "adaptive" (the paper's) or "tweedie", as for `CleanTarget`.
        probes: the number of Rademacher probes, differentiated in reverse mode; or an estimator, `Hutchinson(1, method="fd")`.
        gamma_min: the lower bound of γ; the paper has 1e-6.
        gamma_max: the upper bound. None, as printed, is no bound, and diverges on exact models; with 1.0 it is a blend.
        threshold: the level σ/α of "adaptive"; the paper gives no value, 1.0 is ours.
        seed: what probes are drawn from, one int or one per image; None leaves the estimator's own, 0.
        gather: joins per-image numbers of several processes before a batch mean (`steindiff.io.processes.gather`).
    """

    def __init__(
        self,
        mode: Mode = "full",
        probes: int | Estimator = 5,
        gamma_min: float = 1e-6,
        gamma_max: float | None = None,
        *,
        threshold: float = 1.0,
        seed: int | tuple[int, ...] | None = None,
        gather: Gather = alone,
    ) -> None:
        super().__init__()
        self.rule = CleanTarget(gamma_min, gamma_max, mode, threshold)
        estimator = probes if isinstance(probes, Estimator) else Hutchinson(probes, method="vjp")
        self.estimator = estimator if seed is None else estimator.seeded(seed)
        self.gather = gather
        self.reset()

    def reset(self, *, index: int = 0, generator: Generators = None) -> "SteinDiff":
        """Begin a run: an empty trace, and the probes of step `index`; from other seeds where generators are given.

        Args:
            index: the number of the next step; above 0 where a run goes on that was stopped.
            generator: one, or one per image, whose probes are then independent of its batch-mates; each moves on by one draw.

        Raises:
            InputError: index below 0.
        """
        require(index >= 0, "need the number of a step", index=index)
        if isinstance(generator, torch.Generator):
            self.estimator = self.estimator.seeded(fresh_seed(generator))
        elif generator is not None:
            self.estimator = self.estimator.seeded(tuple(map(fresh_seed, generator)))
        self.index = index
        self._trace, self._warned, self._lend = Trace(), False, Lender()
        return self

    @property
    def trace(self) -> tuple[Record, ...]:
        """A record of every step since `reset`: γ, γ before its bounds, the moments, and the reason. It waits for the device.

        `source` is "full" where `step` was differentiated, whatever that holds constant.
        `sigma` is σ/α, and `sigma_next` is NaN, since no step is told where it leads. `noise_ratio` is σ̂/σ with
        σ̂² = E⟨u, x − αD⟩/E[∇·u], at steps that take a derivative and are given `denoised` too.
        """
        return self._trace.records()

    def compute_optimal_gamma(
        self,
        x: Tensor,
        candidate: Tensor | None,
        alpha: Scalar,
        sigma: Scalar,
        *,
        step: StepFunction | None = None,
        denoised: Tensor | None = None,
        linear: Scalar | None = None,
        index: int | None = None,
    ) -> Tensor:
        """γ of one step, () in float32 or better: Eq. 11, then the bounds; 1 where T(x) = x. Nothing is recorded.

        Args:
            x: the state before the step, (B, *event).
            candidate: T(x), what the solver makes of it, (B, *event); None: `step` makes it.
            alpha: α > 0 before the step, a number; 1 in VE coordinates.
            sigma: σ > 0 before the step, a number, in the units of x.
            step: x -> T(x), for a derivative.
            denoised: D, the denoised value that the step starts from, (B, *event), in the units of the clean x*.
            linear: ∂T/∂x with every network output held fixed, a number.
            index: the number of the step, which picks the probes; None: that of the next one since `reset`.

        Raises:
            InputError: an argument is malformed, the mode needs one that is not there, or `step` does not make the candidate.
            NonFiniteError: x, the candidate or the denoised value is not finite.
            SteindiffError: no derivative reaches the step, or the step is being differentiated. A DerivativeWarning says where
                one reaches the step, but seems not to reach its network.
        """
        given = Given(x, candidate, alpha, sigma, step, denoised, linear, self.rule.mode, self._lend)
        return self._solve(given, self.index if index is None else index).decision.gamma

    def forward(
        self,
        x: Tensor,
        candidate: Tensor | None,
        alpha: Scalar,
        sigma: Scalar,
        *,
        step: StepFunction | None = None,
        denoised: Tensor | None = None,
        linear: Scalar | None = None,
        index: int | None = None,
    ) -> Tensor:
        """(1−γ) x + γ T(x), (B, *event), in the dtype of x; γ = 1 is the candidate itself. The trace gets a record.

        Arguments and errors are those of `compute_optimal_gamma`.
        """
        given = Given(x, candidate, alpha, sigma, step, denoised, linear, self.rule.mode, self._lend)
        at = self.index if index is None else index
        found = self._solve(given, at)
        self._trace.put(at, given.level, math.nan, found.note)
        self.index = at + 1
        start, end, gamma = (z.to(given.wide) for z in (x, found.candidate, found.decision.gamma))
        return torch.lerp(start, end, gamma).to(x.dtype)

    @overload
    def apply(self, x: Callable[[nn.Module], None]) -> "SteinDiff": ...

    @overload
    def apply(self, x: Tensor, candidate: Tensor | None, alpha: Scalar, sigma: Scalar, **parts: Any) -> Tensor: ...

    def apply(self, x: Any, *args: Any, **parts: Any) -> Any:
        """The corrected state, as `forward` makes it: `apply(x, candidate, alpha, sigma, step=f, denoised=D, linear=a)`.

        The paper's name is that of `nn.Module.apply(function)` too, which visits modules: a function alone does so here.
        """
        if not isinstance(x, Tensor) and callable(x) and not args and not parts:
            return super().apply(x)
        return self(x, *args, **parts)

    def extra_repr(self) -> str:
        """The rule, and the estimator where it is used."""
        return f"{self.rule}, {self.estimator}" if self.rule.mode in ("full", "adaptive") else f"{self.rule}"

    def _solve(self, given: Given, index: int) -> _Found:
        """Eq. 11 from the moments of the step, in float64 where the device has it."""
        x, need, numbers = given.x, self.rule.need(given.level), dict[str, Tensor]()
        candidate, div = self._divergence(given, need, index)
        fine = torch.float32 if x.device.type == "mps" else torch.float64
        one, alpha, sigma, unknown = torch.tensor([1, given.alpha, given.sigma, math.nan], dtype=fine, device=x.device).unbind()
        m = Moments(alpha, sigma, unknown, unknown, *inner_products(x, candidate, one, self.gather), *div)
        decision = self.rule.decide(m, index)
        if need is Need.FULL and given.denoised is not None:
            numbers["noise_ratio"] = (given.by_tweedie(candidate, self.gather).mean / div.mean).sqrt()
        numbers |= {name: value for name, value in m._asdict().items() if value is not unknown}
        numbers |= {"gamma": decision.gamma, "gamma_raw": decision.raw, "source": torch.full_like(m.uu, need)}
        note = Note(decision.reason, {name: value.detach() for name, value in numbers.items()})
        return _Found(candidate, decision, note)

    def _divergence(self, given: Given, need: Need, index: int) -> tuple[Tensor, Divergence]:
        """The candidate and E[∇·u]."""
        if need is Need.FULL:
            return self._estimated(given, index)
        candidate = given.evaluated()
        return candidate, given.by_tweedie(candidate, self.gather) if need is Need.TWEEDIE else given.of_linear_part()

    def _estimated(self, given: Given, index: int) -> tuple[Tensor, Divergence]:
        """The candidate and E[∇·u] by the estimator, in one evaluation of the step where no candidate is given."""
        step = given.step
        if step is None:
            raise given.lacks("step=f, the function x -> candidate, or choose mode='tweedie' with denoised=D")

        def residual(_: Denoiser, z: Tensor) -> tuple[Tensor, Tensor]:
            out = self._lend(step, z)
            _check_differentiable(z, given.like("step(x)", out))
            return z - out, out

        def network(z: Tensor, _: Tensor) -> Tensor:
            return self._lend(step, torch.cat([z, given.x[len(z) :]]))[: len(z)]  # type: ignore[no-any-return]

        if isinstance(self.estimator, Hutchinson) and self.estimator.method == "auto":
            self.estimator = self.estimator.resolve(network, given.x, torch.tensor(given.sigma))
        estimate, own = by_estimator(self.estimator, residual, network, given.x, index, self.gather)
        candidate = given.agreed(own)
        if given.x.dtype is given.wide and not self._warned:  # a narrow dtype may round a small derivative away
            self._warned = _warn_if_constant(estimate.values)
        return candidate, Divergence(estimate.mean, estimate.se)


def _check_differentiable(z: Tensor, out: Tensor) -> None:
    """Refuse a step through which no derivative comes at all; u = x − T(x) would still have one, that of x."""
    cut = z.requires_grad and not out.requires_grad
    if cut or (forward_ad.unpack_dual(z).tangent is not None and forward_ad.unpack_dual(out).tangent is None):
        raise SteindiffError(
            "no derivative comes through step(x): does it run under torch.no_grad or inference_mode, or detach its input? Let "
            "gradients through, take probes=Hutchinson(5, method='fd'), or choose mode='tweedie', which needs none"
        )


def _warn_if_constant(values: Tensor) -> bool:
    """Whether vᵀJv is the same for all images and probes, with a warning: only x's own part may have a derivative then."""
    constant = values.numel() > 1 and bool((values == values[0, 0]).all())
    if constant:
        warnings.warn(
            f"vᵀ(∂u/∂x)v is {float(values[0, 0]):g} for every image and probe, as if the network had no derivative: does "
            "step(x) call it under torch.no_grad or inference_mode, or detach its output? Let gradients through, or choose "
            "mode='tweedie', which needs none. (It is right for a linear network of one eigenvalue.)",
            DerivativeWarning,
            stacklevel=2,
        )
    return constant
