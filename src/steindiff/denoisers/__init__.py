"""Denoisers: D(y, σ) ≈ E[x* | y = x* + σ ε] in VE coordinates, whatever the network predicts.

`Denoiser` is any callable `D(x, sigma)`, x: (B, *event), sigma: (B,) or (). The adapters turn a network that predicts
ε, v, x0 or a flow velocity under some schedule into one; `Guided` makes a denoiser of two; `Counter` counts calls. A run makes
every denoiser `Pure`, so that a network may write into its input, and return one and the same buffer at every call.

A denoiser may say things about itself, and every wrapper here passes them on: `schedule`, whose α defines the model's own x,
and `forwards`, the network forwards behind one call, which `declare` says for any other callable; `sigma_data`, the deviation
of its data, `noise_range`, the lowest and the highest level that it was made for, `usual_range`, where its runs end and begin,
and `tables`, the folders where tables that were calibrated on it may lie.
"""

from steindiff.denoisers.adapters import FromEDM, FromEps, FromFlow, FromV, FromX0, prediction_of
from steindiff.denoisers.base import Denoiser, Network, expand
from steindiff.denoisers.calls import Counter, Pure
from steindiff.denoisers.conditioned import Guided, Labelled, check_labels
from steindiff.denoisers.exposure_bias import EpsilonScaled, TimeSelected, TimeShifted
from steindiff.denoisers.stated import (
    check_schedule,
    declare,
    forwards_per_call,
    guidance_of,
    is_conditioned,
    known_schedule,
    noise_range_of,
    schedule_of,
    sigma_data_of,
    tables_of,
    usual_range_of,
)

__all__ = [
    "Counter",
    "Denoiser",
    "EpsilonScaled",
    "FromEDM",
    "FromEps",
    "FromFlow",
    "FromV",
    "FromX0",
    "Guided",
    "Labelled",
    "Network",
    "Pure",
    "TimeSelected",
    "TimeShifted",
    "check_labels",
    "check_schedule",
    "declare",
    "expand",
    "forwards_per_call",
    "guidance_of",
    "is_conditioned",
    "known_schedule",
    "noise_range_of",
    "prediction_of",
    "schedule_of",
    "sigma_data_of",
    "tables_of",
    "usual_range_of",
]
