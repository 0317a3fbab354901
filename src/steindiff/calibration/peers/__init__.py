"""Published ways to make a few-step method for one network, by name: what `calibrate` is compared with.

They are not part of what `calibrate` does. `research/calibrated_peers.py` compares all of them on the same noises. These are
peers of a calibration; `corrections/peers.py` has those of the correction.
"""

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

from steindiff.calibration.bill import Bill
from steindiff.calibration.peers import bns, dc_solver, dpm_v3, gits, olss, oss, pas
from steindiff.calibration.peers.base import Made, Peer, Task

PEERS: Mapping[str, Peer] = MappingProxyType(
    {
        "olss": olss.make,
        "gits": gits.make,
        "oss": oss.make,
        "dpm_v3": dpm_v3.make,
        "dpm_v3_1024": partial(dpm_v3.make, how=dpm_v3.Measuring(intervals=60, probes=1, count=1024)),
        "dc_solver": dc_solver.make,
        "pas": pas.make,
        "bns": bns.make,
        "bns_long": partial(bns.make, how=bns.Training(times=10)),
        "bns_started": partial(bns.make, how=bns.Training(universal=True, rate=1e-2)),
        "bns_started_long": partial(bns.make, how=bns.Training(universal=True, rate=1e-2, times=10)),
    }
)
"""Every peer at its published best, or where there are choices at its best on the calibration's noise."""

__all__ = ["PEERS", "Bill", "Made", "Peer", "Task"]
