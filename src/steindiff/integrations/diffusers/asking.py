"""What a pipeline asks its network in one step, asked again at any state and time, for any of its images.

The arguments of a call are kept as the pipeline made them: prompt embeddings, added conditions, class labels, embedded
guidance. A tensor whose first axis is the network's batch has a row for each image; everything else is shared.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from steindiff.errors import InputError, require
from steindiff.integrations.diffusers.guidance import Guidance

_SHARED = frozenset({"img_ids", "txt_ids", "image_rotary_emb"})
"""Arguments that have no axis of images, even where their first axis happens to be as long."""


@dataclass(frozen=True, eq=False)
class Call:
    """One call of the network in a step of the loop.

    Attributes:
        network: the module that is called.
        fixed: all arguments but the state and the time, with rows for `copies` times the images.
        state: the name of the state's argument.
        time: the name of the time's argument.
        copies: how often the state stands in one batch: 2 where both halves of guidance go together.
        time_factor: what the scheduler's time is multiplied with for the network.
    """

    network: nn.Module
    fixed: Mapping[str, Any]
    state: str
    time: str
    copies: int = 1
    time_factor: float = 1.0

    def __call__(self, x: Tensor, t: Tensor) -> list[Tensor]:
        """The predictions of all copies, (B, *event) each, for x (B, *event) in the network's dtype and t (B,)."""
        said = {name: _rows(value, self.copies, lambda rows: _spread(rows, len(x))) for name, value in self.fixed.items()}
        if self.time_factor != 1:
            t = self.time_factor * t
        said |= {self.state: torch.cat([x] * self.copies), self.time: t.repeat(self.copies)}
        output = self.network(**said, return_dict=False)[0]
        return list(means(output, x.shape[1]).chunk(self.copies))

    @property
    def device(self) -> torch.device:
        """Where the network is; that of its conditions where its weights are elsewhere between calls."""
        own = next(self.network.parameters()).device
        rows = [value.rows for value in self.fixed.values() if isinstance(value, _PerImage)]
        return rows[0].device if own.type == "meta" and rows else own

    def of(self, places: Tensor) -> "Call":
        """The call for some of the images."""
        fixed = {name: _rows(value, self.copies, lambda rows: _take(rows, places)) for name, value in self.fixed.items()}
        return replace(self, fixed=fixed)


@dataclass(frozen=True, eq=False)
class Asked:
    """F(x, t), guidance included: what a pipeline would hand to its scheduler at the state x, (B, *event), and time t, (B,).

    Attributes:
        calls: the calls of one step.
        guidance: how their predictions become one.
        images: how many images the calls have rows for; 1 serves any number.
        told: the scale of guidance that the network is told as a number; None where it is not.
    """

    calls: tuple[Call, ...]
    guidance: Guidance
    images: int = 1
    told: float | None = None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The prediction. Raises InputError for another number of images than there are conditions for."""
        if self.images not in (1, len(x)):
            raise InputError(
                f"{len(x)} images, and prompts or labels for {self.images}: give as many images, one prompt for all, or take "
                "the denoiser of some of them, denoiser.of(places)"
            )
        return self.guidance([prediction for call in self.calls for prediction in call(x, t)])

    def of(self, places: Tensor) -> "Asked":
        """The same for some of the images, (b,) int64; where one condition serves all, the same."""
        if self.images == 1:
            return self
        inside = bool(((places >= 0) & (places < self.images)).all())
        require(inside, f"there are conditions for images 0 to {self.images - 1}", places=places.tolist())
        return replace(self, calls=tuple(call.of(places) for call in self.calls), images=len(places))


def joined(parts: Sequence[Asked]) -> Asked:
    """The images of several, which were recorded a few at a time. Raises InputError where their conditions differ in shape."""
    first = parts[0]
    if len(parts) == 1:
        return first
    calls = []
    for same in zip(*(part.calls for part in parts), strict=True):
        fixed = {name: _join([call.fixed[name] for call in same], same[0].copies, name) for name in same[0].fixed}
        calls.append(replace(same[0], fixed=fixed))
    return replace(first, calls=tuple(calls), images=sum(part.images for part in parts))


def digest(asked: Asked) -> str:
    """A digest of all conditions: what is kept of runs under some prompts is not to be taken for others."""
    found = hashlib.sha256(repr((asked.guidance, asked.told, asked.images)).encode())
    for call in asked.calls:
        for part in _leaves(call.fixed):
            tensor = isinstance(part, Tensor)
            found.update(part.float().cpu().contiguous().numpy().tobytes() if tensor else repr(part).encode())
    return found.hexdigest()[:16]


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for name in sorted(value):
            yield name
            yield from _leaves(value[name])
    elif isinstance(value, list | tuple):  # a marked tensor too
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def plain(value: Any) -> Any:
    """The value as the network is given it, without marks."""
    return _rows(value, 1, lambda rows: rows.flatten(0, 1))


def per_image(value: Any) -> bool:
    """Whether a value has a marked tensor in it."""
    parts = value.values() if isinstance(value, Mapping) else value if type(value) in (list, tuple) else ()
    return isinstance(value, _PerImage) or any(map(per_image, parts))


def means(output: Tensor, channels: int) -> Tensor:
    """The first channels of an output that has as many again for a variance."""
    return output[:, :channels] if output.shape[1] == 2 * channels else output


class _PerImage(NamedTuple):
    """A tensor with a row for each copy and image, marked so that its first axis is told from any other."""

    rows: Tensor


def rows_of(conditions: Mapping[str, Any]) -> int:
    """How many rows the longest condition has, among those with a row for each image."""
    own = (value for name, value in conditions.items() if name not in _SHARED and isinstance(value, Tensor) and value.ndim > 0)
    return max(map(len, own), default=1)


def marked(value: Any, batch: int, name: str = "") -> Any:
    """The value with every tensor marked whose first axis is the batch, in dictionaries and sequences too."""
    if name in _SHARED:
        return value
    if isinstance(value, Tensor):
        return _PerImage(value) if value.ndim > 0 and len(value) == batch else value
    if isinstance(value, Mapping):
        return {key: marked(part, batch, key) for key, part in value.items()}
    return type(value)(marked(part, batch) for part in value) if type(value) in (list, tuple) else value


def _rows(value: Any, copies: int, of: Callable[[Tensor], Any]) -> Any:
    """The value with `of` applied to each marked tensor, which it is given as (copies, images, …)."""
    if isinstance(value, _PerImage):
        rows = value.rows
        return of(rows.reshape(copies, len(rows) // copies, *rows.shape[1:]))
    if isinstance(value, Mapping):
        return {key: _rows(part, copies, of) for key, part in value.items()}
    return type(value)(_rows(part, copies, of) for part in value) if type(value) in (list, tuple) else value


def _spread(rows: Tensor, images: int) -> Tensor:
    """(copies·B, …): one image's row stands for all."""
    rows = rows.expand(rows.shape[0], images, *rows.shape[2:])
    return rows.reshape(-1, *rows.shape[2:])


def _take(rows: Tensor, places: Tensor) -> _PerImage:
    return _PerImage(rows[:, places.to(rows.device)].flatten(0, 1))


def _join(values: Sequence[Any], copies: int, name: str) -> Any:
    first = values[0]
    if isinstance(first, _PerImage):
        parts = [value.rows.reshape(copies, -1, *value.rows.shape[1:]) for value in values]
        shapes = {tuple(part.shape[2:]) for part in parts}
        if len(shapes) > 1:
            raise InputError(f"{name} has shapes {sorted(shapes)} for different prompts: pad all to one length")
        return _PerImage(torch.cat(parts, 1).flatten(0, 1))
    if isinstance(first, Mapping):
        return {key: _join([value[key] for value in values], copies, key) for key in first}
    if type(first) in (list, tuple):
        return type(first)(_join(parts, copies, name) for parts in zip(*values, strict=True))
    return first
