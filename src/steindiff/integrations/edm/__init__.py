"""NVIDIA's checkpoints of EDM and EDM2: read as data, and written as model files."""

from steindiff.integrations.edm.convert import Converted, convert

__all__ = ["Converted", "convert"]
