"""A pickle run by the official code, for files that reading as data does not serve; what it makes is described as ever."""

import pickle
from pathlib import Path
from typing import Any

import numpy
from torch import Tensor, nn

from steindiff.errors import InputError, ModelFileError
from steindiff.integrations.edm.description import Description, describe
from steindiff.integrations.edm.source import Source, check_file
from steindiff.integrations.edm.values import Record


def run(path: Path) -> tuple[Description, dict[str, Tensor]]:
    """Unpickle a file, which runs whatever is in it, and describe the network that it makes.

    Raises:
        InputError: there is no such file, or the official code is not importable.
        ModelFileError: the file's own code fails, or makes no network of EDM's or EDM2's.
    """
    check_file(path)
    try:
        with path.open("rb") as file:
            held = pickle.load(file)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give the .pkl file of a network") from error
    except ModuleNotFoundError as error:
        raise InputError(f"{path} needs the module {error.name}: put a clone of NVIDIA's repository on PYTHONPATH") from error
    except Exception as error:  # the file's own program, which may raise anything
        raise ModelFileError(f"{path}: its own code fails: {type(error).__name__}: {error}") from error
    root = {str(k): _recorded(v) for k, v in held.items()} if isinstance(held, dict) else _recorded(held)
    with path.open("rb") as file:
        description = describe(root, Source(file, path))
    return description, {name: t.detach().cpu().clone() for name, t in description.tensors.items() if isinstance(t, Tensor)}


def _recorded(value: Any) -> Any:
    """An object as a record of its class's name and attributes, and numpy's numbers as Python's; other values as they are."""
    if isinstance(value, numpy.generic | numpy.ndarray):
        return value.tolist()
    if isinstance(value, Tensor | dict | list | tuple) or not hasattr(value, "__dict__"):
        return value
    kind = type(value)
    record = Record(kind.__name__, not kind.__module__.startswith("torch.nn."), 0)
    record.state = {name: _recorded(v) for name, v in vars(value).items() if name != "_modules"}
    if isinstance(value, nn.Module):
        record.state["_modules"] = {name: _recorded(child) for name, child in value._modules.items()}
    return record
