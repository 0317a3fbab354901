"""The nodes: a SAMPLER with solver, correction and table, and a calibration that writes a table's file."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.samplers
import folder_paths
import torch
from torch import Tensor

from steindiff import solvers
from steindiff.calibration import Options
from steindiff.calibration.keeping import kept_beside
from steindiff.errors import InputError, require
from steindiff.integrations import kdiffusion
from steindiff.integrations.comfyui.sampling import sample, understood
from steindiff.io.names import checked_name
from steindiff.solvers import Calibrated, Solver, Table
from steindiff.solvers.table import load_all

FOLDER = "steindiff_tables"
"""The folder of tables among ComfyUI's models."""
NONE = "none"
CORRECTIONS = (NONE, "clamped(mode=tweedie)", "clamped", "energy", "epsilon_scaling", "dcw")
"""The corrections of the list; "clamped" and "energy" take a derivative, which is a finite difference here."""

_OWN = Path(folder_paths.models_dir) / FOLDER
_OWN.mkdir(parents=True, exist_ok=True)
folder_paths.add_model_folder_path(FOLDER, str(_OWN))


class SteindiffSampler:
    """A SAMPLER for SamplerCustom and its kin."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "get_sampler"
    CATEGORY = "sampling/custom_sampling/samplers"
    DESCRIPTION = "SteinDiff: few-step sampling by tables and strong solvers. 'auto' takes a table where there is one."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The lists of solvers, corrections and tables; the path that a calibration returns stands for a table of the list."""
        files = folder_paths.get_filename_list(FOLDER)
        return {
            "required": {
                "solver": (["auto", "universal", *solvers.names()],),
                "correction": (list(CORRECTIONS),),
                "table": ([NONE, *(name for name in files if name.endswith(".safetensors"))],),
            },
            "optional": {
                "any_network": ("BOOLEAN", {"default": False, "tooltip": "Use the table with a network it was not made for."}),
                "table_path": ("STRING", {"forceInput": True}),
            },
        }

    def get_sampler(
        self, solver: str, correction: str, table: str, any_network: bool = False, table_path: str | None = None
    ) -> tuple[Any]:
        """The SAMPLER. Raises InputError where there is no such table, or a solver is named beside one."""
        method: Solver | str = solver
        path = table_path or (None if table == NONE else folder_paths.get_full_path(FOLDER, table))
        require(path is not None or table == NONE, f"there is no such file in models/{FOLDER}; refresh the page", table=table)
        if path is not None:
            require(solver == "auto", "a table is a solver: leave solver at 'auto', or table at 'none'", solver=solver)
            method = Calibrated(str(path), "network" if any_network else "")
        options: dict[str, Any] = {"solver": method, "correction": None if correction == NONE else correction}
        return (comfy.samplers.KSAMPLER(kdiffusion.named("sample_steindiff", sample, **options)),)


class SteindiffCalibrate:
    """A table for a model with its prompts and scale of guidance; a file of models/steindiff_tables."""

    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("table_path",)
    FUNCTION = "calibrate"
    CATEGORY = "sampling/custom_sampling"
    OUTPUT_NODE = True
    DESCRIPTION = (
        "Makes a table for this model, this cfg, this size of latents and so many evaluations. It takes minutes, once."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What a calibration needs; of the latents only the shape counts."""
        return {
            "required": {
                "model": ("MODEL",),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "latent_image": ("LATENT",),
                "cfg": ("FLOAT", {"default": 7.0, "min": 0.0, "max": 100.0, "step": 0.1}),
                "evaluations": ("INT", {"default": 5, "min": 1, "max": 50}),
                "noises": ("INT", {"default": 16, "min": 8, "max": 256}),
                "batch": ("INT", {"default": 4, "min": 1, "max": 256}),
                "calibration_seed": (
                    "INT",
                    {"default": 0, "min": 0, "max": 2**63 - 1},
                ),  # one named seed is drawn anew each time
                "name": ("STRING", {"default": "table"}),
            }
        }

    def calibrate(
        self,
        model: Any,
        positive: Any,
        negative: Any,
        latent_image: Mapping[str, Any],
        cfg: float,
        evaluations: int,
        noises: int,
        batch: int,
        calibration_seed: int,
        name: str,
    ) -> tuple[str]:
        """The path of the file. Raises InputError for a name that is a path, and as `kdiffusion.calibrate`."""
        require(re.fullmatch(r"[\w.-]+", name) is not None, "need letters, digits, '_', '-' and '.' only", name=name)
        path = Path(folder_paths.get_folder_paths(FOLDER)[0]) / f"{checked_name(name, 'name')}.safetensors"
        if path.exists():
            load_all(path)  # a file that holds no tables is refused before the work
        levels = model.get_model_object("model_sampling")
        sigmas = torch.tensor([float(levels.sigma_max), float(levels.sigma_min), 0.0])
        shape = comfy.sample.fix_empty_latent_channels(model, latent_image["samples"])
        latents = torch.zeros((noises, *shape.shape[1:]), dtype=shape.dtype, device=shape.device)
        noise, fitted = comfy.sample.prepare_noise(latents, calibration_seed), _Fitted(evaluations, batch)
        sampler = comfy.samplers.KSAMPLER(fitted)
        given = {"disable_pbar": True, "seed": calibration_seed}
        comfy.sample.sample_custom(model, noise, cfg, sampler, sigmas, positive, negative, latents, **given)
        return (str(kept_beside(path, [fitted.table])),)


@dataclass
class _Fitted:
    """A sampler that calibrates on the states it is given, in place of sampling: all of ComfyUI's model is ready by then."""

    nfe: int
    batch: int
    tables: list[Table] = field(default_factory=list)

    def __call__(
        self,
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], object] | None = None,
        disable: bool | None = None,
    ) -> Tensor:
        how: dict[str, Any] = {"options": Options(batch=self.batch), "progress": True}
        self.tables.append(kdiffusion.calibrate(model, x, sigmas, extra_args, nfe=self.nfe, **understood(model), **how))
        return x

    @property
    def table(self) -> Table:
        """What was found."""
        if not self.tables:
            raise InputError("ComfyUI has called no sampler: is the latent empty?")
        return self.tables[-1]
