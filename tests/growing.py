"""What the memory of a process grows by over a long run, as a program of its own: its heap is then nobody else's.

python tests/growing.py NAME... prints, as JSON, {name: [states at a fifteenth of the run, at a third, at the end]}.
"""

import ctypes
import gc
import json
import os
import sys
from pathlib import Path

import torch

import steindiff as sd
from steindiff.divergence import Hutchinson

torch.set_num_threads(1)
STEPS, NUMBERS = 150, 100_000
LARGE = {"large by vjp": (45, 750_000)}
"""Steps and numbers of a state for which small tensors that stay would leave large holes in the heap."""


def network(x, sigma):
    """Some intermediate tensors of the state's size, which a derivative keeps until it has been taken."""
    return torch.tanh(torch.sin(x * 0.3) + x) / (1 + sigma.to(x) ** 2)


def corrected(rule, method="auto", solver="dpmpp_2m"):
    return sd.Corrected(solver, rule, divergence=Hutchinson(method=method), frame="ve")


def holding_a_state():
    """A correction with a leak, which must be seen."""
    held = list[torch.Tensor]()

    class Leak(sd.corrections.Correction):
        def correct(self, proposal, state):
            held.append(proposal.next)
            return sd.corrections.Outcome(proposal.next)

    return sd.Corrected("dpmpp_2m", Leak(), frame="ve")


CASES = {
    "plain": lambda: sd.solvers.make("dpmpp_2m"),
    "unipc_3": lambda: sd.solvers.make("unipc_3"),
    "tweedie": lambda: corrected("tweedie"),
    "energy": lambda: corrected("energy", "vjp"),
    "literal by vjp": lambda: corrected("clamped(history=frozen)", "vjp"),
    "literal by jvp": lambda: corrected("clamped(history=frozen)", "jvp"),
    "fast km": lambda: corrected("clamped(mode=analytical)"),
    "bot_nguyen": lambda: corrected("bot_nguyen"),
    "self-consistent": lambda: corrected("self_consistent"),
    "large by vjp": lambda: corrected("clamped", "vjp", "heun"),
    "leak": holding_a_state,
}


def resident():
    """Bytes of memory that the process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def grown(name):
    """States at the marks, beyond what there was before the run."""
    solver, (steps, numbers) = CASES[name](), LARGE.get(name, (STEPS, NUMBERS))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    gc.disable()  # a circle that holds a state until it is collected counts too
    found, before = [], resident()

    def look(event):
        if event.interval.index in (steps // 15, steps // 3, steps - 1):
            found.append(round((resident() - before) / (4 * numbers), 1))

    x = 10 * torch.randn(4, numbers // 4, generator=torch.Generator().manual_seed(0))
    sd.sample(solver, network, x, sd.grids.log_snr(steps, 0.1, 10.0), on_step=look)
    gc.enable()
    return found


if __name__ == "__main__":
    print(json.dumps({name: grown(name) for name in sys.argv[1:]}))
