"""Where the time of a long computation goes, by part."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(eq=False)
class Clock:
    """Seconds by part, in the order in which the parts first began; time between them is nobody's.

    Args:
        now: what tells the time: wall time, or `time.process_time`.
        part: the part that is running; empty between them.

    Example:
        >>> clock = Clock()
        >>> with clock("fitting"):
        ...     total = sum(range(100))
        >>> list(clock.seconds)
        ['fitting']
    """

    now: Callable[[], float] = time.perf_counter
    seconds: dict[str, float] = field(default_factory=dict)
    part: str = ""

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """The block counts for this part; parts do not contain each other."""
        start, self.part = self.now(), part
        self.seconds.setdefault(part, 0.0)
        try:
            yield
        finally:
            self.seconds[part] += self.now() - start
            self.part = ""

    def rounded(self) -> dict[str, float]:
        """For a record: to a tenth of a second."""
        return {part: round(seconds, 1) for part, seconds in self.seconds.items()}
