"""What a calibrated table is for: a network, a shape, a scale of guidance. Elsewhere it is refused."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from steindiff.denoisers import Denoiser, guidance_of, is_conditioned
from steindiff.errors import InputError, require, unknown_name
from steindiff.identity import network_of


@dataclass(frozen=True)
class Purpose:
    """What a table was calibrated for; None is anything.

    Args:
        network: the digest of the network, as `identity.network_of` has it.
        event: the shape of an image.
        guidance: the scale of classifier-free guidance; 1 is none.
        conditioned: whether labels or prompts are bound to the network, as `denoisers.is_conditioned` has it.
    """

    network: str | None = None
    event: tuple[int, ...] | None = None
    guidance: float | None = None
    conditioned: bool | None = None

    @classmethod
    def of(cls, denoiser: Denoiser, event: tuple[int, ...]) -> "Purpose":
        """What this denoiser is, for images of this shape."""
        return cls(network_of(denoiser), tuple(event), guidance_of(denoiser), is_conditioned(denoiser))

    @classmethod
    def read(cls, about: Any) -> "Purpose":
        """The purpose that a file states, as `asdict` has it. Raises InputError where it is malformed."""
        try:
            made = cls(**about)
        except TypeError as error:
            raise InputError(f"its purpose is {about!r}: {error}") from error
        made = made if made.event is None else replace(made, event=tuple(made.event))
        fits = (
            isinstance(made.network, str | None)
            and isinstance(made.guidance, int | float | None)
            and isinstance(made.conditioned, bool | None)
            and (made.event is None or all(type(n) is int for n in made.event))
        )
        require(fits, "its purpose is malformed", purpose=about)
        return made

    def differs(self, other: "Purpose") -> list[str]:
        """The names of the fields in which another purpose is not this one."""
        same = {name: value is None or value == getattr(other, name) for name, value in vars(self).items()}
        if self.guidance is not None and other.guidance is not None:
            same["guidance"] = abs(self.guidance - other.guidance) < 1e-6 * self.guidance
        same["conditioned"] |= other.conditioned is None  # a setting may not know it
        return [name for name, fits in same.items() if not fits]

    def check(self, denoiser: Denoiser, event: torch.Size) -> None:
        """Raise InputError where a run has another network, shape or guidance than the table was calibrated for."""
        if self == Purpose():
            return
        network = network_of(denoiser) if self.network else None
        here = Purpose(network, tuple(event), guidance_of(denoiser), is_conditioned(denoiser))
        names = self.differs(here)
        if "guidance" in names and "conditioned" in names:  # guidance says it, and insisting on it is enough
            names.remove("conditioned")
        if names:
            said = ", ".join(f"{name} {getattr(self, name)}" for name in names)
            got = ", ".join(f"{name} {getattr(here, name)}" for name in names)
            raise InputError(
                f"the table was calibrated for {said}, and this run has {got}: calibrate a table for it (steindiff.calibrate), "
                f"take the universal one, or insist with table.anyway({', '.join(map(repr, names))})"
            )

    def anyway(self, *names: str) -> "Purpose":
        """The same for any value of these fields, "guidance" with "conditioned". Raises InputError for a name that is none."""
        known = [field.name for field in fields(self)]
        for name in names:
            if name not in known:
                raise unknown_name("part of a purpose", name, known)
        return replace(self, **dict.fromkeys((*names, "conditioned") if "guidance" in names else names))
