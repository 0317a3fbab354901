"""Tables made to measure for a pipeline: `calibrate(pipe, prompts, nfe)`, kept beside it."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steindiff.calibration import Options, calibrations
from steindiff.calibration.keeping import FIRST_SEED, keeping, kept_beside
from steindiff.errors import InputError, require
from steindiff.integrations.diffusers.asking import digest
from steindiff.integrations.diffusers.beside import place_beside
from steindiff.integrations.diffusers.denoising import PipelineDenoiser, denoiser
from steindiff.solvers import Table

_CONDITIONS = ("prompt", "class_labels")
"""Arguments of pipelines that say what an image is to be."""


@dataclass(frozen=True)
class Calibrated:
    """What `calibrate` has made.

    Attributes:
        path: the file of the tables.
        tables: one for each scale of guidance and number of evaluations, the largest scale first.
    """

    path: Path
    tables: tuple[Table, ...]


def calibrate(
    pipe: Any,
    prompts: str | Sequence[str] | Sequence[int] | None = None,
    nfe: int | Sequence[int] = 5,
    guidance_scale: float | Sequence[float] | None = None,
    *,
    path: str | Path | None = None,
    trajectories: int = 64,
    first_seed: int = FIRST_SEED,
    options: Options | None = None,
    work: str | Path | None = None,
    progress: bool = True,
    **call: Any,
) -> Calibrated:
    """Tables for a pipeline, fitted to its own fine runs, without data or training; `SteindiffScheduler` takes them.

    Args:
        pipe: the pipeline, with the scheduler that it was made with.
        prompts: what images are to be: prompts, or class labels; one for all, or several in turn. None: nothing, or what `call`
            says as embeddings.
        nfe: numbers of network evaluations.
        guidance_scale: scales of guidance; what lies between two is served too. None: as the pipeline has it.
        path: the .safetensors file of the tables, which keeps those that it holds of others. None: beside the pipeline, in the
            folder `steindiff` of its own, where `tables_beside` finds them.
        trajectories: the number of noises, each with its prompt; 16 already do.
        first_seed: the seed of the first noise.
        options: how a calibration is done.
        work: a folder that keeps what is finished. None: one beside `path`, which is removed in the end. A stopped call goes on
            from there.
        progress: whether to show bars on stderr.
        call: what else the pipeline is called with: negative_prompt, height, true_cfg_scale, ….

    Raises:
        InputError: the pipeline is not understood (as `denoiser`), takes no prompts, or does not come from a folder and `path`
            is not given; too few trajectories; another process makes the file.
    """
    place = _place(pipe, path)
    numbers = [nfe] if isinstance(nfe, int) else list(nfe)
    scales = [guidance_scale] if guidance_scale is None or isinstance(guidance_scale, float | int) else list(guidance_scale)
    require(len(scales) > 0, "need a scale of guidance, or None", guidance_scale=scales)
    require(trajectories >= 1, "need at least one trajectory", trajectories=trajectories)
    tables, latest = list[Table](), list[Table]()
    with keeping(place) as beside:
        for scale in sorted(scales, key=lambda value: -(value or 0)):
            said = {**call, **({} if scale is None else {"guidance_scale": scale})}
            said |= _condition(pipe, prompts, trajectories, call)
            made = denoiser(pipe, **said)
            seeds, parts = range(first_seed, first_seed + trajectories), beside if work is None else Path(work)
            latest = _tables(made, numbers, seeds, options or Options(), latest, parts, progress)
            tables += latest
            kept_beside(place, latest)
    return Calibrated(place, tuple(tables))


def _tables(
    made: PipelineDenoiser,
    nfe: Sequence[int],
    seeds: Sequence[int],
    options: Options,
    starts: Sequence[Table],
    work: Path,
    progress: bool,
) -> list[Table]:
    """The tables of one scale of guidance."""
    conditions = digest(made.asked)
    tables = calibrations(
        made, made.noise(seeds), nfe, sigma_max=made.sigma_max, sigma_min=made.sigma_min,
        conditioned=made.of if made.images > 1 else None, options=options, starts=starts, work=work / conditions,
        progress=progress,
    )  # fmt: skip
    about = {"pipeline": made.name, "conditions": conditions, "first_seed": seeds[0]}
    return [Table(table.solver, {**table.report, **about}) for table in tables]


def _place(pipe: Any, path: str | Path | None) -> Path:
    place = place_beside(pipe) if path is None else Path(path)
    if place is None:
        raise InputError(
            f"{type(pipe).__name__} was not loaded from a folder on this machine, so that its tables have no place beside it: "
            "give path=, a .safetensors file, and the scheduler table= of the same file"
        )
    require(place.suffix == ".safetensors", "tables are .safetensors files", path=str(place))
    return place


def _condition(pipe: Any, prompts: Any, n: int, call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that say what n images are to be, in turn, and what they are not to be; none where nothing is said."""
    if prompts is None:
        return {}
    taken = inspect.signature(type(pipe).__call__).parameters
    name = next((name for name in _CONDITIONS if name in taken), None)
    if name is None:
        raise InputError(f"{type(pipe).__name__} takes neither prompts nor class labels: leave prompts out")
    if isinstance(prompts, str):
        return {name: prompts}
    several = [prompts] if isinstance(prompts, int) else list(prompts)
    require(len(several) > 0, "need a prompt or label, or None", prompts=prompts)
    if len(several) > 1:
        several = [several[i % len(several)] for i in range(n)]
    against = {
        key: [value] * len(several) for key, value in call.items() if key.startswith("negative") and isinstance(value, str)
    }
    return {name: several, **against}
