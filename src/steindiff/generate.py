"""`steindiff sample`: images from a model, one seed each, with everything needed to make them again."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from steindiff import corrections, grids, models, solvers
from steindiff.correction import Corrected
from steindiff.denoisers import Denoiser
from steindiff.divergence import Hutchinson, Method
from steindiff.errors import InputError
from steindiff.files import atomic, manifest, plain, writable_folder, write_json, write_text
from steindiff.images import Image, contact_sheet, save_png, to_uint8
from steindiff.models import Model
from steindiff.noise import generators, initial_noise
from steindiff.rules import CleanTarget
from steindiff.sampling import SampleResult, sample
from steindiff.solvers import Solver

__all__ = ["Job", "build_grid", "build_solver", "generate", "parse_seeds"]


@dataclass(frozen=True)
class Job:
    """Everything that determines the images of one run."""

    model: str
    seeds: tuple[int, ...]
    solver: str = "dpmpp_2m"
    grid: str = "karras"
    steps: int | None = None
    nfe: int | None = None
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    to_zero: bool = False
    correction: str = "none"
    gamma_min: float | None = None
    gamma_max: float | None = None
    frame: str = "model"
    divergence: str = "auto"
    probes: int = 1
    probe_kind: str = "rademacher"
    batch: int = 64
    class_index: int | None = None
    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.nfe is None):
            raise InputError(f"steps={self.steps}, nfe={self.nfe}: give exactly one of --steps and --nfe")
        if self.batch < 1:
            raise InputError(f"batch={self.batch}: need at least one image a batch")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"{len(self.seeds)} seeds, {len(set(self.seeds))} different: need at least one, and none twice")


def parse_seeds(text: str) -> tuple[int, ...]:
    """EDM notation: "1,2,5-10" to (1, 2, 5, 6, 7, 8, 9, 10). Raises InputError for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise InputError(f"seeds {text!r}: {part!r} is neither a number nor a range low-high; write 0-63 or 1,2,5-10")
        seeds.extend(range(int(first), int(last or first) + 1))
    return tuple(seeds)


def build_solver(job: Job) -> tuple[Solver, int]:
    """The solver, wrapped in its correction, and the number of steps. Raises InputError for unknown names or bad bounds."""
    solver = solvers.make(job.solver)
    steps = job.steps
    if steps is None:
        solver, steps = solvers.for_nfe(solver, job.nfe or 0)
    methods: dict[str, Method] = {"auto": "auto", "vjp": "vjp", "jvp": "jvp", "fd": "fd"}
    if job.divergence not in methods or job.probe_kind not in ("rademacher", "gaussian") or job.frame not in ("model", "ve"):
        raise InputError(
            f"divergence={job.divergence!r}, probe kind={job.probe_kind!r}, frame={job.frame!r}: choose auto, vjp, jvp or fd; "
            "rademacher or gaussian; model or ve"
        )
    probe = Hutchinson(job.probes, "gaussian" if job.probe_kind == "gaussian" else "rademacher", methods[job.divergence])
    frame: Literal["model", "ve"] = "ve" if job.frame == "ve" else "model"
    return _bounded(corrections.apply(job.correction, solver, divergence=probe, frame=frame), job), steps


def _bounded(solver: Solver, job: Job) -> Solver:
    """With the bounds of γ that the job names."""
    low, high = job.gamma_min, job.gamma_max
    if low is None and high is None:
        return solver
    if not isinstance(solver, Corrected) or not isinstance(solver.rule, CleanTarget):
        raise InputError(f"--gamma_min and --gamma_max with correction {job.correction!r}: only the paper's rule takes bounds")
    rule = solver.rule
    bounds = replace(rule, gamma_min=rule.gamma_min if low is None else low, gamma_max=rule.gamma_max if high is None else high)
    return replace(solver, rule=bounds)


def build_grid(job: Job, steps: int) -> Tensor:
    """The noise grid; with `to_zero` one more step, to σ = 0."""
    shape = (steps, job.sigma_min, job.sigma_max)
    sigmas = grids.karras(*shape, rho=job.rho) if job.grid == "karras" else grids.make(job.grid, *shape)
    return grids.with_zero(sigmas) if job.to_zero else sigmas


def generate(
    job: Job, outdir: str | Path, *, subdirs: bool = False, npz: bool = True, overwrite: bool = False, progress: bool = False
) -> Path:
    """Sample every seed of a job and write PNGs, a contact sheet, samples.npz, trace.jsonl and run.json to `outdir`.

    Everything is checked, and the first batch sampled, before the first file is written; run.json is written last.

    Raises:
        InputError: anything wrong with the job, or `outdir` holds another run and `overwrite` is not set.
        NonFiniteError: the network's output is not finite.
    """
    solver, steps = build_solver(job)
    sigmas = build_grid(job, steps)
    model = models.load(job.model, dtype=_dtype(job.dtype), device=_device(job.device))
    denoiser = _conditioned(model, job.class_index)
    folder = Path(outdir)
    if (folder / "run.json").exists() and not overwrite:
        raise InputError(f"{folder} already holds a finished run: choose another --outdir, or pass --overwrite")
    results, images = [], []
    for seeds in _bar(list(_batches(job.seeds, job.batch)), progress):
        x = initial_noise(seeds, model.event_shape, float(sigmas[0]), dtype=_dtype(job.dtype), device=job.device)
        result = sample(solver, denoiser, x, sigmas, generator=generators(seeds))
        results.append(result)
        images.append(to_uint8(result.x))
        writable_folder(folder)
        (folder / "run.json").unlink(missing_ok=True)
        _write_pngs(folder, seeds, images[-1], subdirs)
    _write_summary(folder, job, model, sigmas, results, np.concatenate(images), npz)
    return folder


def _conditioned(model: Model, class_index: int | None) -> Denoiser:
    """The denoiser with its class label bound."""
    if class_index is None:
        return model.denoiser
    classes = int(model.info.get("unet", {}).get("num_classes", 0))
    if not 0 <= class_index < classes:
        have = f"classes 0 to {classes - 1}" if classes else "no classes"
        raise InputError(
            f"class {class_index}: the model {model.name} has {have}; leave --class out for an unconditional model"
        )
    denoise: Callable[..., Tensor] = model.denoiser
    return lambda x, sigma: denoise(x, sigma, torch.full((len(x),), class_index, device=x.device))


def _write_pngs(folder: Path, seeds: Sequence[int], images: Image, subdirs: bool) -> None:
    for seed, image in zip(seeds, images, strict=True):
        place = folder / f"{seed - seed % 1000:06d}" if subdirs else folder
        save_png(place / f"{seed:06d}.png", image)


def _write_summary(
    folder: Path, job: Job, model: Model, sigmas: Tensor, results: list[SampleResult], images: Image, npz: bool
) -> None:
    save_png(folder / "grid.png", contact_sheet(images[:64], columns=8, scale=max(1, 64 // images.shape[1])))
    if npz:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, arr_0=images)
        with atomic(folder / "samples.npz") as temporary:
            temporary.write_bytes(buffer.getvalue())
    rows = ({"batch": b, **asdict(r)} for b, result in enumerate(results) for r in result.trace)
    write_text(folder / "trace.jsonl", "".join(json.dumps(plain(row), allow_nan=False) + "\n" for row in rows))
    stats = [asdict(result.stats) for result in results]
    about = {"name": model.name, "sha256": model.sha256, "info": model.info}
    write_json(folder / "run.json", manifest(job=asdict(job), sigmas=sigmas.tolist(), model=about, stats=stats))


def _batches(seeds: tuple[int, ...], size: int) -> Iterator[tuple[int, ...]]:
    for start in range(0, len(seeds), size):
        yield seeds[start : start + size]


def _bar(batches: list[tuple[int, ...]], progress: bool) -> Iterator[tuple[int, ...]]:
    from tqdm.auto import tqdm

    with tqdm(total=sum(map(len, batches)), unit="image", disable=not progress) as bar:
        for seeds in batches:
            yield seeds
            bar.update(len(seeds))


def _dtype(name: str) -> torch.dtype:
    dtypes = {"float32": torch.float32, "float64": torch.float64}
    if name not in dtypes:
        raise InputError(f"dtype {name!r}: the solver state is float32 or float64")
    return dtypes[name]


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}; use --device cpu") from error
