"""Corrections under the name that users of `steindiff.rules` know; see `steindiff.corrections`."""

from steindiff.corrections import *  # noqa: F403
from steindiff.corrections import __all__ as __all__
