"""Trains the small CIFAR-10 classifier whose features `steindiff.metrics.load_features` gives, for Fréchet distances.

Cross-entropy with smoothed labels, SGD with Nesterov momentum, the learning rate rising linearly for a fifth of the run and
falling linearly to zero. Images are mirrored at random and shifted by up to 4 pixels (reflected edges). Half of every batch
is averaged over 2×2 blocks, rounded to 8 bits and enlarged again, so that one network serves 32×32 and 16×16 images.

Batch normalisations are folded into the convolutions before the file is written: W ← W γ/√(v + ε), b ← β + (b − m) γ/√(v + ε).
The test images are looked at once, at the end, with the weights as they are stored. The file is written whole or not at all.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from steindiff.cli.script import run_command
from steindiff.errors import InputError
from steindiff.io.files import manifest, writable_folder
from steindiff.metrics.features import KIND, Classifier, ClassifierConfig
from steindiff.models import store
from steindiff.models.datasets import ImageSet, load_images

HELP = {
    "epochs": "passes over the training images",
    "batch": "images per step",
    "lr": "peak learning rate",
    "momentum": "of SGD, Nesterov's",
    "weight_decay": "on the weights of convolutions and head",
    "smoothing": "of the labels",
    "shift": "largest random shift in pixels",
    "small": "share of every batch at half resolution",
    "precision": "of the network's arithmetic in training: bf16 or no (float32)",
    "seed": "of initialisation, order and augmentation",
}


@dataclass(frozen=True)
class Recipe:
    """Everything that the trained weights depend on, besides the network's shape, the data and the machine."""

    epochs: int = 16
    batch: int = 256
    lr: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    smoothing: float = 0.1
    shift: int = 4
    small: float = 0.5
    precision: str = "bf16"
    seed: int = 0


def learning_rate(done: float, peak: float) -> float:
    """Linear up over the first fifth of the run, linear down to zero; `done` is the share that is done, in [0, 1]."""
    return peak * min(done / 0.2, (1 - done) / 0.8)


def halved(x: Tensor) -> Tensor:
    """Means over 2×2 blocks, rounded to 8 bits: what saving the smaller image would keep."""
    return ((F.avg_pool2d(x, 2) + 1) * 127.5).round() / 127.5 - 1


def augmented(x: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """Each image shifted by up to `shift` pixels with reflected edges, and mirrored with probability one half."""
    n, side = len(x), x.shape[-1]
    x = F.pad(x, (shift,) * 4, mode="reflect")
    top, left = torch.randint(0, 2 * shift + 1, (2, n, 1), generator=generator)
    mirrored = torch.rand(n, 1, generator=generator) < 0.5
    along = torch.arange(side)
    rows, columns = top + along, left + torch.where(mirrored, along.flip(0), along)
    image, channel = torch.arange(n)[:, None, None, None], torch.arange(x.shape[1])[:, None, None]
    return x[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def train(config: ClassifierConfig, recipe: Recipe, data: ImageSet, labels: Tensor, quiet: bool = False) -> Classifier:
    """The trained network, with its batch normalisations, in evaluation mode."""
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    net = Classifier(config, nn.BatchNorm2d)
    decayed = [p for p in net.parameters() if p.ndim > 1]
    plain = [p for p in net.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=True)
    per_epoch = len(data) // recipe.batch
    bar = tqdm(total=recipe.epochs * per_epoch * recipe.batch, unit="img", unit_scale=True, disable=quiet, mininterval=2.0)
    step, running = 0, float("nan")
    for _ in range(recipe.epochs):
        order = torch.randperm(len(data), generator=generator)
        for index in order[: per_epoch * recipe.batch].split(recipe.batch):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate((step + 1) / (recipe.epochs * per_epoch), recipe.lr)
            loss = step_loss(net, recipe, augmented(data.points(index), recipe.shift, generator), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            running = loss.item() if running != running else 0.99 * running + 0.01 * loss.item()
            step += 1
            bar.update(len(index))
            bar.set_postfix(loss=f"{running:.4f}", refresh=False)
    bar.close()
    net.eval()
    return net


def step_loss(net: Classifier, recipe: Recipe, x: Tensor, labels: Tensor) -> Tensor:
    """Smoothed cross-entropy of a batch, its first part at half resolution."""
    count = round(recipe.small * len(x))
    if count:
        x = torch.cat([net.enlarge(halved(x[:count])), x[count:]])
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
        logits = net(x.contiguous(memory_format=torch.channels_last))
    return F.cross_entropy(logits.float(), labels, label_smoothing=recipe.smoothing)


@torch.no_grad()
def folded(net: Classifier) -> Classifier:
    """The same function in evaluation mode, without normalisations; float32."""
    plain = Classifier(net.config)
    modules = dict(net.named_modules())
    for name, target in plain.named_modules():
        source = modules[name]
        if isinstance(target, nn.Linear):
            target.load_state_dict(source.state_dict())
        elif isinstance(target, nn.Conv2d) and isinstance(source, nn.Conv2d) and source.bias is not None:
            norm = modules[name.removesuffix("conv") + "norm"]
            if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or norm.running_var is None:
                raise InputError(f"{name} is not followed by a batch normalisation: pass a network of `train`")
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            bias = norm.bias + (source.bias - norm.running_mean) * scale
            target.load_state_dict({"weight": source.weight * scale[:, None, None, None], "bias": bias})
    return plain.eval()


@torch.no_grad()
def accuracy(net: Classifier, data: ImageSet, labels: Tensor, small: bool) -> tuple[float, float]:
    """The share of images classified rightly, at half resolution or full, and its standard error."""
    right = 0
    for index in torch.arange(len(data)).split(500):
        x = data.points(index)
        right += int((net(halved(x) if small else x).argmax(1) == labels[index]).sum())
    share = right / len(data)
    return share, (share * (1 - share) / len(data)) ** 0.5


def load(path: Path, side: int, classes: tuple[str, ...] | None = None) -> tuple[ImageSet, Tensor]:
    """The images and their labels. Raises InputError where they have none, or other classes than they should."""
    data = load_images(path, progress=True)
    if data.labels is None or data.event_shape != (3, side, side):
        raise InputError(f"{path} holds images of shape {data.event_shape}, {len(data.classes)} classes: need {side}×{side}")
    if classes is not None and data.classes != classes:
        raise InputError(f"{path} has the classes {', '.join(data.classes)}: need {', '.join(classes)}")
    return data, data.labels


def parser() -> argparse.ArgumentParser:
    """The command line; defaults are those of the shipped weights."""
    p = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog="examples (the shipped recipe, about 15 minutes on one core; a quick look):\n"
        "  python -m recipes.train_classifier --data cifar10/train.tar.xz --test cifar10/test.tar.xz --out outputs/cifar10"
        "_classifier.safetensors\n"
        "  python -m recipes.train_classifier --data cifar10/train.tar.xz --test cifar10/test.tar.xz --epochs 1 --out "
        "outputs/quick.safetensors",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--data", type=Path, required=True, help="training images: folder, zip or tar with one folder per class")
    p.add_argument("--test", type=Path, required=True, help="test images, the same way")
    p.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    r = Recipe()
    for f in dataclasses.fields(Recipe):
        default = getattr(r, f.name)
        text = f"{HELP[f.name]}; default: {default}"
        p.add_argument(f"--{f.name.replace('_', '-')}", type=type(default), default=default, help=text)
    p.add_argument("--threads", type=int, default=1, help="CPU threads; changes rounding only; default: %(default)s")
    return p


def check_options(a: argparse.Namespace) -> None:
    """Raise InputError for an option that cannot work, before the training: also where the file could not be written."""
    for name, least in (("epochs", 1), ("batch", 2), ("threads", 1), ("shift", 0), ("seed", 0)):
        if getattr(a, name) < least:
            raise InputError(f"--{name} {getattr(a, name)}: must be at least {least}")
    for name in ("momentum", "smoothing", "small"):
        if not 0 <= getattr(a, name) < 1:
            raise InputError(f"--{name} {getattr(a, name)}: must be in [0, 1)")
    if not a.lr > 0 or not a.weight_decay >= 0 or a.precision not in ("bf16", "no"):
        raise InputError(f"--lr {a.lr} --weight-decay {a.weight_decay} --precision {a.precision}: need > 0, ≥ 0, bf16 or no")
    if a.out.suffix != ".safetensors":
        raise InputError(f"--out {a.out}: the name of a classifier file ends with .safetensors")
    writable_folder(a.out.parent)


def describe(a: argparse.Namespace, config: ClassifierConfig, recipe: Recipe, data: ImageSet, test: ImageSet) -> dict[str, Any]:
    """The file's description; without the command line, which holds paths of one machine."""
    hashes = {
        name: {"file": place.name, "n": len(images), "sha256": images.sha256}
        for name, place, images in (("train", a.data, data), ("test", a.test, test))
    }
    record = manifest(**dataclasses.asdict(recipe), data=hashes)
    del record["command"]
    return {
        "kind": KIND,
        "name": a.out.stem.removesuffix("_classifier"),
        "event_shape": [config.image_channels, config.side, config.side],
        "classifier": dataclasses.asdict(config),
        "classes": list(data.classes),
        "recipe": record,
    }


def run(a: argparse.Namespace) -> None:
    """Trains, measures and writes the classifier file."""
    check_options(a)
    torch.set_num_threads(a.threads)
    recipe = Recipe(**{f.name: getattr(a, f.name) for f in dataclasses.fields(Recipe)})
    side = ClassifierConfig().side
    data, labels = load(a.data, side)
    test, test_labels = load(a.test, side, data.classes)
    if len(data) < recipe.batch:
        raise InputError(f"--batch {recipe.batch}: more than the {len(data)} training images")
    config = ClassifierConfig(classes=len(data.classes))
    start = time.perf_counter()
    net = folded(train(config, recipe, data, labels))
    seconds = round(time.perf_counter() - start)
    tensors = {key: value.to(torch.float16) for key, value in net.state_dict().items()}
    net.load_state_dict(tensors)
    measured = {str(side // (1 + small)): accuracy(net, test, test_labels, small) for small in (False, True)}
    info = describe(a, config, recipe, data, test) | {"accuracy": measured}
    info["recipe"]["seconds"] = seconds
    store.save(a.out, tensors, info, kinds=(KIND,))
    count = sum(t.numel() for t in tensors.values())
    print(f"{a.out}: {a.out.stat().st_size} bytes, {count} parameters, trained in {seconds} s")
    for pixels, (share, se) in measured.items():
        print(f"  test accuracy at {pixels}×{pixels}: {100 * share:.2f} ± {100 * se:.2f} % ({len(test)} images)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; bad input ends with exit status 2 and one line that says what to change."""
    return run_command(parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
