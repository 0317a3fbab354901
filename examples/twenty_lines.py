"""The universal solver of 5 evaluations without this package, on a mixture of Gaussians whose denoiser is exact."""

import torch

STEPS = [  # the level that the network is told, the weight of x, the weights of the denoised values, newest first
    (160.0, 0.167334, []),
    (26.6498, 0.328847, [1.22619]),
    (8.74677, 0.344568, [1.22797, -0.743909]),
    (3.00306, 0.363194, [1.20961, -0.990286, 0.462603]),
    (1.07699, 0.276858, [1.27782, -0.892363, 0.478967, -0.149497]),
    (0.275681, 0.0455233, [1.61205, -1.11616, 0.647185, -0.229344, 0.0417602]),
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
