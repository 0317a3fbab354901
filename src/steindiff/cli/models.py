"""`steindiff models`: which models come with the package."""

from rich.console import Console

from steindiff import models


def models_command() -> None:
    """List the embedded models."""
    console = Console()
    for name in models.names():
        model = models.load(name)
        size = model.path.stat().st_size / 2**20
        console.print(
            f"{name}: {model.info['kind']}, {tuple(model.event_shape)}, {size:.1f} MiB, {model.path}", highlight=False
        )
