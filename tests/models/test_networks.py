"""The UNet and its preconditioning: shapes, limits, derivatives, configuration, errors."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from steindiff.errors import InputError
from steindiff.models.networks import EDMPrecond, UNet, UNetConfig

# torch loads its forward-mode decompositions with torch.jit.script, which torch itself deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

SMALL = UNetConfig(channels=8, mults=(1, 2), blocks=1, groups=4)


def make(config: UNetConfig = SMALL, dtype: torch.dtype = torch.float64, sigma_data: float = 0.75) -> EDMPrecond:
    """A denoiser with every parameter random: at initialisation the zero branches would hide mistakes."""
    torch.manual_seed(0)
    net = EDMPrecond(UNet(config), sigma_data).eval()
    for p in net.parameters():
        nn.init.normal_(p, std=0.3 if p.ndim == 1 else 0.5 / p[0].numel() ** 0.5)
    return net.to(dtype)


def images(n: int = 3, dtype: torch.dtype = torch.float64, c: int = 1, size: int = 8) -> Tensor:
    return torch.randn(n, c, size, size, dtype=dtype, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """These networks are too small for two threads, which on a busy machine wait for each other most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        UNetConfig(channels=8, mults=(1,), blocks=1, attention=(), groups=2),
        UNetConfig(image_channels=3, channels=8, mults=(1, 2, 3), blocks=2, attention=(0, 2), heads=4, groups=4),
    ],
)
@pytest.mark.parametrize("size", [8, 12])
def test_shapes(config, size):
    x = images(2, torch.float32, config.image_channels, size)
    y = make(config, torch.float32)(x, torch.tensor(0.5))
    assert y.shape == x.shape
    assert y.isfinite().all()


def test_output_is_c_skip_x_at_initialisation():
    net = EDMPrecond(UNet(SMALL), 0.5).double()
    x = images()
    torch.testing.assert_close(net(x, 2.0), x * 0.25 / 4.25)


def test_small_sigma_returns_x():
    net, x = make(), images()
    assert torch.equal(net(x, torch.tensor(0.0)), x)
    assert torch.equal(net(x, torch.zeros(3)), x)
    assert (net(x, 1e-6) - x).abs().max() < 1e-4
    x32 = x.float()
    assert torch.equal(net(x32, 0.0), x32)


@pytest.mark.parametrize("sigma", [1e4, 1e10, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_sigma_is_bounded(sigma, dtype):
    net = make(dtype=dtype)
    x = images(dtype=dtype) * sigma
    y = net(x, torch.tensor(sigma, dtype=dtype))
    f = net.network(x / sigma, torch.full((3,), torch.tensor(sigma).log().item() / 4, dtype=dtype))
    torch.testing.assert_close(y, 0.75 * f, rtol=2e-3, atol=2e-3)


def test_coefficients_with_a_linear_network():
    class Double(nn.Module):
        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            return 2 * x + c[:, None, None, None]

    x, s, sd = images(), torch.tensor([0.1, 1.0, 7.0], dtype=torch.float64), 0.6
    b = s[:, None, None, None]
    r2 = b**2 + sd**2
    expected = sd**2 / r2 * x + b * sd / r2.sqrt() * (2 * x / r2.sqrt() + b.log() / 4)
    torch.testing.assert_close(EDMPrecond(Double(), sd)(x, s), expected)


def test_sigma_per_sample_equals_scalar():
    net, x = make(), images()
    sigmas = torch.tensor([0.01, 0.7, 20.0], dtype=torch.float64)
    each = torch.cat([net(x[i : i + 1], s) for i, s in enumerate(sigmas)])
    torch.testing.assert_close(net(x, sigmas), each)
    torch.testing.assert_close(net(x, sigmas[1]), net(x, sigmas[1].expand(3)))


@pytest.mark.parametrize("sigma", [0.05, 1.0, 30.0])
def test_derivatives_in_x_agree(sigma):
    net, s = make(), torch.tensor(sigma, dtype=torch.float64)
    x, v = images(), torch.randn(3, 1, 8, 8, dtype=torch.float64)
    with forward_ad.dual_level():
        forward = forward_ad.unpack_dual(net(forward_ad.make_dual(x, v), s)).tangent
    assert forward is not None
    _, functional = torch.func.jvp(lambda z: net(z, s), (x,), (v,))
    torch.testing.assert_close(forward, functional)
    h = 1e-5
    central = (net(x + h * v, s) - net(x - h * v, s)) / (2 * h)
    torch.testing.assert_close(forward, central, rtol=1e-6, atol=1e-7)
    u = torch.randn_like(x)
    _, pull = torch.func.vjp(lambda z: net(z, s), x)
    torch.testing.assert_close((u * forward).sum(), (pull(u)[0] * v).sum())


def test_derivative_in_sigma_and_second_order():
    net, x, v = make(), images(), images() * 0.5
    s = torch.tensor(0.8, dtype=torch.float64)
    _, forward = torch.func.jvp(lambda t: net(x, t), (s,), (torch.ones_like(s),))
    h = 1e-5
    torch.testing.assert_close(forward, (net(x, s + h) - net(x, s - h)) / (2 * h), rtol=1e-6, atol=1e-7)

    def tangent(z: Tensor) -> Tensor:
        return torch.func.jvp(lambda y: net(y, s), (z,), (v,))[1]

    _, second = torch.func.jvp(tangent, (x,), (v,))
    torch.testing.assert_close(second, (tangent(x + h * v) - tangent(x - h * v)) / (2 * h), rtol=1e-5, atol=1e-6)


def test_vmap_over_images():
    net, x, s = make(), images(), torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)
    mapped = torch.func.vmap(lambda z, t: net(z[None], t)[0])(x, s)
    torch.testing.assert_close(mapped, net(x, s))


def test_gradients_reach_every_parameter():
    net = make(dataclasses.replace(SMALL, num_classes=3), torch.float32).train()
    net(images(dtype=torch.float32), torch.tensor([0.1, 1.0, 9.0]), torch.tensor([0, 1, 2])).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


def test_dropout_acts_in_training_only():
    net = make(dataclasses.replace(SMALL, dropout=0.5))
    x = images()
    assert torch.equal(net(x, 1.0), net(x, 1.0))
    net.train()
    assert not torch.equal(net(x, 1.0), net(x, 1.0))


def test_network_runs_in_its_own_dtype():
    x = images()
    single = make(dtype=torch.float32)
    assert single(x, 0.5).dtype == torch.float64
    torch.testing.assert_close(single(x, 0.5), make()(x, 0.5), rtol=1e-4, atol=1e-4)
    y = make(dtype=torch.bfloat16)(x.float(), torch.tensor(0.5))
    assert y.dtype == torch.float32
    assert single(x.half(), torch.tensor(80.0)).dtype == torch.float16


def test_float16_weights_round_trip():
    net = make(dtype=torch.float32)
    stored = {k: v.half() for k, v in net.state_dict().items()}
    other = EDMPrecond(UNet(SMALL), 0.75).eval()
    other.load_state_dict({k: v.float() for k, v in stored.items()})
    assert all(torch.equal(other.state_dict()[k].half(), v) for k, v in stored.items())
    x = images(dtype=torch.float32)
    torch.testing.assert_close(other(x, 0.5), net(x, 0.5), rtol=1e-2, atol=1e-2)


def test_config_round_trip():
    config = UNetConfig(image_channels=3, channels=16, mults=(1, 2, 2), attention=(1, 2), dropout=0.1, num_classes=10)
    assert UNetConfig(**dataclasses.asdict(config)) == config
    assert UNetConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config
    assert hash(config) == hash(UNetConfig(**json.loads(json.dumps(dataclasses.asdict(config)))))
    assert config.widths == (16, 32, 32)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"channels": 0}, "channels=0"),
        ({"blocks": 0}, "blocks=0"),
        ({"mults": ()}, "at least one level"),
        ({"mults": (0, 1)}, "at least one level"),
        ({"attention": (2,)}, "attention level 2 must be in 0..1"),
        ({"attention": (-1,)}, "attention level -1"),
        ({"heads": 3}, "heads = 3 must divide the width 16 of level 1"),
        ({"attention": (0,), "heads": 16}, "heads = 16 must divide the width 8 of level 0"),
        ({"groups": 3}, "groups = 3 must divide the width 8 of level 0"),
        ({"dropout": 1.0}, "dropout"),
        ({"num_classes": -1}, "num_classes=-1"),
    ],
)
def test_bad_configurations(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(SMALL, **change)


@pytest.mark.parametrize(
    "x, sigma, message",
    [
        (torch.zeros(1, 8, 8), torch.tensor(1.0), r"x has shape \(1, 8, 8\)"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.int64), torch.tensor(1.0), "torch.int64"),
        (torch.zeros(2, 1, 8, 8), torch.ones(3), r"sigma has shape \(3,\) for a batch of 2"),
        (torch.zeros(2, 1, 8, 8), torch.ones(2, 1), r"sigma has shape \(2, 1\)"),
        (torch.zeros(2, 3, 8, 8), torch.tensor(1.0), r"takes \(B, 1, H, W\)"),
        (torch.zeros(2, 1, 8, 7), torch.tensor(1.0), "multiples of 2"),
    ],
)
def test_bad_inputs(x, sigma, message):
    with pytest.raises(InputError, match=message):
        make(dtype=torch.float32)(x, sigma)


@pytest.mark.parametrize("sigma_data", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_sigma_data(sigma_data):
    with pytest.raises(InputError, match="sigma_data"):
        EDMPrecond(nn.Identity(), sigma_data)


def test_bad_c_noise():
    with pytest.raises(InputError, match="c_noise"):
        make(dtype=torch.float32).network(torch.zeros(2, 1, 8, 8), torch.zeros(3))


def test_class_labels():
    net, x = make(dataclasses.replace(SMALL, num_classes=4)), images()
    a = net(x, 1.0, torch.tensor([0, 1, 2]))
    assert not torch.allclose(a, net(x, 1.0, torch.tensor([0, 1, 3]))[[0, 1, 2]])
    torch.testing.assert_close(a[:2], net(x[:2], 1.0, torch.tensor([0, 1])))
    assert not torch.allclose(a, net(x, 1.0))


def test_the_null_class_is_one_more_label_and_stands_for_no_labels():
    config = dataclasses.replace(SMALL, num_classes=4, null_class=True)
    net, x = make(config), images()
    assert net.network.embedding.label.num_embeddings == 5
    null = net(x, 1.0, torch.full((3,), 4))
    assert torch.equal(net(x, 1.0), null)
    assert not torch.allclose(null, net(x, 1.0, torch.tensor([0, 1, 2])))
    mapped = torch.func.vmap(lambda z: net(z[None], 1.0)[0])(x)
    torch.testing.assert_close(mapped, null)
    with pytest.raises(InputError, match=r"0\.\.5: they must be in 0\.\.4"):
        net(x, 1.0, torch.tensor([0, 4, 5]))
    with pytest.raises(InputError, match="null_class = True with num_classes = 0"):
        UNetConfig(null_class=True)


@pytest.mark.parametrize(
    "classes, labels, message",
    [
        (0, torch.tensor([0, 0]), "num_classes = 0"),
        (4, torch.tensor([0]), r"shape \(1,\)"),
        (4, torch.tensor([0.0, 1.0]), "float32"),
        (4, torch.tensor([0, 4]), r"0\.\.4: they must be in 0\.\.3"),
        (4, torch.tensor([-1, 0]), r"-1\.\.0"),
    ],
)
def test_bad_labels(classes, labels, message):
    net = make(dataclasses.replace(SMALL, num_classes=classes), torch.float32)
    with pytest.raises(InputError, match=message):
        net(torch.zeros(2, 1, 8, 8), 1.0, labels)
