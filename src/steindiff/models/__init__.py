"""Embedded models and model files: `load("digits")`, `load("cifar10_mixture")`, `load("path/to/file.safetensors")`."""

from steindiff.models.loading import load
from steindiff.models.model import Model
from steindiff.models.store import FORMAT, files, names, read, save

__all__ = ["FORMAT", "Model", "files", "load", "names", "read", "save"]
