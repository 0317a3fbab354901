"""Compare a converted checkpoint with the official network, for whoever has a clone of NVIDIA's repository and the pickle.

    git clone https://github.com/NVlabs/edm
    steindiff convert edm-cifar10-32x32-uncond-vp.pkl cifar10.safetensors
    python -m research.compare_edm --official edm --pickle edm-cifar10-32x32-uncond-vp.pkl --model cifar10.safetensors

The official reader *runs the program that is stored in the pickle*: give it a file of NVIDIA's own, and no other. For EDM2 the
clone is that of NVlabs/edm2. The clone needs `pip install requests`.

Both networks see x = 0.5 n₁ + σ n₂ at noise levels of their range, both in float32, with random labels and then without any. A
line has σ, the largest |D|, the largest difference, and e, which is that difference over max(1, σ): under VP, VE and iDDPM
preconditioning D is as large as σ. The last line says whether all e are within the tolerance, and so does the exit code. An e
of 10⁻⁶ is usual, and 3·10⁻⁵ for VP, whose official c_noise is a little off in float32.
"""

import pickle
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from recipes.command import command, need, print_table

from steindiff import models
from steindiff.errors import InputError
from steindiff.models.networks.precond import Preconditioned
from steindiff.solvers import Setting


@dataclass(frozen=True)
class Options:
    """The command line."""

    official: Annotated[str, "the folder of the clone"]
    pickle: Annotated[str, "the checkpoint; the program in it is run"]
    model: Annotated[str, "what steindiff convert made of it"]
    device: Annotated[str, "cpu, or cuda, where TF32 is switched off"] = "cpu"
    batch: Annotated[int, "images at each noise level", 1] = 2
    levels: Annotated[int, "noise levels", 2] = 7
    seed: Annotated[int, "of images and labels", 0] = 0
    tolerance: Annotated[float, "the largest error that agrees"] = 1e-4
    threads: Annotated[int, "CPU threads", 1] = 1


def official_network(clone: Path, file: Path, device: str) -> Any:
    """The network in a pickle, by the clone's reader. Raises InputError where the folder is no such clone."""
    lacking = [name for name in ("torch_utils/persistence.py", "dnnlib") if not (clone / name).exists()]
    need(not lacking, f"lacks {', '.join(lacking)}: name a clone of NVlabs/edm or NVlabs/edm2", official=clone)
    need(file.is_file(), "there is no such file", pickle=file)
    sys.path.insert(0, str(clone.resolve()))
    with open(file, "rb") as stream:
        return pickle.load(stream)["ema"].eval().requires_grad_(False).to(device)


def rows(official: Any, model: models.Model, options: Options) -> Iterator[tuple[str, float, float, float, float]]:
    """What the table shows of every noise level, with labels where the model has classes, and then without."""
    ours, generator = model.denoiser, torch.Generator().manual_seed(options.seed)
    need(isinstance(ours, Preconditioned), "is no converted checkpoint: convert the pickle", model=model.path)
    setting = Setting.of(ours)
    ends = torch.tensor([setting.sigma_min, setting.sigma_max], dtype=torch.float64).log()
    told = torch.linspace(*ends.tolist(), options.levels, dtype=torch.float64).exp().to(options.device)
    told = torch.as_tensor(getattr(official, "round_sigma", lambda s: s)(told)).float()
    shape = (options.levels, 2, options.batch, *model.event_shape)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64).float().to(options.device)
    labels = torch.randint(max(model.classes, 1), (options.batch,), generator=generator).to(options.device)
    for given in (labels, None) if model.classes else (None,):
        rows = None if given is None else F.one_hot(given, model.classes).float()
        for sigma, (clean, z) in zip(told, noise, strict=True):
            x = 0.5 * clean + sigma * z
            theirs = official(x, sigma.expand(len(x)), rows, force_fp32=True)
            level, size = float(sigma), float(theirs.abs().max())
            difference = float((ours(x, sigma, given).double() - theirs.double()).abs().max())
            yield "none" if given is None else "labels", level, size, difference, difference / max(1.0, level)


@command
def main(options: Options) -> None:
    """Print the table and what follows from it; raise InputError where the networks differ."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    official = official_network(Path(options.official), Path(options.pickle), options.device)
    model = models.load(options.model, device=options.device)
    found = list(rows(official, model, options))
    shown = ((labels, f"{s:.4g}", f"{size:.4g}", f"{gap:.2e}", f"{error:.2e}") for labels, s, size, gap, error in found)
    print_table(("labels", "sigma", "max D", "difference", "e"), shown)
    worst = float(torch.tensor([error for *_, error in found]).max())
    verdict = f"the largest e is {worst:.2e}, the tolerance {options.tolerance:g}"
    if not worst <= options.tolerance:
        raise InputError(f"DIFFER: {verdict}; are pickle and model the same checkpoint?")
    print(f"agree: {verdict}")
