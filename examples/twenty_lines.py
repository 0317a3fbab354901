"""The universal solver of 5 evaluations without this package, on a mixture of Gaussians whose denoiser is exact."""

import torch

STEPS = [  # the level that the network is told, the weight of x, the weights of the denoised values, newest first
    (160.0, 0.200079, []),
    (32.0, 0.335036, [1.31924]),
    (10.7227, 0.275888, [1.23555, -0.671398]),
    (2.933, 0.219411, [1.49372, -1.0744, 0.411729]),
    (0.596771, 0.201665, [1.32992, -0.941897, 0.513542, -0.102846]),
    (0.0757214, -0.0447486, [1.21922, -0.251092, 0.113195, -0.0394729]),
]


def sample(denoiser, noise, sigma_data):
    """Only a step with weights evaluates the denoiser."""
    x, values = STEPS[0][0] * sigma_data * noise, []
    for told, a, weights in STEPS:
        values = [denoiser(x, told * sigma_data), *values] if weights else values
        x = a * x + sum(w * v for w, v in zip(weights, values, strict=False))
    return x


MODES = torch.tensor([[0.6, 0.3], [-0.6, 0.3], [0.0, -0.6]])


def denoiser(x, sigma, variance=0.01):
    """E[x* | x* + σ ε = x] where x* is within a standard deviation of 0.1 around one of the modes."""
    near = (-(x[:, None] - MODES).square().sum(-1) / (variance + sigma**2) / 2).softmax(1)
    return (variance * x + sigma**2 * near @ MODES) / (variance + sigma**2)


print(sample(denoiser, torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)), 0.47).std(0), "the law's: 0.50, 0.44")
