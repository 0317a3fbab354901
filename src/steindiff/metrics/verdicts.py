"""The titles of the metrics, which way is better, and whether a change is beyond its noise.

    win or loss    |change| > 2 standard errors, by the metric's direction
    noise          otherwise

Two standard errors are exceeded by chance once in 22 comparisons where nothing changed.
"""

from __future__ import annotations

from typing import Literal

from steindiff.metrics.values import Value

Judged = Literal["win", "loss", "noise"]

TITLES = {
    "energy": "energy distance",
    "frechet": "Fréchet distance",
    "features": "Fréchet distance of classifier features",
    "sliced": "sliced Wasserstein distance, squared",
    "spectrum": "spectrum error",
    "precision": "precision",
    "recall": "recall",
    "coverage": "coverage",
    "components": "component weights, total variation",
    "endpoint": "endpoint RMSE",
    "fid": "FID",
    "inception_score": "inception score",
    "fd_dinov2": "FD-DINOv2",
    "fd_classifier": "classifier Fréchet distance (no FID)",
}
"""What a report calls each metric, in the order of a report."""

HIGHER = frozenset({"precision", "recall", "coverage", "inception_score"})
"""The metrics where more is better."""


def weigh(change: Value, metric: str) -> Judged:
    """Whether a change is beyond two standard errors, and in which direction.

    Example:
        >>> weigh(Value(-0.3, 0.1), "energy"), weigh(Value(-0.3, 0.1), "recall"), weigh(Value(-0.3, 0.2), "fid")
        ('win', 'loss', 'noise')
    """
    if not abs(change.value) > 2 * change.se:
        return "noise"
    return "win" if (change.value > 0) == (metric in HIGHER) else "loss"
