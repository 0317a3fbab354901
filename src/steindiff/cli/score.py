r"""`steindiff score`: FID, inception score and FD-DINOv2 of images, with weights and references that you name.

Examples:
  steindiff score --images outputs/50k --inception inception-2015-12-05.pt --inception-reference cifar10-32x32.npz
  steindiff score --images outputs/50k/samples.npz --against outputs/plain --dinov2 dinov2-large/ --real cifar10.zip \
    --outdir outputs/score
  steindiff score --real cifar10.zip --inception inception-2015-12-05.pt --write-reference cifar10.npz
  steindiff score --images outputs/few --real photos.zip --resolution 16 --features cifar10 --n 1000

Nothing is downloaded: docs/metrics.md says where the files are to be had. Numbers compare only with the same weights, reference
and n; published ones are of n = 50,000.
"""

from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from steindiff import report
from steindiff.cli.derive import options_of
from steindiff.cli.options import Dinov2, Dinov2Reference, Inception, InceptionReference, judges
from steindiff.errors import InputError
from steindiff.io import processes
from steindiff.io.files import read_json, sha256, writable_file, write_json
from steindiff.io.folders import begins, locked, locked_file, refuse
from steindiff.io.streams import say
from steindiff.metrics.features import names as feature_names
from steindiff.report.judge import as_json, blocks
from steindiff.study.judge import judge_images
from steindiff.study.judging import Job


@options_of(Job)
def score_command(
    inception: Inception = None,
    inception_reference: InceptionReference = None,
    dinov2: Dinov2 = None,
    dinov2_reference: Dinov2Reference = None,
    features: Annotated[
        str, typer.Option(help=f"Features of a small classifier: {', '.join(feature_names())}, or a file; no FID.")
    ] = "",
    features_reference: Annotated[Path | None, typer.Option(help="Their statistics of real images, .npz.")] = None,
    outdir: Annotated[Path | None, typer.Option(help="score.json goes here, with hashes, versions and command.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace score.json or the reference, where this command has made it.")
    ] = False,
    **given: Any,
) -> None:
    """Measure FID, inception score and FD-DINOv2 of images, with standard errors; you name the weights and references.

    Several processes share out the network's work: `torchrun --nproc_per_node=2 -m steindiff score …`.
    """
    named = judges(
        inception=(inception, inception_reference), dinov2=(dinov2, dinov2_reference), classifier=(features, features_reference)
    )
    job = Job(named, **given)
    file = outdir / "score.json" if outdir else None
    written = [place for place in (job.write_reference, file) if place is not None]

    def admit() -> None:
        for place in written:
            _admit(place, overwrite)

    with processes.joined(job.device), ExitStack() as locks:
        for place in written:
            locks.enter_context(locked(place.parent) if place == file else locked_file(place))
        processes.by_first(admit)
        found = judge_images(job, progress=True)
        if processes.rank():
            return
        if file is not None:
            write_json(file, as_json(found))
        if job.images:
            report.show(report.console(), blocks(found))
        for place in written:
            say(f"written: {place}")


def _admit(place: Path, overwrite: bool) -> None:
    """Refuse to write where something is that is none of ours; unless `overwrite`, where anything is."""
    beside = place.with_name(f"{place.name}.json")  # what says where a reference comes from
    there = [path for path in ((place, beside) if place.suffix == ".npz" else (place,)) if path.exists() or path.is_symlink()]
    ours = [path for path in there if path.suffix == ".json" and begins(path.name, '"steindiff":')(path.parent)]
    with suppress(ValueError, KeyError, TypeError, OSError):
        ours += [place] if beside in ours and read_json(beside)["reference_sha256"] == sha256(place) else []
    refuse(place.parent, [path.name for path in there if path not in ours], "choose another place")
    if there and not overwrite:
        raise InputError(f"{there[0]} is there already: choose another place, or pass --overwrite")
    writable_file(place)
