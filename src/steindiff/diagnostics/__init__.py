"""Diagnostics of steps and runs: local Lipschitz constants, the contraction certificate, the noise-mismatch meter, traces."""

from steindiff.diagnostics.jacobian import (
    Linearization,
    Lipschitz,
    linearize,
    lipschitz,
    local_denoiser_lipschitz,
    random_directions,
)
from steindiff.diagnostics.meters import TraceSummary, noise_mismatch, summarize
from steindiff.diagnostics.trajectory import (
    Reference,
    StepMap,
    StepReport,
    along_trajectory,
    certificate_threshold,
    discrepancy_amplification,
    reference_flow,
    step_bound,
    step_maps,
)

__all__ = [
    "Linearization", "Lipschitz", "Reference", "StepMap", "StepReport", "TraceSummary", "along_trajectory",
    "certificate_threshold", "discrepancy_amplification", "linearize", "lipschitz", "local_denoiser_lipschitz",
    "noise_mismatch", "random_directions", "reference_flow", "step_bound", "step_maps", "summarize",
]  # fmt: skip
