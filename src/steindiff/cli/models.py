"""`steindiff models`: which models come with the package."""

from steindiff import models
from steindiff.io.streams import say


def models_command() -> None:
    """List the embedded models."""
    for name in models.names():
        model = models.load(name)
        size = model.path.stat().st_size / 2**20
        say(f"{name}: {model.info['kind']}, {tuple(model.event_shape)}, {size:.1f} MiB, {model.path}")
