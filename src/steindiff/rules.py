"""The corrections under the name `steindiff.rules`; see `steindiff.corrections`."""

from steindiff.corrections import *  # noqa: F403
from steindiff.corrections import __all__ as __all__
