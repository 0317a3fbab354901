"""Where the calibrated tables of a pipeline lie: in the folder `steindiff` of the pipeline's own."""

from pathlib import Path
from typing import Any

FOLDER, FILE = "steindiff", "tables.safetensors"


def place_beside(pipe: Any) -> Path | None:
    """The file where a pipeline's tables belong; None where it does not come from a folder on this machine."""
    name = getattr(pipe, "name_or_path", None) or getattr(getattr(pipe, "config", None), "_name_or_path", None)
    folder = Path(name) if isinstance(name, str | Path) and str(name) else None
    return folder / FOLDER / FILE if folder is not None and (folder / "model_index.json").is_file() else None


def found_in(folder: Path) -> str | None:
    """The folder of the calibrated tables in a pipeline's folder; None where there are none, or where it is no pipeline's."""
    place = folder / FOLDER
    there = (folder / "model_index.json").is_file() and any(place.glob("*.safetensors"))
    return str(place) if there else None


def tables_beside(pipe: Any) -> str | None:
    """The folder of a pipeline's calibrated tables, as `SteindiffScheduler.from_config(..., table=...)` takes it, or None.

    It is PIPELINE/steindiff, where `calibrate` puts them, for a pipeline that was loaded from a folder on this machine.
    """
    place = place_beside(pipe)
    return None if place is None else found_in(place.parent.parent)
