r"""Trains the small CIFAR-10 classifier whose features `steindiff.metrics.load_features` gives, for Fréchet distances.

The shipped recipe (about 15 minutes on one core), and a quick look:

    python -m recipes.train_classifier --data cifar10/train.tar.xz --test cifar10/test.tar.xz \
        --out outputs/cifar10_classifier.safetensors
    python -m recipes.train_classifier --data cifar10/train.tar.xz --test cifar10/test.tar.xz --epochs 1 --out quick.safetensors

It minimises the cross-entropy with smoothed labels by SGD with Nesterov momentum; the learning rate rises linearly for a fifth
of the run and falls linearly to zero. Images are mirrored at random and shifted by up to 4 pixels (reflected edges). Half of
every batch is averaged over 2×2 blocks, rounded to 8 bits and enlarged again, so that one network serves 32×32 and 16×16.

Batch normalisations are folded into the convolutions before the file is written: W ← W γ/√(v + ε), b ← β + (b − m) γ/√(v + ε).
The test images are looked at once, at the end, with the weights as they are stored. The file is written whole or not at all.
"""

import copy
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from recipes.command import command, need
from steindiff.errors import InputError, require
from steindiff.io.files import manifest, writable_folder
from steindiff.metrics.features import KIND, Classifier, ClassifierConfig
from steindiff.models import store
from steindiff.models.datasets import ImageSet, load_images


@dataclass(frozen=True)
class Options:
    """The files, and all that the trained weights depend on besides the network's shape, the data and the machine."""

    data: Annotated[Path, "training images: folder, zip or tar with one folder per class"]
    test: Annotated[Path, "test images, the same way"]
    out: Annotated[Path, "the .safetensors file to write"]
    epochs: Annotated[int, "passes over the training images", 1] = 16
    batch: Annotated[int, "images per step", 2] = 256
    lr: Annotated[float, "peak learning rate"] = 0.2
    momentum: Annotated[float, "momentum of SGD, Nesterov's"] = 0.9
    weight_decay: Annotated[float, "decay of the weights of convolutions and head", 0] = 5e-4
    smoothing: Annotated[float, "smoothing of the labels"] = 0.1
    shift: Annotated[int, "largest random shift in pixels", 0] = 4
    small: Annotated[float, "share of every batch at half resolution"] = 0.5
    precision: Annotated[str, "arithmetic of the network in training: bf16 or no (float32)"] = "bf16"
    seed: Annotated[int, "seed of initialisation, order and augmentation", 0] = 0
    threads: Annotated[int, "CPU threads; they change rounding only", 1] = 1


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


def train(config: ClassifierConfig, recipe: Options, data: ImageSet, labels: Tensor) -> Classifier:
    """The trained network, with its batch normalisations, in evaluation mode."""
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    net = Classifier(config, nn.BatchNorm2d)
    kinds = ((True, recipe.weight_decay), (False, 0.0))
    groups = [{"params": [p for p in net.parameters() if (p.ndim > 1) is k], "weight_decay": decay} for k, decay in kinds]
    optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=True)
    per_epoch = len(data) // recipe.batch * recipe.batch
    total = recipe.epochs * per_epoch

    def rate(step: int) -> float:
        """Linear up over the first fifth of the run, linear down to zero."""
        done = (step + 1) * recipe.batch / total
        return min(done / 0.2, (1 - done) / 0.8)

    scheduler = LambdaLR(optimizer, rate)
    with tqdm(total=total, unit="img", unit_scale=True, mininterval=2.0) as bar:
        for _ in range(recipe.epochs):
            for index in torch.randperm(len(data), generator=generator)[:per_epoch].split(recipe.batch):
                loss = step_loss(net, recipe, augmented(data.points(index), recipe.shift, generator), labels[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
                bar.update(len(index))
                bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    return net.eval()


def step_loss(net: Classifier, recipe: Options, x: Tensor, labels: Tensor) -> Tensor:
    """Smoothed cross-entropy of a batch, its first part at half resolution."""
    count = round(recipe.small * len(x))
    if count:
        x = torch.cat([net.enlarge(halved(x[:count])), x[count:]])
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
        logits = net(x.contiguous(memory_format=torch.channels_last))
    return F.cross_entropy(logits.float(), labels, label_smoothing=recipe.smoothing)


def folded(net: Classifier) -> Classifier:
    """The same function in evaluation mode, without normalisations; float32."""
    plain = copy.deepcopy(net).eval()
    for name, norm in list(plain.named_modules()):
        if name.endswith(".norm"):
            block = plain.get_submodule(name.removesuffix(".norm"))
            normalised = isinstance(norm, nn.BatchNorm2d)
            require(normalised, "is not followed by a batch normalisation: pass a network of `train`", block=name)
            block.conv, block.norm = fuse_conv_bn_eval(block.conv, norm), nn.Identity()
    return plain


@torch.no_grad()
def accuracy(net: Classifier, data: ImageSet, labels: Tensor, small: bool) -> tuple[float, float]:
    """The share of images classified rightly, at half resolution or full, and its standard error."""
    parts = ((data.points(index), labels[index]) for index in torch.arange(len(data)).split(500))
    right = sum(int((net(halved(x) if small else x).argmax(1) == y).sum()) for x, y in parts)
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


def check_options(o: Options) -> None:
    """Raise InputError for an option that cannot work, before the training: also where the file could not be written."""
    for name in ("momentum", "smoothing", "small"):
        need(0 <= getattr(o, name) < 1, "must be in [0, 1)", **{name: getattr(o, name)})
    need(o.lr > 0 and o.precision in ("bf16", "no"), "need > 0, and bf16 or no", lr=o.lr, precision=o.precision)
    need(o.out.suffix == ".safetensors", "the name of a classifier file ends with .safetensors", out=o.out)
    writable_folder(o.out.parent)


@command
def main(o: Options) -> None:
    """Trains, measures and writes the classifier file."""
    check_options(o)
    side = ClassifierConfig().side
    data, labels = load(o.data, side)
    test, test_labels = load(o.test, side, data.classes)
    need(o.batch <= len(data), f"more than the {len(data)} training images", batch=o.batch)
    config = ClassifierConfig(classes=len(data.classes))
    start = time.perf_counter()
    net = folded(train(config, o, data, labels))
    seconds = round(time.perf_counter() - start)
    tensors = {key: value.to(torch.float16) for key, value in net.state_dict().items()}
    net.load_state_dict(tensors)
    measured = {str(side // (1 + small)): accuracy(net, test, test_labels, small) for small in (False, True)}
    sources = (("train", o.data, data), ("test", o.test, test))
    hashes = {name: {"file": place.name, "n": len(images), "sha256": images.sha256} for name, place, images in sources}
    settings = {k: v for k, v in dataclasses.asdict(o).items() if k not in ("data", "test", "out", "threads")}
    recipe = manifest(**settings, data=hashes, seconds=seconds)
    del recipe["command"]  # it holds paths of one machine
    info = {
        "kind": KIND,
        "name": o.out.stem.removesuffix("_classifier"),
        "event_shape": [config.image_channels, side, side],
        "classifier": dataclasses.asdict(config),
        "classes": list(data.classes),
        "recipe": recipe,
        "accuracy": measured,
    }
    store.save(o.out, tensors, info, kinds=(KIND,))
    count = sum(t.numel() for t in tensors.values())
    print(f"{o.out}: {o.out.stat().st_size} bytes, {count} parameters, trained in {seconds} s")
    for pixels, (share, se) in measured.items():
        print(f"  test accuracy at {pixels}×{pixels}: {100 * share:.2f} ± {100 * se:.2f} % ({len(test)} images)")
