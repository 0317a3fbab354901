"""A model by name, whatever it is: one of ours, a file, or a pipeline of diffusers in a folder."""

from pathlib import Path

import torch

from steindiff import models
from steindiff.errors import InputError, require
from steindiff.integrations.diffusers import folders
from steindiff.models import Model


def load(
    name: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", prompt: str | None = None
) -> Model:
    """A shipped model, a model file, or the folder of a pipeline, FOLDER or FOLDER@PROMPTS.txt.

    Raises:
        InputError: as `models.load`; a folder that holds no pipeline; a prompt for a model that takes none.
        ModelFileError: as `models.load` and `folders.load`.
    """
    if folders.is_folder(name):
        return folders.load(name, dtype, device, prompt)
    if Path(name).is_dir():
        raise InputError(f"{name} is a folder without {folders.INDEX}: need one that a pipeline's save_pretrained has written")
    require(prompt is None, "only the folder of a text-to-image pipeline takes a prompt", model=str(name), prompt=prompt)
    return models.load(name, dtype=dtype, device=device)
