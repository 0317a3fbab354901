"""Solvers of the probability-flow ODE: state in, state out. `make("dpmpp_2m")` builds one by name."""

from steindiff.solvers.as_table import as_table
from steindiff.solvers.auto import Auto
from steindiff.solvers.base import USUAL, Grid, Interval, Setting, Solver, State, Step
from steindiff.solvers.calibrated import Calibrated
from steindiff.solvers.deis import DEIS, IPNDM
from steindiff.solvers.dpm_v3 import DPMSolverV3
from steindiff.solvers.dpm_v3_statistics import Statistics
from steindiff.solvers.dpmpp import DPMpp2M, DPMpp3M
from steindiff.solvers.evodiff import EVODiff
from steindiff.solvers.multistep import DDIM, Multistep, NoiseMultistep, Row
from steindiff.solvers.pndm import PNDM
from steindiff.solvers.purpose import Purpose
from steindiff.solvers.registry import make, names, plans
from steindiff.solvers.restart import Cycle, Restart
from steindiff.solvers.singlestep import DPMpp2S, DPMpp3S, Heun
from steindiff.solvers.table import Table
from steindiff.solvers.tabulated import Tabulated
from steindiff.solvers.unipc import UniPC
from steindiff.solvers.universal import Universal

__all__ = [
    "DDIM",
    "DEIS",
    "IPNDM",
    "PNDM",
    "USUAL",
    "Auto",
    "Calibrated",
    "Cycle",
    "DPMSolverV3",
    "DPMpp2M",
    "DPMpp2S",
    "DPMpp3M",
    "DPMpp3S",
    "EVODiff",
    "Grid",
    "Heun",
    "Interval",
    "Multistep",
    "NoiseMultistep",
    "Purpose",
    "Restart",
    "Row",
    "Setting",
    "Solver",
    "State",
    "Statistics",
    "Step",
    "Table",
    "Tabulated",
    "UniPC",
    "Universal",
    "as_table",
    "make",
    "names",
    "plans",
]  # fmt: skip
