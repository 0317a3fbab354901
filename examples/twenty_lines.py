"""The universal solver of 5 evaluations without this package, on a mixture of Gaussians whose denoiser is exact."""

import torch

STEPS = [  # the level that the network is told, the weight of x, the weights of the denoised values, newest first
    (160.0, 0.156218, []),
    (26.4118, 0.401518, [1.44245]),
    (9.8102, 0.360542, [1.04848, -0.859233]),
    (3.48336, 0.30319, [1.16384, -0.677479, 0.398094]),
    (1.0567, 0.250147, [1.23737, -0.718928, 0.317321, -0.156542]),
    (0.246675, 0.156219, [1.37847, -0.81474, 0.373517, -0.126694, 0.0599399]),
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
