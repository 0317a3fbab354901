"""Weights of networks of EDM by a rule that any program can follow, and the points at which outputs are compared.

Tensors are taken in the order of their sorted full names, all from one generator: z ~ N(0, 1), float64, of the tensor's shape.
"""

import math

import torch


def weights(shapes, seed=0):
    """Tensors, float32, of these names and shapes. Filters, trained levels and what D does not use are none of them."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in sorted(shapes.items()):
        if name.endswith("resample_filter") or name == "u" or name.startswith("logvar_"):
            continue
        z = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
        if name.endswith(("freqs", "phases")):
            value = 3 * z
        elif len(shape) == 0 or (len(shape) == 1 and name.endswith("weight")):  # gains, and weights of norms
            value = 1 + 0.2 * z
        elif len(shape) == 1:  # biases
            value = 0.2 * z
        else:
            value = z / math.sqrt(math.prod(shape[1:]))
        found[name] = value.float()
    return found


def points(event_shape, classes=10):
    """Noisy images x (4, *event_shape), float64, their noise levels (4,) and labels (4,), of which the last is no class."""
    sigma = torch.tensor([0.03, 0.7, 4.0, 40.0], dtype=torch.float64)
    z = torch.randn(4, *event_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (0.25 + sigma**2).sqrt()[:, None, None, None] * z, sigma, torch.tensor([3, 0, classes - 1, classes])


def summary(denoised):
    """Eight numbers for each image: the mean, the RMS, and six coordinates at even distances; float64 (4, 8)."""
    flat = denoised.double().flatten(1)
    some = flat[:, :: flat.shape[1] // 6][:, :6]
    return torch.cat([flat.mean(1, keepdim=True), flat.square().mean(1, keepdim=True).sqrt(), some], 1)
