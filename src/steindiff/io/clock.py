"""Where the time of a long computation goes, by part."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(eq=False)
class Clock:
    """Wall seconds by part, in the order in which the parts first began; time between them is nobody's.

    Example:
        >>> clock = Clock()
        >>> with clock("fitting"):
        ...     total = sum(range(100))
        >>> list(clock.seconds)
        ['fitting']
    """

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """The block counts for this part; parts do not contain each other."""
        start = time.perf_counter()
        self.seconds.setdefault(part, 0.0)
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - start

    def rounded(self) -> dict[str, float]:
        """For a record: to a tenth of a second."""
        return {part: round(seconds, 1) for part, seconds in self.seconds.items()}
