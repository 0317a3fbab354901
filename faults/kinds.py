"""Every kind of file that is read: how a small valid one is made, and how it is read, for whoever damages files.

`KINDS` has them by name. A kind that we write is `sealed`: whatever is changed in the file is found, or changes nothing that is
read. One that others write is read without a traceback, and that is all that can be asked.
"""

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from faults import edm_pickles
from steindiff import models
from steindiff.corrections.stein import read_numbers
from steindiff.divergence.choosing import Choice
from steindiff.integrations.edm.description import describe
from steindiff.integrations.edm.source import LIMITS
from steindiff.integrations.edm.unpickle import opened
from steindiff.io.files import read_tensors, write_json, write_tensors
from steindiff.metrics import Value
from steindiff.metrics.features import KIND, Classifier, ClassifierConfig, load_features
from steindiff.metrics.fid.references import Reference, read_reference, write_reference
from steindiff.models import store as model_files
from steindiff.models.datasets import load_images
from steindiff.models.networks import EDMPrecond, UNet, UNetConfig
from steindiff.run.output import Output, write_npz
from steindiff.solvers import dpm_v3_statistics, table_files, tabulated
from steindiff.solvers.multistep import Row
from steindiff.study import store as cells
from steindiff.study.grid import Cell
from steindiff.study.judge import _seeds
from steindiff.study.measure import References
from steindiff.train.checkpoint import Checkpoint, _read, save_checkpoint

CONFIG = UNetConfig(channels=4, mults=(1,), blocks=1, attention=(), heads=1, groups=2)
ABOUT = {
    "kind": "edm_unet", "name": "tiny", "event_shape": [1, 4, 4], "sigma_data": 0.5,
    "unet": {f.name: getattr(CONFIG, f.name) for f in fields(CONFIG)},
}  # fmt: skip
CELL = Cell("digits", "heun", "karras", 5, "none")


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        make: writes a small valid file into an empty folder, and says where; other files that it needs lie beside it.
        read: reads that file, as the package does, and gives all that was read.
        sealed: whether we write it, so that no change of it may go unseen.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    sealed: bool = True


def seen(value: Any) -> Any:
    """What was read, in a form that compares to the last bit."""
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    if is_dataclass(value):
        return [(f.name, seen(getattr(value, f.name))) for f in fields(value)]
    if isinstance(value, dict):
        return [(key, seen(entry)) for key, entry in sorted(value.items(), key=str)]
    return [seen(entry) for entry in value] if isinstance(value, list | tuple) else repr(value)


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _network() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: part.half() for name, part in EDMPrecond(UNet(CONFIG), 0.5).state_dict().items()}


def _model(folder: Path) -> Path:
    return model_files.save(folder / "m.safetensors", _network(), ABOUT)[0]


def _model_in_parts(folder: Path) -> Path:
    return model_files.save(folder / "m.safetensors", _network(), ABOUT, part_bytes=3000)[1]


def _mixture(folder: Path) -> Path:
    parts = {"weights": torch.ones(2), "means": _draw(2, 4), "loadings": _draw(2, 4, 1), "log_diagonal": _draw(2, 4)}
    about = {"kind": "factor_mixture", "name": "law", "event_shape": [1, 2, 2]}
    return model_files.save(folder / "law.safetensors", parts, about)[0]


def _read_model(path: Path) -> Any:
    model = models.load(path)
    image = model.denoiser(torch.ones(1, *model.event_shape), torch.tensor(1.0))
    return model.name, model.event_shape, model.info, model_files.read(path)[1], image


def _classifier(folder: Path) -> Path:
    torch.manual_seed(0)
    config = {"image_channels": 1, "side": 8, "stem": 2, "widths": [2, 2, 2], "classes": 2}
    tensors = Classifier(ClassifierConfig(**config)).state_dict()
    about = {"kind": KIND, "name": "small", "event_shape": [1, 8, 8], "classifier": config}
    return model_files.save(folder / "c.safetensors", tensors, about, kinds=(KIND,))[0]


def _read_classifier(path: Path) -> Any:
    features = load_features(path)
    return features.name, features.info, dict(features.network.state_dict())


def _tables(folder: Path) -> Path:
    rows = (Row(0.5, ()), Row(0.25, (0.5,)))
    solver = tabulated.Tabulated((10.0, 1.0, 0.1), rows, (10.0, 1.0))
    return table_files.save(folder / "t.safetensors", {"table": (solver, {"nfe": 2, "score": 0.5})})


def _statistics(folder: Path) -> Path:
    return dpm_v3_statistics.Statistics.constant(1.0, 0.0, 0.5, (10.0, 1.0, 0.1), (2,)).save(folder / "s.safetensors", images=3)


def _kept(name: str, value: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        cells.keep(folder / f"{name}.safetensors", "key", value)
        return folder / f"{name}.safetensors"

    return make


def _held(kind: type[Any]) -> Callable[[Path], Any]:
    return lambda path: cells.held(path, "key", kind, "it is made again")


RESULT = cells.Result(
    CELL, "key", 40, {"energy": Value(0.5, 0.25)}, {}, {"nfe": 5.0}, [{"step": 1, "gamma": 0.5}], [0.25, -0.5],
    shown=torch.arange(16, dtype=torch.uint8).reshape(1, 4, 4, 1), spread=_draw(3), lengths={"energy": 3},
)  # fmt: skip
TARGET = References(*(_draw(2, 1, 2, 2, seed=seed) for seed in range(3)), how="drawn", error=0.5)
CHOICE = Choice("vjp", {"vjp": 1.5, "jvp": None}, {"jvp": "no forward derivative"}, True)


def _output(folder: Path) -> Output:
    return Output(folder, {"seeds": [0, 1], "solver": "heun"})


def _part(folder: Path) -> Path:
    out = _output(folder)
    out.keep(0, [0, 1], np.arange(32, dtype=np.uint8).reshape(2, 4, 4, 1), [{"step": 0, "gamma": 0.5}], {"nfe": 5})
    return out.part(0)


def _record(folder: Path) -> Path:
    return _part(folder).with_name("job.json")


def _admitted(path: Path) -> Any:
    out = _output(path.parents[1])
    out.admit(range(1), overwrite=False)
    return out._read(0, "images")


def _manifest(folder: Path) -> Path:
    write_json(folder / "run.json", {"job": {"seeds": [3, 5, 8]}, "solver": "heun", "digest": "ab"}, seal=True)
    return folder / "run.json"


def _reference(folder: Path) -> Path:
    root = _draw(3, 3).double()
    write_reference(folder / "r.npz", Reference(_draw(3), root @ root.mT, 50, "ab" * 32, "none"))
    return folder / "r.npz"


def _checkpoint(folder: Path) -> Path:
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": _draw(4, seed=1)}}
    state = {"state": moments, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.99)}]}
    identity = {"recipe": {"steps": 9, "lr": 1e-3, "label_dropout": 0.0}, "unet": {"channels": 4, "null_class": False}}
    save_checkpoint(folder / "c.pt", Checkpoint(3, 1.5, identity, {"w": _draw(4)}, {"w": _draw(4, seed=2)}, state, {}))
    return folder / "c.pt"


def _fine(folder: Path) -> Path:
    write_tensors(folder / "fine.safetensors", {"states": _draw(2, 3)}, {"levels": [1.0, 0.5], "images": 2})
    return folder / "fine.safetensors"


def _samples(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    write_npz(folder / "samples.npz", pixels.shape, [pixels])
    return folder / "samples.npz"


def picture(size: tuple[int, int] = (5, 4), form: str = "PNG") -> bytes:
    """A file with a random picture of this width and height."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def _picture(form: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / f"a.{form.lower()}"
        path.write_bytes(picture(form=form))
        return path

    return make


LABELS = json.dumps({"labels": [["a/1.png", 0], ["b/2.png", 1]]}).encode()


def _zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "i.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (("a/1.png", picture()), ("b/2.png", picture()), ("dataset.json", LABELS)):
            archive.writestr(name, data)
    return folder / "i.zip"


def _tar(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / f"i.tar{suffix}"
        with tarfile.open(path, f"w:{suffix[1:]}") as archive:
            for name, data in (("a/1.png", picture()), ("b/2.png", picture()), ("dataset.json", LABELS)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return path

    return make


def _labels(folder: Path) -> Path:
    for name in ("a/1.png", "b/2.png"):
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(picture())
    (folder / "dataset.json").write_bytes(LABELS)
    return folder / "dataset.json"


def _read_images(path: Path) -> Any:
    images = load_images(path)
    return images.pixels, images.labels, images.classes


def _text(name: str, value: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(json.dumps(value))
        return folder / name

    return make


def _pickle(folder: Path) -> Path:
    (folder / "net.pkl").write_bytes(edm_pickles.snapshot(edm_pickles.small()))
    return folder / "net.pkl"


def _read_pickle(path: Path) -> Any:
    with opened(path, LIMITS) as file:
        description = describe(file.root, file.source)
        return description.info, {
            name: t if isinstance(t, Tensor) else file.tensor(t) for name, t in description.tensors.items()
        }


KINDS: dict[str, Kind] = {
    "model": Kind(_model, _read_model),
    "model in parts": Kind(_model_in_parts, _read_model),
    "mixture": Kind(_mixture, _read_model),
    "classifier": Kind(_classifier, _read_classifier),
    "tables": Kind(_tables, table_files.load),
    "statistics": Kind(_statistics, dpm_v3_statistics.Statistics.load),
    "fine runs": Kind(_fine, lambda path: read_tensors(path, "states")),
    "cell": Kind(_kept("cell", RESULT), _held(cells.Result)),
    "price": Kind(_kept("price", CHOICE), _held(Choice)),
    "target": Kind(_kept("target", TARGET), _held(References)),
    "part of a run": Kind(_part, lambda path: _output(path.parents[1])._read(0, "images")),
    "record of a run": Kind(_record, _admitted),
    "run.json": Kind(_manifest, lambda path: _seeds(path.parent / "samples.npz")),
    "reference": Kind(_reference, read_reference),
    "checkpoint": Kind(_checkpoint, _read),
    "samples.npz": Kind(_samples, _read_images),
    "PNG": Kind(_picture("PNG"), lambda path: _read_images(path.parent), sealed=False),
    "JPEG": Kind(_picture("JPEG"), lambda path: _read_images(path.parent), sealed=False),
    "zip": Kind(_zip, _read_images, sealed=False),
    "tar": Kind(_tar(""), _read_images, sealed=False),
    "tar.gz": Kind(_tar(".gz"), _read_images, sealed=False),
    "tar.xz": Kind(_tar(".xz"), _read_images, sealed=False),
    "dataset.json": Kind(_labels, lambda path: _read_images(path.parent), sealed=False),
    "gamma table": Kind(_text("g.json", [0.5, 0.25, 1.0]), lambda path: read_numbers(path, "a gamma table"), sealed=False),
    "EDM pickle": Kind(_pickle, _read_pickle, sealed=False),
}
"""Every kind of file, by name."""
