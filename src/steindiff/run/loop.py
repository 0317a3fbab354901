"""The run: whole batches are dealt out to processes, each is kept as it is finished, and the files are made of them at the end.

A batch is the unit: one process decides its γ from its own images. What comes out therefore depends neither on the number of
processes nor on how often the run was stopped.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steindiff.denoisers import Denoiser
from steindiff.divergence import Choice
from steindiff.errors import MOST, InputError, NonFiniteError, needs, require
from steindiff.integrations.loading import load
from steindiff.io import folders, processes
from steindiff.io.images import Image, to_uint8
from steindiff.io.memory import Room
from steindiff.models import Model
from steindiff.noise import generators, initial_noise
from steindiff.run.job import Job
from steindiff.run.output import ROOMS, Output
from steindiff.run.parts import sample_parts, split
from steindiff.sampling import SampleResult, sample
from steindiff.solvers import Solver


def generate(
    job: Job,
    outdir: str | Path,
    *,
    subdirs: bool = False,
    png: bool = True,
    npz: bool = True,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Sample every seed of a job and write PNGs, a contact sheet, samples.npz, trace.jsonl and run.json to `outdir`.

    Everything is checked, and the first batch sampled, before the first file is written; run.json is written last. Stopped
    before that, the same call goes on with the batches that are missing. Under torchrun or accelerate, batches are dealt out.

    Args:
        job: what to sample.
        outdir: the folder; it is made if need be.
        subdirs: every 1000 seeds have a folder of PNGs.
        png: every seed has a PNG.
        npz: samples.npz holds arr_0, uint8 (N, H, W, C), in the order of the seeds.
        overwrite: the run that `outdir` holds is removed, finished or not, and nothing else.
        progress: the first process shows a bar of its own share.

    Raises:
        InputError: the job cannot run; `outdir` holds a finished run, or another unfinished one, and `overwrite` is not set, or
            files that no run of ours has written; another process has it; a part is damaged; the folder cannot be written to,
            or the disk is full.
        NonFiniteError: the network's output is not finite; finished batches are kept.
    """
    with processes.joined():
        run = _Run.of(job)
        output = Output(Path(outdir), run.about(), subdirs, png, npz)
        with folders.locked(output.folder, ROOMS):
            processes.by_first(lambda: output.admit(job.batches, overwrite))
            if not output.finished:
                _draw_share(run, output, progress)
                processes.barrier()
                if processes.rank() == 0:
                    run.finish(output)
    return output.folder


@dataclass(frozen=True, eq=False)
class _Run:
    """A job made ready on this process's device."""

    job: Job
    model: Model
    solver: Solver
    sigmas: Tensor
    device: str
    room: Room = field(default_factory=lambda: Room(MOST))
    """How many images the network sees at a time, at most."""

    @classmethod
    def of(cls, job: Job) -> "_Run":
        device = processes.local_device(job.device)
        model = load(job.model, dtype=job.state_dtype, device=device, prompt=job.prompt)
        _check_class(job, model)
        divided = job.divergence.samples is None  # the estimator knows the images of a batch by their number
        return cls(job, model, *_prepared(job, model), device, Room(MOST, 1 if divided else min(job.batch, len(job.seeds))))

    def about(self) -> dict[str, Any]:
        """All that determines the images; the device's number is left out, as it changes rounding at most."""
        return {
            "model": self.model.sha256,
            "seeds": list(self.job.seeds),
            "batch": self.job.batch,
            "solver": repr(self.solver),
            "sigmas": self.sigmas.tolist(),
            "class": "random" if _drawn_classes(self.job, self.model) else self.job.class_index,
            "guidance": self.job.guidance,
            "dtype": self.job.dtype,
            "device": torch.device(self.device).type,
        }

    def draw(self, batch: int) -> tuple[SampleResult, Image]:
        """Sample one batch, as many images of it at a time as there is room for; its pictures.

        Raises:
            NonFiniteError: the network's output is not finite; the error names the batch.
        """
        seeds = self.job.seeds_of(batch)
        try:
            result = sample_parts(self.solver, split(seeds, self.room.most), self._draw)
        except NonFiniteError as error:
            raise NonFiniteError(f"batch {batch}, from seed {seeds[0]} on: {error}") from error
        return result, np.concatenate([to_uint8(self.model.decode(x)) for x in result.x.split(self.room.most)])

    def _draw(self, solver: Solver, seeds: Sequence[int]) -> SampleResult:
        """Sample the images of some seeds of a batch."""
        denoiser, level = _conditioned(self.job, self.model, seeds), float(self.sigmas[0])
        noise = initial_noise(seeds, self.model.event_shape, level, dtype=self.job.state_dtype, device=self.device)
        return sample(solver, denoiser, noise, self.sigmas, generator=generators(seeds))

    def finish(self, output: Output) -> None:
        """Write what is made of all batches."""
        channels, *size = self.model.image_shape
        model = {"name": self.model.name, "sha256": self.model.sha256, "info": self.model.info}
        shape = (len(self.job.seeds), *size, channels)
        ran, levels = str(self.solver), self.sigmas.tolist()
        output.finish(self.job.batches, shape, job=asdict(self.job), solver=ran, sigmas=levels, model=model)


def _draw_share(run: _Run, output: Output, progress: bool) -> None:
    """Draw batches k, k + n, … of n processes, as far as they are not there yet."""
    with needs("cli", "a run of many images"):
        from tqdm.auto import tqdm

    rank, world = processes.rank(), processes.world_size()
    share = run.job.batches[rank::world]
    missing = [batch for batch in share if not output.part(batch).exists()]
    count, left = (sum(len(run.job.seeds_of(batch)) for batch in some) for some in (share, missing))
    title = f"process 1 of {world}" if world > 1 else None
    with tqdm(total=count, initial=count - left, unit="image", desc=title, disable=rank > 0 or not progress) as bar:
        for batch in missing:
            seeds, (result, images) = run.job.seeds_of(batch), _drawn(run, batch, bar.write)
            trace = [{"batch": batch, **record.as_json()} for record in result.trace]
            output.keep(batch, seeds, images, trace, asdict(result.stats))
            if batch == missing[0]:  # what it has found about derivatives serves the others too
                run = replace(run, solver=_prepared(run.job, run.model, result.stats.choice)[0])
            bar.update(len(seeds))


def _drawn(run: _Run, batch: int, tell: Callable[..., object]) -> tuple[SampleResult, Image]:
    """A batch with its pictures, by as many images at a time as memory suffices for: fewer, once it has not."""
    device, size = torch.device(run.device), len(run.job.seeds_of(batch))
    while (found := run.room.tried(lambda: run.draw(batch), min(run.room.most, size), device)) is None:
        seen = f"the network sees {run.room.most} images at a time, gamma is the batch's"
        tell(f"memory does not suffice for the batch: {seen}", file=sys.stderr)
    return found


def _prepared(job: Job, model: Model, choice: Choice | None = None) -> tuple[Solver, Tensor]:
    """The solver and its levels; calibrated tables may lie in the folder `tables` beside the model file."""
    denoiser = _conditioned(job, model, job.seeds[:1])
    return job.prepare(denoiser, model.event_shape, choice, (str(model.path.parent / "tables"),))


def _drawn_classes(job: Job, model: Model) -> bool:
    """Whether the seeds draw the classes."""
    return job.random_classes or (model.needs_class and job.class_index is None)


def _conditioned(job: Job, model: Model, seeds: Sequence[int]) -> Denoiser:
    """The denoiser of images of these seeds: of one class, or the one guided to it, or of the classes that the seeds draw."""
    if _drawn_classes(job, model):
        return model.of_seeds(seeds, job.guidance)
    if job.class_index is None:
        return model.denoiser
    labels = torch.tensor(job.class_index)
    return model.labelled(labels) if job.guidance == 1 else model.guided(labels, job.guidance)


def _check_class(job: Job, model: Model) -> None:
    """Raises InputError for a class that the model lacks, and for guidance to none."""
    drawn, class_index = _drawn_classes(job, model), job.class_index
    need = "guidance is to a class: name it by --class, let the seeds draw it by --random-classes, or leave --guidance out"
    require(job.guidance == 1 or drawn or class_index is not None, need, guidance=job.guidance)
    if class_index is not None and not 0 <= class_index < model.classes:
        have = f"classes 0 to {model.classes - 1}" if model.classes else "no classes"
        raise InputError(
            f"class {class_index}: the model {model.name} has {have}; leave --class out for an unconditional model"
        )
