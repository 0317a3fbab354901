"""Our solvers as a scheduler of diffusers: `pipe.scheduler = SteindiffScheduler.from_config(pipe.scheduler.config)`.

A pipeline calls its network at `timesteps`, in order, and hands each output to `step`, which returns the latents that the
network shall see next. Here is what pipelines look at and call; the run itself is in `running`.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.outputs import BaseOutput
from torch import Tensor

from steindiff.errors import InputError, require
from steindiff.integrations.diffusers import plan as planning
from steindiff.integrations.diffusers.beside import found_in
from steindiff.integrations.diffusers.config import read
from steindiff.integrations.diffusers.fields import OWN
from steindiff.integrations.diffusers.plan import Levels, Options, Plan, Shift
from steindiff.integrations.diffusers.running import Running
from steindiff.sampling import Generators
from steindiff.schedules import DiscreteBetas, RectifiedFlow

logger = logging.getLogger(__name__)
_OPTIONS = frozenset(field.name for field in fields(Options))
_SAME = 1e-4
"""How far a time may be, relatively, from the one that is meant."""
_ADVICE = (
    "steindiff.integrations.diffusers.calibrate(pipe, ...) makes a table for this network, which table=tables_beside(pipe) "
    "then takes"
)
_HIGHEST = 1e8
"""The level that stands for pure noise where noise is added."""


@dataclass
class SteindiffOutput(BaseOutput):
    """What `step` returns.

    Attributes:
        prev_sample: what the network shall see next; after the last step, the images or latents.
        pred_original_sample: the denoised value of this evaluation.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class SteindiffScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # as every scheduler of diffusers
    """A scheduler that runs any of our solvers; make it with `from_config`.

    Attributes:
        timesteps: the times that the network is told, in order, float32.
        sigmas: the levels at these times and the last one: t of a flow, else σ/α; float32, on the CPU.
        num_inference_steps: how many evaluations a run has.
        convention: what the config says of the network.
        plan: the run that `set_timesteps` has planned.
        beside: a folder of calibrated tables, of which `auto` takes the one that serves a run; that of a pipeline which was
            loaded with this scheduler, and None for no such folder.
    """

    order = 1
    _compatibles: list[str] = []  # noqa: RUF012  # diffusers' name for classes of its own

    def __init__(self, **config: Any) -> None:
        self.register_to_config(**config)  # type: ignore[no-untyped-call]
        own = dict(config.get(OWN) or {})
        if strange := sorted(own.keys() - _OPTIONS):
            raise InputError(f"{', '.join(strange)}: SteindiffScheduler.from_config takes {', '.join(sorted(_OPTIONS))}")
        self.options = Options(**own)
        self.convention = read(config)
        self._shift, self._times = Shift.of(config), int(config.get("num_train_timesteps") or 1000)
        schedule = self.convention.schedule
        if isinstance(schedule, DiscreteBetas):
            self.alphas_cumprod = (1 - schedule.betas).cumprod(0).float()
        self.num_inference_steps: int | None = None
        self.plan: Plan | None = None
        self.beside: str | None = None
        self._running: Running | None = None
        self._begin_index: int | None = None
        self._step_index: int | None = None
        ends = (math.log10(self.convention.sigma_max), math.log10(self.convention.sigma_min))
        self._show(torch.logspace(*ends, self._times, dtype=torch.float64).tolist(), 0.0, None)

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **changes: Any) -> Any:
        """The scheduler for a pipeline whose own scheduler has this config.

        Args:
            config: `pipe.scheduler.config`, or that of one of ours.
            return_unused_kwargs: as in diffusers; nothing is left unused.
            changes: options of ours, and new values of the config's own fields. Ours are:

                - solver: a name or a spec, such as "dpmpp_2m" or "unipc_3"; "auto" takes the best known.
                - correction: the spec of a correction without derivatives.
                - table: a file of calibrated tables, or a folder of such files.
                - guidance_scale: the scale of guidance that the pipeline will be called with, which no scheduler is told. None:
                  that of the table, or 1.
                - sigma_data: the standard deviation of what the network denoises; None is as `read` has it.
                - grid: the spec of a grid for solvers that run on any, as `grids.make` takes it; "time_uniform" and
                  "time_quadratic" are in the network's own time. None: EDM's, or for a flow equal steps in time, shifted as
                  the config says.
                - final: where a run ends, "sigma_min", the last trained level, or "zero".
                - bounded: whether `clip_sample` and `thresholding` of the config bound the denoised value.
                - ignore: fields of the config that mean nothing for the network.

        Raises:
            InputError: the config is not understood, or an option is not one; the error names it.
        """
        if not isinstance(config, dict):
            raise InputError(f"the config is {type(config).__name__}: give pipe.scheduler.config")
        base = {name: value for name, value in config.items() if name != "_use_default_values"}
        own = dict(base.pop(OWN, None) or {})
        for name, value in changes.items():
            (own if name in _OPTIONS else base)[name] = value
        made = cls(**base, **{OWN: Options(**own).as_json()})
        if "_class_name" in base:
            made.register_to_config(_class_name=cls.__name__)  # type: ignore[no-untyped-call]
        return (made, {}) if return_unused_kwargs else made

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any = None,
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The scheduler of a saved pipeline, as in diffusers; `auto` then finds the tables calibrated beside the pipeline."""
        made: Any = super().from_pretrained(pretrained_model_name_or_path, subfolder, return_unused_kwargs, **kwargs)
        scheduler = made[0] if return_unused_kwargs else made
        if pretrained_model_name_or_path is not None:
            scheduler.beside = found_in(Path(pretrained_model_name_or_path, subfolder or "").resolve().parent)
        return made

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
        mu: float | None = None,
    ) -> None:
        """Plan a run.

        Args:
            num_inference_steps: the number of network evaluations.
            device: where `timesteps` go.
            timesteps: times of one's own instead, for a solver that runs on any levels.
            sigmas: levels of one's own instead: those of a flow are its times in (0, 1], before its shift and without the last
                level; all others are σ/α with the last level, which may be 0. Equal steps from 1 to 1/n, which pipelines of
                flows give by themselves, stand for n evaluations.
            mu: the shift of a flow with `use_dynamic_shifting`.

        Raises:
            InputError: none or several of these are given, or the solver cannot run so.
        """
        levels = Levels(self.convention, self.options.grid, self.options.final, self._shift, mu)
        need = "give timesteps or sigmas, and not both"
        require(timesteps is None or sigmas is None, need, timesteps=timesteps, sigmas=sigmas)
        times = None if timesteps is None else [float(t) for t in timesteps]
        values = None if sigmas is None else [float(s) for s in sigmas]
        if values is not None and self._usual(values):
            num_inference_steps, values = len(values), None
        if times is None and values is None:
            n = num_inference_steps
            require(n is not None, "give the number of evaluations, or timesteps or sigmas", num_inference_steps=n)
            plan = planning.for_nfe(self.options, self.convention, n or 0, levels, self.beside)
            self._say(plan)
        else:
            chosen = levels.at(times) if times is not None else levels.given(values or [])
            plan = planning.on_levels(self.options, self.convention, chosen)
            agrees = num_inference_steps in (None, len(plan.told))
            require(agrees, f"these levels are {len(plan.told)} evaluations", num_inference_steps=num_inference_steps)
        self.plan, self.num_inference_steps = plan, len(plan.told)
        self._running = self._begin_index = self._step_index = None
        self._show(plan.told, plan.end, device)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The latents as they are: they are always what the network shall see."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> "SteindiffOutput | tuple[Tensor, Tensor]":
        """Take the network's output, and give the latents for the next evaluation.

        Args:
            model_output: the network's output for `sample` at `timestep`, guidance included; a second half of channels, a
                variance, is not used.
            timestep: the time that the network was told: the next of `timesteps`.
            sample: the latents that it has seen. What a pipeline has changed in them since the last step is a change of the
                state.
            eta: 0; our ODE solvers draw no noise.
            use_clipped_model_output: of no consequence: a bound is on the denoised value, and the noise follows from it.
            generator: seeds a solver that draws noise.
            return_dict: whether to return a `SteindiffOutput`, or a tuple.

        Raises:
            InputError: no run is planned, it is over, the time is not the next one, or a shape differs from the last step's.
            NonFiniteError: the run ends in NaN or infinity.
        """
        require(not eta, "these solvers draw no noise: leave eta at 0, or take solver='restart' for a stochastic one", eta=eta)
        index = self._index(timestep)
        if self._running is not None:
            here = self._running.changed(sample, index)
        else:
            here = Running.start(self._from(index), index, sample, self.convention.schedule, generator)
        self._running, latents, denoised = here.told(model_output, index, self.convention)
        self._step_index = index + 1
        found = latents.to(model_output.dtype), denoised.to(model_output.dtype)
        return SteindiffOutput(*found) if return_dict else found

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Latents at these times: α x* + σ ε; timesteps is (B,), or one for all."""
        wide = torch.float32 if noise.device.type == "mps" else torch.float64
        t = torch.as_tensor(timesteps).to(original_samples.device, wide).reshape(-1, *[1] * (original_samples.ndim - 1))
        s = self.convention.schedule.ratio(t).nan_to_num(posinf=_HIGHEST).clamp(max=_HIGHEST)
        alpha = self.convention.schedule.alpha_of(s)
        return (alpha * original_samples.to(wide) + alpha * s * noise.to(wide)).to(original_samples.dtype)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """As `add_noise`, by the name and in the order that pipelines of flows have."""
        return self.add_noise(sample, noise, timestep)

    @property
    def init_noise_sigma(self) -> float:
        """The deviation of the first latents: that of the noise at the first trained level, and 1 for pure noise."""
        top = torch.tensor(self.convention.sigma_max, dtype=torch.float64)
        return 1.0 if self.convention.from_noise else float(self.convention.schedule.alpha_of(top) * top)

    @property
    def step_index(self) -> int | None:
        """The next evaluation; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The evaluation that a run begins with; None where the first time that is seen says it."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin with this evaluation of the plan, from latents with noise of its level. Call it after `set_timesteps`."""
        self._begin_index = begin_index

    def index_for_timestep(self, timestep: Any) -> int:
        """The first place of a time in `timesteps`. Raises InputError where it is none of them."""
        t = float(timestep)
        near = ((self.timesteps.to("cpu", torch.float64) - t).abs() <= _SAME * max(abs(t), 1.0)).nonzero()
        shown = [round(value, 3) for value in self.timesteps.tolist()[:12]]
        require(len(near) > 0, f"none of the times of set_timesteps, which begin with {shown}", timestep=t)
        return int(near[0])

    def __len__(self) -> int:
        return self._times

    def _index(self, timestep: Any) -> int:
        """The evaluation that this call answers. Raises InputError where none is expected, or another one."""
        if self.plan is None:
            raise InputError("no run is planned: call set_timesteps before step")
        index = self._step_index if self._step_index is not None else self._begin_index
        if index is None:
            return self.index_for_timestep(timestep)
        n = len(self.plan.told)
        need = f"the run has {n} evaluations and is over: call set_timesteps before another"
        require(0 <= index < n, need, step_index=index)
        expected = self.timesteps[index]
        # The very element of `timesteps` needs no look at its value, for which an accelerator would have to be waited for.
        mine = isinstance(timestep, Tensor) and timestep.data_ptr() == expected.data_ptr()
        if not mine and abs(float(timestep) - float(expected)) > _SAME * max(abs(float(expected)), 1.0):
            raise InputError(
                f"timestep={float(timestep):g} at evaluation {index}, where {float(expected):g} is next: call step once for "
                "each of scheduler.timesteps, in order, and set_timesteps before each run"
            )
        return index

    def _from(self, index: int) -> Plan:
        """The plan from this evaluation on."""
        assert self.plan is not None  # set_timesteps has been called
        return self.plan if index == 0 else planning.after(self.plan, index, self.options, self.convention)

    def _usual(self, values: Sequence[float]) -> bool:
        """Whether these are the times that pipelines of flows give for a number of evaluations."""
        n = len(values)
        even = n > 0 and all(math.isclose(v, 1 - i / n, rel_tol=1e-4) for i, v in enumerate(values))
        return even and isinstance(self.convention.schedule, RectifiedFlow)

    def _show(self, told: Sequence[float], end: float, device: str | torch.device | None) -> None:
        """Set what pipelines look at."""
        levels, schedule = torch.tensor([*told, end], dtype=torch.float64), self.convention.schedule
        self.timesteps = schedule.time(levels[:-1]).float().to(device)
        self.sigmas = (levels / (1 + levels) if isinstance(schedule, RectifiedFlow) else levels).float()

    def _say(self, plan: Plan) -> None:
        """Once for each choice: what "auto" takes."""
        chosen, said = self.options, planning.setting_of(self.options, self.convention)
        if chosen.solver == "auto" and chosen.table is None:
            guided = "" if chosen.guidance_scale is not None else " (not said: pass guidance_scale= where the pipeline guides)"
            advice = _ADVICE if plan.event is None else f"It lies in {self.beside}"
            _once(
                f"steindiff: auto takes the {plan.solver}, for sigma_data={said.sigma_data:g} and guidance_scale="
                f"{said.guidance:g}{guided}. {advice}"
            )


@cache
def _once(text: str) -> None:
    logger.warning(text)
