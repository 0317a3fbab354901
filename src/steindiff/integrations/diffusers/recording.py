"""One step of a pipeline's own loop, recorded: what its network is asked, and what is handed to the scheduler.

The pipeline runs as it is, with a scheduler that notes the first step and stops the loop there. Nothing of a pipeline's code is
written again here: how prompts are encoded, sizes added and latents packed is for the pipeline to do.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from steindiff.errors import InputError
from steindiff.integrations.diffusers.asking import Asked, Call, marked, means, per_image
from steindiff.integrations.diffusers.guidance import found
from steindiff.schedules import Schedule

NETWORKS = ("transformer", "unet", "prior")
"""What pipelines call the network that denoises."""
STEPS = 4
_TIMES = ("timestep", "timesteps")
_EMBEDDED = ("guidance", "timestep_cond")
"""Arguments of networks that are told the scale of guidance."""


class _Recorded(BaseException):
    """The step is recorded, and the loop ends here; no handler of errors is to catch it."""


class Seen(NamedTuple):
    """One call of the network: its arguments by name, and its output."""

    arguments: dict[str, Any]
    output: Tensor


@dataclass
class Recorder:
    """A scheduler of diffusers' interface that notes the first step. Its levels are all one, at signal-to-noise ratio 1 or so.

    Attributes:
        schedule: the network's, whose time the pipeline is told.
        config: the pipeline's own scheduler's.
        whole: whether times are whole numbers.
    """

    schedule: Schedule
    config: Any
    whole: bool
    device: Any = None
    timesteps: Any = None
    sigmas: Any = None
    step_index: int | None = None
    begin_index: int | None = None
    order: int = 1
    init_noise_sigma: float = 1.0
    seen: list[Seen] = field(default_factory=list)
    prediction: Tensor | None = None
    state: Tensor | None = None
    time: float = 0.0

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: Any = None,
    ) -> None:
        """As many times as are asked for, all the same."""
        given = timesteps if timesteps is not None else sigmas
        steps = len(given) if given is not None else num_inference_steps or STEPS
        level = torch.tensor(1.3, dtype=torch.float64)
        t = self.schedule.time(level)
        t = t.round().long() if self.whole else t.float()
        self.time, self.timesteps = float(t), t.expand(steps).clone().to(device)
        self.sigmas = level.float().expand(steps + 1).clone().to(device)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Noted, and of no consequence."""
        self.begin_index = begin_index

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The state as it is."""
        return sample

    def add_noise(self, original: Tensor, noise: Tensor, timesteps: Any = None) -> Tensor:
        """The noise alone: which state is recorded does not matter."""
        return noise

    def scale_noise(self, sample: Tensor, timestep: Any = None, noise: Any = None) -> Tensor:
        """As `add_noise`."""
        return noise if isinstance(noise, Tensor) else sample

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *_: Any, **__: Any) -> None:
        """Note what is handed over, and stop."""
        self.prediction, self.state = model_output, sample
        raise _Recorded

    def __len__(self) -> int:
        return 1000


def network_of_pipeline(pipe: Any) -> nn.Module:
    """The network that denoises. Raises InputError where the pipeline has none of a name that we know."""
    for name in NETWORKS:
        network = getattr(pipe, name, None)
        if isinstance(network, nn.Module):
            return network
    have = ", ".join(getattr(pipe, "components", {})) or "nothing"
    raise InputError(
        f"{type(pipe).__name__} has {have}, and no network called {' or '.join(NETWORKS)}: pass the network itself and a "
        "scheduler config, denoiser(network, config)"
    )


def record(pipe: Any, schedule: Schedule, whole: bool, call: Mapping[str, Any]) -> tuple[Asked, tuple[int, ...], torch.dtype]:
    """What the pipeline asks its network when it is called like this; the shape of one state; the network's dtype.

    Raises:
        InputError: the pipeline does not reach a step, or does in it what we do not know.
    """
    named = inspect.signature(type(pipe).__call__).parameters
    said = {name: p.default for name, p in named.items() if p.default is not inspect.Parameter.empty} | dict(call)
    if unknown := sorted(call.keys() - named.keys()):
        raise InputError(f"{type(pipe).__name__} takes no {', '.join(unknown)}: its arguments are {', '.join(list(named)[1:])}")
    ours = {"num_inference_steps": STEPS, "strength": 1.0, "generator": torch.Generator().manual_seed(0)}
    told = {**call, **{name: value for name, value in ours.items() if name in named}}
    recorder = Recorder(schedule, pipe.scheduler.config, whole)
    network = network_of_pipeline(pipe)
    quiet = torch.inference_mode(False), torch.no_grad()
    with _instead(pipe, recorder), _watching(network, recorder.seen), quiet[0], quiet[1], suppress(_Recorded):
        pipe(**told)
    if recorder.prediction is None or recorder.state is None or not recorder.seen:
        raise _not_understood(pipe, "made no step with its network and its scheduler")
    return _understood(pipe, network, recorder, said)


@contextmanager
def _instead(pipe: Any, recorder: Recorder) -> Iterator[None]:
    """The pipeline with this scheduler, and without a bar; afterwards as it was. Its own registration is not touched."""
    own, bar = pipe.scheduler, getattr(pipe, "_progress_bar_config", None)
    object.__setattr__(pipe, "scheduler", recorder)
    object.__setattr__(pipe, "_progress_bar_config", {"disable": True})
    try:
        yield
    finally:
        object.__setattr__(pipe, "scheduler", own)
        if bar is None:
            object.__delattr__(pipe, "_progress_bar_config")
        else:
            object.__setattr__(pipe, "_progress_bar_config", bar)
        pipe.maybe_free_model_hooks()


@contextmanager
def _watching(network: nn.Module, seen: list[Seen]) -> Iterator[None]:
    """Every call of the network is noted."""
    signature = inspect.signature(getattr(network, "_orig_mod", network).forward)

    def note(module: nn.Module, args: Any, named: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output.sample
        seen.append(Seen(dict(signature.bind(*args, **named).arguments), first))

    handle = network.register_forward_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _understood(
    pipe: Any, network: nn.Module, recorder: Recorder, said: Mapping[str, Any]
) -> tuple[Asked, tuple[int, ...], torch.dtype]:
    prediction, state = recorder.prediction, recorder.state
    assert prediction is not None
    assert state is not None
    halved = _first_half(state)
    if halved is not None:  # the loop carries both halves of guidance
        state, prediction = halved, prediction[: len(halved)]
    calls, predictions, images = list[Call](), list[Tensor](), len(state)
    for arguments, output in recorder.seen:
        call = _call(pipe, network, arguments, state, recorder.time)
        calls.append(call)
        predictions += means(output, state.shape[1]).chunk(call.copies)
    guidance = found(predictions, means(prediction, state.shape[1]), said, type(pipe).__name__)
    fixed = [call.fixed for call in calls]
    embedded = any(arguments.get(name) is not None for arguments in fixed for name in _EMBEDDED)
    told = float(said["guidance_scale"]) if embedded and guidance.branches == 1 else None
    dtype = recorder.seen[0].arguments[calls[0].state].dtype
    asked = Asked(tuple(calls), guidance, images if any(map(per_image, fixed)) else 1, told)
    return asked, tuple(state.shape[1:]), dtype


def _first_half(state: Tensor) -> Tensor | None:
    """Half of the state where both halves are the same; else None."""
    half, odd = divmod(len(state), 2)
    return state[:half] if not odd and torch.equal(state[:half], state[half:]) else None


def _call(pipe: Any, network: nn.Module, arguments: dict[str, Any], state: Tensor, t: float) -> Call:
    """A call, taken apart. Raises InputError where the network sees something else than the state, or another time."""
    name, x = next(iter(arguments.items()))
    copies = len(x) // len(state) if isinstance(x, Tensor) else 0
    if (
        copies == 0
        or x.shape != (copies * len(state), *state.shape[1:])
        or not torch.equal(x, torch.cat([state] * copies).to(x))
    ):
        shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise _not_understood(pipe, f"shows its network {name} {shape}, which is not its state {tuple(state.shape)} alone")
    time = next((key for key in _TIMES if key in arguments), None)
    if time is None:
        raise _not_understood(pipe, f"tells its network no time by a name that we know ({', '.join(_TIMES)})")
    told = float(torch.as_tensor(arguments[time]).flatten()[0])
    near = [factor for factor in (1.0, 1e-3) if abs(told - factor * t) <= 0.01 * factor * t]
    if not near:
        raise _not_understood(
            pipe, f"tells its network the time {told:g} where its scheduler has {t:g}: neither it nor a 1000th"
        )
    fixed = {key: value for key, value in arguments.items() if key not in (name, time, "return_dict")}
    return Call(network, marked(fixed, len(x)), name, time, copies, near[0])


def _not_understood(pipe: Any, what: str) -> InputError:
    return InputError(
        f"{type(pipe).__name__} {what}: we serve pipelines that show their network the noisy state, told its time, and guide "
        "by two predictions or none; pass the network and a scheduler config, denoiser(network, config)"
    )
