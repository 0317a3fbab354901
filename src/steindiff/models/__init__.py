"""Embedded models and model files: `load("digits")`, `load("cifar10_mixture")`, `load("path/to/file.safetensors")`."""

from steindiff.models.store import Model, load, names, read, save

__all__ = ["Model", "load", "names", "read", "save"]
