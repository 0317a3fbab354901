"""What the card of digits_classes says of its classes: how many samples are found in the class that was asked for (2 minutes).

    python -m recipes.check_classes
    python -m recipes.check_classes --n 100 --steps 20 --scales 3

Image i has the class i mod 10. It comes from seed i by UniPC-3 on --steps noise levels from 80 to 0.002 (ρ = 7). The classifier
is scikit-learn's support vector machine on the pixels of the training digits. Its accuracy on the held-out digits is printed
first.
"""

from typing import Annotated

import numpy as np
import torch
from sklearn.svm import SVC
from torch import Tensor
from tqdm import tqdm

from recipes.command import command
from steindiff import grids, initial_noise, models, sample
from steindiff.metrics import Value
from steindiff.models.datasets import ImageSet, load_digits


def classifier(data: ImageSet) -> SVC:
    """The classifier of these digits."""
    return SVC(gamma="scale").fit(data.points().flatten(1).numpy(), data.labels)


def share(machine: SVC, x: Tensor, labels: Tensor) -> Value:
    """Which part of the images the classifier finds in their classes, with its binomial standard error."""
    right = float(np.mean(machine.predict(x.flatten(1).numpy()) == labels.numpy()))
    return Value(right, float(np.sqrt(right * (1 - right) / len(x))))


@command
def main(
    model: Annotated[str, "a model with the digits' classes and a null class: its name, or its file"] = "digits_classes",
    n: Annotated[int, "samples for each scale", 10] = 1000,
    steps: Annotated[int, "solver steps", 2] = 50,
    scales: Annotated[tuple[float, ...], "scales of guidance; 1 is without"] = (1.0, 3.0),
    seed: Annotated[int, "first of the image seeds", 0] = 0,
) -> None:
    """Sample, classify and print; the defaults are those of the card."""
    loaded, (train, held) = models.load(model), load_digits()
    machine, labels = classifier(train), torch.arange(n) % loaded.classes
    print(f"held-out digits: {share(machine, held.points(), held.labels)} in their class")
    x, sigmas = initial_noise(range(seed, seed + n), loaded.event_shape, 80.0), grids.karras(steps)
    for scale in scales:
        parts = zip(x.split(250), labels.split(250), strict=True)
        bar = tqdm(parts, total=-(-n // 250), unit="batch", desc=f"w = {scale:g}")
        ends = torch.cat([sample("unipc_3", loaded.guided(c, scale), noise, sigmas).x for noise, c in bar]).clamp(-1, 1)
        print(f"w = {scale:g}: {share(machine, ends, labels)} of {n} samples in the class that was asked for")
