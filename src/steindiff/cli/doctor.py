"""`steindiff doctor`: what this machine has, and whether a model is understood rightly.

Examples:
  steindiff doctor
  steindiff doctor --model digits
  steindiff doctor --model my/model.safetensors --nfe 4,6,8 --device cuda
  steindiff doctor --model digits_classes_guided_3 --json

A model is a shipped one, a file, or a testbed of the study. The exit code is 1 where a model is not
consistent: it does not take off the noise that it is told.
"""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from steindiff.cli.options import Device
from steindiff.io.processes import local_device


def doctor_command(
    model: Annotated[str | None, typer.Option(help="The model to examine; without one, only the machine.")] = None,
    nfe: Annotated[str, typer.Option(help="Numbers of evaluations for which solver auto is asked: 5 or 3,5-10.")] = "3-6,8,10",
    images: Annotated[int, typer.Option(help="The number of images that the examination draws.", min=2, max=1_000_000)] = 16,
    device: Device = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Say what is installed, and how a model is understood: schedule, consistency, derivatives, and what solver auto takes."""
    from steindiff import report
    from steindiff.diagnostics.doctor import examine, machine
    from steindiff.report.doctor import examination_blocks, machine_blocks, verdict
    from steindiff.run import parse_numbers
    from steindiff.study import testbed

    facts, found = machine(), None
    if model is not None:
        bed = testbed.make(model, local_device(device))
        found = examine(bed.denoiser_for(range(images)), bed.setting, parse_numbers(nfe, "--nfe", 1000), images, device)
    if as_json:
        machine_found = {fact.what: fact.value for fact in facts}
        of_model = None if found is None else {**asdict(found), "sound": found.sound, "verdict": verdict(found)}
        print(json.dumps({"machine": machine_found, "model": of_model}, default=str))
    else:
        console = report.console()
        report.show(console, machine_blocks(facts))
        if found is not None:
            report.show(console, examination_blocks(str(model), found))
    if found is not None and not found.sound:
        raise typer.Exit(1)
