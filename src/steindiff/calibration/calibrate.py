"""A table made to measure for one network: `calibrate`.

The network's own fine runs from the noises say where its exact flow takes them. They are divided: most of them are fitted, some
choose where to start and when to stop, and some are the gate's. For each number of evaluations the best start is
refined by Gauss–Newton (`search`, `refine`), and the gate keeps the result only where it beats everything known (`gate`).
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steindiff.calibration import gate, search
from steindiff.calibration.bill import Bill
from steindiff.calibration.refine import Progress, Settings, refine, renamed
from steindiff.calibration.teacher import STEPS, Conditioned, Trajectories, trajectories
from steindiff.denoisers import Denoiser, forwards_per_call
from steindiff.errors import InputError, needs, require
from steindiff.io import files, folders, processes
from steindiff.io.clock import Clock
from steindiff.io.memory import BATCH, Room, memory_lacks
from steindiff.solvers import Purpose, Setting, Table
from steindiff.solvers.base import whole

LEAST, LEAST_NUMBERS = 8, 4
"""The fewest trajectories, and the fewest fitted coordinates for each number of a table."""
CALIBRATED = "calibrated table"
"""What a table is called that has passed its gate."""
WORK = 3_000_000
"""Coordinates that the network evaluates in one step of a refinement, about."""


@dataclass(frozen=True)
class Options:
    """How a calibration is done.

    Args:
        steps: steps of the fine runs.
        batch: the most images that the network sees at once; it bounds the memory, and is halved where that runs out.
        settings: how long a refinement goes on.
    """

    steps: int = STEPS
    batch: int = BATCH
    settings: Settings = field(default_factory=lambda: Settings(iterations=10, patience=3, gain=2e-3, along=0.2, singly=True))

    def __post_init__(self) -> None:
        require(self.steps >= 8, "need 8 steps or more of a fine run", steps=self.steps)
        require(self.batch >= 1, "need at least one image at once", batch=self.batch)


USUAL = Options()


def calibrate(denoiser: Denoiser, noise: Tensor, nfe: int, **how: Any) -> Table:
    """The table of `nfe` evaluations for this network; `how` is what `calibrations` takes, and errors are the same.

    Example:
        >>> from steindiff.analytic import Gaussian
        >>> law = Gaussian(torch.zeros(3), torch.diag(torch.tensor([0.3, 0.2, 0.1])))
        >>> calibrate(law, 80 * torch.randn(32, 3, generator=torch.Generator().manual_seed(0)), 2).nfe
        2
    """
    return calibrations(denoiser, noise, [nfe], **how)[0]


@torch.no_grad()
def calibrations(
    denoiser: Denoiser,
    noise: Tensor,
    nfe: Sequence[int],
    *,
    sigma_max: float | None = None,
    sigma_min: float | None = None,
    conditioned: Conditioned | None = None,
    network: str | None = None,
    options: Options = USUAL,
    starts: Sequence[Table] = (),
    work: str | Path | None = None,
    progress: bool = False,
    clock: Clock | None = None,
) -> list[Table]:
    """A table for each number of evaluations; all come from one set of fine runs.

    Args:
        denoiser: D(x, sigma) in VE coordinates, of any device and inner dtype; guidance is a part of it.
        noise: states at σ_max, (n, *event), n ≥ 8: σ_max ε. 64 are plenty, and 16 already do.
        nfe: network evaluations of a run.
        sigma_max: the first noise level; None is EDM's, within the range that the denoiser states.
        sigma_min: the last noise level, above 0; None as for the first.
        conditioned: gives the denoiser of the images whose places in `noise` it is given, (b,) int64, where images have
            classes or prompts of their own; `denoiser` then says only what all of them share.
        network: what names the network, where no digest of it can be taken; None: `identity.network_of`.
        options: how it is done.
        starts: tables of the same network for a near scale of guidance; a refinement starts from the one of as many
            evaluations, so that tables of several scales are alike and a scale between them is served. From the largest scale
            down is best.
        work: a folder that keeps the fine runs and finished tables, so that a stopped calibration goes on.
        progress: whether to show bars on stderr.
        clock: measures its parts: fine runs, start, refinement, gate.

    Raises:
        InputError: too few trajectories for the numbers of a table, malformed noise, or no memory for a single image; another
            process makes the same tables in the folder.
        NonFiniteError: the network's output is not finite, or its fine runs diverge.
    """
    require(len(nfe) > 0 and all(whole(n) and n >= 1 for n in nfe), "need whole numbers of evaluations, from 1", nfe=list(nfe))
    levels = Setting.of(denoiser, sigma_max, sigma_min)
    sigma_max, sigma_min = levels.sigma_max, levels.sigma_min
    require(0 < sigma_min < sigma_max, "need 0 < sigma_min < sigma_max", sigma_min=sigma_min, sigma_max=sigma_max)
    _check(noise, max(nfe))
    first = denoiser if conditioned is None else conditioned(torch.arange(1))
    purpose = Purpose.of(first, tuple(noise.shape[1:]))
    purpose = purpose if network is None else replace(purpose, network=network)
    near = tuple(table for table in starts if table.solver.name == CALIBRATED)
    job = _Job(denoiser, noise, sigma_max, sigma_min, conditioned, purpose, options, progress, near, clock=clock or Clock())
    room: AbstractContextManager[Path | None] = nullcontext() if work is None else folders.locked(Path(work) / job.key)
    try:
        with room as folder:
            with job.clock("fine runs"):
                law = job.fine_runs(folder)
                parts = [law.part(places) for places in divided(noise)]
            del law  # the parts are copies
            return [job.kept_table(parts, n, folder) for n in nfe]
    except (MemoryError, RuntimeError) as error:
        if not memory_lacks(error):
            raise
        raise InputError(
            f"memory runs out beside the network, with {len(noise)} noises of shape {tuple(noise.shape[1:])} and the fine runs "
            f"of {options.steps} steps: give fewer noises, or Options(steps=...) fewer steps"
        ) from error


def _check(noise: Tensor, nfe: int) -> None:
    """Raise InputError for noises that are too few, or no batch."""
    fits = isinstance(noise, Tensor) and noise.ndim >= 2 and noise.dtype in (torch.float32, torch.float64)
    require(fits, "noise must be (n, *event) in float32 or float64", noise=getattr(noise, "shape", type(noise).__name__))
    n, numbers = len(noise), (nfe + 1) * (nfe + 6) // 2
    require(n >= LEAST, f"a calibration needs {LEAST} trajectories or more", trajectories=n)
    fitted = (n // 2) * noise[0].numel()
    if fitted < LEAST_NUMBERS * numbers:
        need = 2 * -(-LEAST_NUMBERS * numbers // noise[0].numel())
        raise InputError(
            f"{n} trajectories of {noise[0].numel()} coordinates for about {numbers} numbers of a table of {nfe} evaluations: "
            f"need {need} trajectories or more"
        )


@dataclass(frozen=True, eq=False)
class _Job:
    """A calibration: what it is of, and how it is done."""

    denoiser: Denoiser
    noise: Tensor
    sigma_max: float
    sigma_min: float
    conditioned: Conditioned | None
    purpose: Purpose
    options: Options
    progress: bool
    starts: tuple[Table, ...] = ()
    bill: Bill = field(default_factory=Bill)
    clock: Clock = field(default_factory=Clock)

    @cached_property
    def room(self) -> Room:
        """How many images the network sees at once, whatever it is asked for."""
        shape = tuple(self.noise.shape[1:])
        remedy = f"calibrate on a device with more, with the network in float16 or bfloat16, or on images smaller than {shape}"
        return Room(self.options.batch, remedy=remedy)

    @cached_property
    def key(self) -> str:
        """A digest of all that determines the tables."""
        starts = {"starts": [repr(table.solver) for table in self.starts]} if self.starts else {}
        numbers = hashlib.sha256(self.noise.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
        purpose = asdict(self.purpose)
        if not purpose["conditioned"] or purpose["guidance"] != 1:  # guidance is conditioned anyway
            del purpose["conditioned"]
        parts = {"purpose": purpose, "noise": numbers, "levels": (self.sigma_max, self.sigma_min)}
        # What is off is left out: a new switch changes no key
        on = {name: value for name, value in asdict(self.options.settings).items() if value is not False}
        return files.digest(**parts, **starts, steps=self.options.steps, settings=on)

    def fine_runs(self, folder: Path | None) -> Trajectories:
        """The exact flow of all noises, made once in a folder."""
        path = None if folder is None else folder / "fine.safetensors"
        if path is not None and _there(path):
            return self._read(path)
        with _bar("fine runs", self.options.steps, self.progress) as tick:
            law = trajectories(
                self.bill.of(self.denoiser), self.noise, self.sigma_max, self.sigma_min, count=self.options.steps,
                conditioned=self._conditioned, room=self.room, tick=lambda: tick(""),
            )  # fmt: skip
        if path is not None:
            about = {"levels": law.levels, "images": self.bill.images}
            tensors = {"states": law.states, "slopes": law.slopes, "weight": law.weight[None]}
            processes.by_first(partial(files.write_tensors, path, tensors, about))
        return law

    def _read(self, path: Path) -> Trajectories:
        """Fine runs of an earlier call. Raises InputError where the file is damaged."""
        try:
            about, tensors = files.read_tensors(path, "states", "slopes", "weight")
            states, slopes, weight = (tensor.to(self.noise.device) for tensor in tensors)
            levels = tuple(float(level) for level in about["levels"])
            self.bill.images += int(about["images"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is damaged ({error}): remove it, and the fine runs are made again") from error
        mean, billed = self.noise.new_zeros(()), self.bill.of(self.denoiser)
        return Trajectories(billed, levels, states, slopes, weight[0], mean, conditioned=self._conditioned, room=self.room)

    @property
    def _conditioned(self) -> Conditioned | None:
        given = self.conditioned
        return None if given is None else lambda some: self.bill.of(given(some))

    def kept_table(self, parts: Sequence[Trajectories], nfe: int, folder: Path | None) -> Table:
        """The table of so many evaluations, made once in a folder."""
        path = None if folder is None else folder / f"{nfe}.safetensors"
        if path is not None and _there(path):
            return Table.load(path)
        table = self.table(parts, nfe)
        if path is not None:
            processes.by_first(partial(table.save, path))
        return table

    def table(self, parts: Sequence[Trajectories], nfe: int) -> Table:
        """Start, refine, and pass the gate; the parts are those that are fitted, that choose, and that the gate has."""
        began, images, fine = time.perf_counter(), self.bill.images, (self.options.steps + 1) * len(self.noise)
        fitted, choosing, guarded = thinned(parts[0], enough(nfe, self.noise[0].numel())), *parts[1:]
        setting = Setting(self.sigma_max, self.sigma_min, fitted.variance**0.5, self.purpose.guidance or 1.0)
        settings = self.options.settings
        with _bar(f"{nfe} evaluations", settings.iterations, self.progress) as tick:

            def tell(step: Progress) -> None:
                tick(f"relative error {math.exp(step.held):.3g}")

            near = next((table.solver for table in self.starts if table.nfe == nfe), None)
            few = [thinned(fitted, search.FITTED // fitted.noise[0].numel())]
            with self.clock("start"):
                start = search.start(few, [choosing], nfe, setting, near)
            with self.clock("refinement"):
                found = renamed(refine(start, [fitted], [choosing], settings, tell), [fitted])
        found = replace(found, name=CALIBRATED)
        with self.clock("gate"):
            solver, verdict = gate.passed(found, gate.alternatives(nfe, setting), guarded)
        evaluated = processes.gather(torch.tensor([self.bill.images - images])).sum()  # each process has billed its share
        cost = {"evaluated_images": int(evaluated), "of_fine_runs": fine}
        report = files.manifest(
            kind="calibrated", nfe=nfe, sigma_max=self.sigma_max, sigma_min=self.sigma_min, sigma_data=setting.sigma_data,
            trajectories={"fitted": len(fitted.noise), "choosing": len(choosing.noise), "gate": len(guarded.noise)},
            dtype=str(self.noise.dtype), forwards=forwards_per_call(self.denoiser), steps=self.options.steps,
            settings=asdict(settings), key=self.key, gate=asdict(verdict), cost=cost,
            seconds=round(time.perf_counter() - began, 1),
        )  # fmt: skip
        return Table(replace(solver, purpose=self.purpose), report)


def _there(path: Path) -> bool:
    """Whether there is such a file, as the first process sees it."""
    return bool(processes.agreed(path.exists() if processes.rank() == 0 else None))


def divided(noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Places of the noises that are fitted, that choose, and that the gate has.

    An eighth chooses and a quarter is the gate's, four each at least where there are sixteen. Noises are told apart by their
    sums, so that their order does not matter.
    """
    order = noise.detach().double().flatten(1).sum(1).cpu().argsort()
    n, least = len(order), min(4, len(order) // 4)
    choosing, gate = max(n // 8, least), max(n // 4, least)
    held = torch.arange(choosing + gate)
    chooses = (held + 1) * choosing // len(held) > held * choosing // len(held)
    places = held * n // len(held)  # evenly spaced
    fitted = torch.ones(n, dtype=torch.bool).index_fill(0, places, False)
    return order[fitted], order[places[chooses]], order[places[~chooses]]


def thinned(law: Trajectories, most: int) -> Trajectories:
    """Some of the images, evenly spaced: as many as this or fewer, and no fewer than `LEAST`; all of them are no copy."""
    n = len(law.noise)
    step = -(-n // max(LEAST, most))
    return law if step == 1 else law.part(torch.arange(0, n, step))


def enough(nfe: int, numbers: int) -> int:
    """How many images of so many coordinates are fitted at most: a coordinate is a sample, and every parameter costs a run."""
    branches = sum((i + 2) * (nfe - i) for i in range(1, nfe + 1)) + nfe
    return max(LEAST, WORK // (branches * numbers))


@contextmanager
def _bar(label: str, total: int, shown: bool) -> Iterator[Callable[[str], None]]:
    """A bar of the first process; a tick takes what is to be said beside it."""
    if not shown or processes.rank() > 0:
        yield lambda said: None
        return
    with needs("cli", "progress=True"):
        from tqdm.auto import tqdm

    with tqdm(total=total, desc=label) as bar:

        def tick(said: str) -> None:
            bar.set_postfix_str(said, refresh=False)
            bar.update()

        yield tick
