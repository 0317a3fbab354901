"""`steindiff convert`: a checkpoint of EDM or EDM2 becomes a model file.

Examples:
  steindiff convert edm-cifar10-32x32-uncond-vp.pkl cifar10.safetensors
  steindiff convert edm2-img64-s-1073741-0.075.pkl img64-s.safetensors --name img64-s
  steindiff sample --model cifar10.safetensors --nfe 5 --seeds 0-63 --outdir out/cifar10

Nothing in the pickle is run. --trust-pickle runs it, by a clone of NVIDIA's repository on PYTHONPATH.
"""

import math
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

from steindiff.io.streams import one_line, say
from steindiff.models import Model

Stored = Literal["float16", "float32"]


def convert_command(
    pickle: Annotated[Path, typer.Argument(help="The .pkl file of NVIDIA's EDM or EDM2.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="The model goes into this .safetensors file.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="The name of the model; by default that of the pickle.")] = None,
    dtype: Annotated[
        Stored | None, typer.Option(parser=str, help="Store numbers as float16 or float32; by default as they are.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model file, and no other.")] = False,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Run the pickle: whoever made it can do here whatever you can.")
    ] = False,
) -> None:
    """Read a checkpoint of EDM or EDM2 without running anything in it, write a model file, and say what it is."""
    from steindiff.integrations.edm.convert import convert

    if trust_pickle:
        warning = f"--trust-pickle runs the program in {pickle}: whoever made that file can now do here whatever you can"
        Console(stderr=True).print(Text.assemble(("warning:", "bold red"), " ", one_line(warning)), soft_wrap=True)
    done = convert(pickle, out, name=name, dtype=dtype, overwrite=overwrite, trust=trust_pickle)
    say(f"{done.model.path}: {_said(done.model, done.numbers)}")


def _said(model: Model, numbers: int) -> str:
    """What a converted model is, in a sentence."""
    info, (low, high) = model.info, model.noise_range
    shape = "×".join(map(str, model.event_shape))
    classes = f"{model.classes} classes" if model.classes else "no classes"
    noise = "any noise level" if (low, high) == (0, math.inf) else f"noise levels from {low:.4g} to {high:.6g}"
    what, form = "latents" if info["encoder"] else "images", info["source"]["dtype"]
    size = f"{numbers:,} parameters and buffers ({form} in the pickle)"
    return f"{info['precond']} of {info['network']}, {size}, {what} of {shape}, {classes}, {noise}"
