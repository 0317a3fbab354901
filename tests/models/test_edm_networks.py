"""The networks of EDM and EDM2: their outputs, names and shapes, derivatives, and what they refuse."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel

from edm_files import KINDS, NCSN, SKIP, SMALL, description, tensors
from edm_rule import points, summary
from steindiff.divergence import Exact, Hutchinson
from steindiff.errors import InputError
from steindiff.models.networks.checkpoint import Description, build

GOLDEN = json.loads((Path(__file__).parent / "edm_golden.json").read_text())
SHAPE = (3, 8, 8)


def made(kind, dtype=torch.float64, **changes):
    about = description(kind, **changes)
    return build(about, tensors(about), tuple(about["event_shape"]), "cpu", dtype)[0]


def asked(kind, dtype=torch.float64):
    """x, σ and labels; None where the network has no classes."""
    x, sigma, labels = points(SHAPE)
    return x.to(dtype), sigma.to(dtype), labels if KINDS[kind][2] else None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_outputs_are_those_that_were_verified(kind, dtype, limit):
    """With weights by `edm_rule`. The published programs were run on 15 other networks of all these kinds, with random weights.

    These networks gave the same outputs, to 2·10⁻¹⁴ in float64 (relative, in norm). They then made edm_golden.json, in float64.
    `python -m research.compare_edm` repeats that comparison for whoever has the published programs.
    """
    x, sigma, labels = asked(kind, dtype)
    want = torch.tensor(GOLDEN[kind], dtype=torch.float64)
    found = summary(made(kind, dtype)(x, sigma, labels))
    assert float((found - want).abs().div(sigma.clamp(min=1)[:, None]).max()) < limit * float(want.abs().max().clamp(min=1))


@pytest.mark.parametrize("kind", KINDS)
def test_no_label_is_the_row_of_zeros_and_one_sigma_serves_all(kind):
    x, sigma, labels = asked(kind)
    network = made(kind)
    assert torch.equal(network(x, sigma[1]), network(x, sigma[1].expand(4)))
    if labels is not None:
        none = torch.full((4,), KINDS[kind][2])
        assert torch.equal(network(x, sigma), network(x, sigma, none))
        assert not torch.allclose(network(x, sigma), network(x, sigma, labels))


def test_gains_that_were_stored_in_half_precision_are_rounded_as_published():
    """D moves, by no more than half precision does, and full-precision gains are left as they are."""
    about = description("edm2")
    whole = tensors(about)
    half = {name: tensor.half() for name, tensor in whole.items()}
    x, sigma, labels = asked("edm2")
    rounded = build(about, half, SHAPE, "cpu", torch.float64)[0](x, sigma, labels)
    plain = build(about, {k: t.float() for k, t in half.items()}, SHAPE, "cpu", torch.float64)[0](x, sigma, labels)
    assert 1e-6 < float((rounded - plain).abs().max()) < 2e-3


# --- names and shapes ------------------------------------------------------------------------------------------------

MULTS = st.lists(st.integers(1, 3), min_size=1, max_size=3)
COMMON = {
    "model_channels": st.sampled_from([8, 16, 32]), "channel_mult": MULTS, "num_blocks": st.integers(1, 2),
    "attn_resolutions": st.lists(st.sampled_from([8, 4, 2]), max_size=2, unique=True),
}  # fmt: skip
SONG = {
    "encoder_type": st.sampled_from(["standard", "residual", "skip"]), "decoder_type": st.sampled_from(["standard", "skip"]),
    "embedding_type": st.sampled_from(["positional", "fourier"]), "channel_mult_noise": st.integers(1, 2),
    "resample_filter": st.sampled_from([[1, 1], [1, 3, 3, 1]]), "channel_mult_emb": st.integers(1, 4),
}  # fmt: skip
CASES = st.one_of(
    st.tuples(st.just("SongUNet"), st.fixed_dictionaries(COMMON | SONG)),
    st.tuples(st.just("DhariwalUNet"), st.fixed_dictionaries(COMMON)),
    st.tuples(st.just("UNet"), st.fixed_dictionaries(COMMON | {"channels_per_head": st.sampled_from([8, 16])})),
)


def convolution(name, n_in, n_out, k, taps=0):
    found = {f"{name}.weight": (n_out, n_in, k, k), f"{name}.bias": (n_out,)} if k else {}
    return found | ({f"{name}.resample_filter": (1, 1, taps, taps)} if taps else {})


def norm(name, n):
    return {f"{name}.weight": (n,), f"{name}.bias": (n,)}


def edm_block(name, n_in, n, e, taps, attends, adm):
    """Taps of the resampling filter, 0 where the resolution is kept."""
    found = norm(f"{name}.norm0", n_in) | convolution(f"{name}.conv0", n_in, n, 3, taps) | norm(f"{name}.norm1", n)
    found |= convolution(f"{name}.conv1", n, n, 3)
    found |= {f"{name}.affine.weight": (n * (1 + adm), e), f"{name}.affine.bias": (n * (1 + adm),)}
    if n_in != n or taps:
        found |= convolution(f"{name}.skip", n_in, n, 0 if adm and n_in == n else 1, taps)
    if attends and (not adm or n >= 64):
        found |= norm(f"{name}.norm2", n) | convolution(f"{name}.qkv", n, 3 * n, 1) | convolution(f"{name}.proj", n, n, 1)
    return found


def edm2_block(name, n_in, n, e, encodes, attends, head):
    first = n if encodes else n_in
    found = {f"{name}.emb_gain": (), f"{name}.conv_res0.weight": (n, first, 3, 3), f"{name}.conv_res1.weight": (n, n, 3, 3)}
    found |= {f"{name}.emb_linear.weight": (n, e)} | ({f"{name}.conv_skip.weight": (n, n_in, 1, 1)} if n_in != n else {})
    heads = n // head if attends else 0
    return found | ({f"{name}.attn_qkv.weight": (3 * n, n, 1, 1), f"{name}.attn_proj.weight": (n, n, 1, 1)} if heads else {})


def expected(network, k, size):
    """Names and shapes, level by level, written down without the classes; ten classes and RGB."""
    adm, two = network == "DhariwalUNet", network == "UNet"
    base, mults, blocks, taps = k["model_channels"], k["channel_mult"], k["num_blocks"], len(k.get("resample_filter", (1, 1)))
    widths, attends = [base * m for m in mults], lambda r: r in k["attn_resolutions"]
    e = max(widths) if two else base * k.get("channel_mult_emb", 4)

    def block(name, n_in, n, change=False, attends=False):
        if two:
            return edm2_block(name, n_in, n, e, name.startswith("enc"), attends, k["channels_per_head"])
        return edm_block(name, n_in, n, e, taps * change, attends, adm)

    n = widths[0] if adm or two else base
    found = {f"enc.{size}x{size}_conv.weight": (n, 3 + two, 3, 3)} | ({} if two else {f"enc.{size}x{size}_conv.bias": (n,)})
    kept, side = [n], 3
    for level, width in enumerate(widths):
        r = size >> level
        if level:
            found |= block(f"enc.{r}x{r}_down", n, n, True)
            kept.append(n)
            if k.get("encoder_type") == "residual":
                found |= convolution(f"enc.{r}x{r}_aux_residual", side, n, 3, taps)
                side = n
            elif k.get("encoder_type") == "skip":
                found |= convolution(f"enc.{r}x{r}_aux_down", 3, 3, 0, taps) | convolution(f"enc.{r}x{r}_aux_skip", 3, n, 1)
        for i in range(blocks):
            found |= block(f"enc.{r}x{r}_block{i}", n, width, attends=attends(r))
            n = width
            kept.append(n)
    for level in reversed(range(len(widths))):
        r = size >> level
        if level == len(widths) - 1:
            found |= block(f"dec.{r}x{r}_in0", n, n, attends=True) | block(f"dec.{r}x{r}_in1", n, n)
        else:
            found |= block(f"dec.{r}x{r}_up", n, n, True)
        for i in range(blocks + 1):
            last = adm or two or i == blocks
            found |= block(f"dec.{r}x{r}_block{i}", n + kept.pop(), widths[level], attends=attends(r) and last)
            n = widths[level]
        if not adm and not two and (level == 0 or k["decoder_type"] == "skip"):
            up = {f"dec.{r}x{r}_aux_up.resample_filter": (1, 1, taps, taps)} if level < len(widths) - 1 else {}
            found |= up if k["decoder_type"] == "skip" else {}
            found |= norm(f"dec.{r}x{r}_aux_norm", n) | convolution(f"dec.{r}x{r}_aux_conv", n, 3, 3)
    if two:
        head = {
            "out_gain": (),
            "out_conv.weight": (3, n, 3, 3),
            "emb_noise.weight": (e, widths[0]),
            "emb_label.weight": (e, 10),
        }
        return found | head | {f"emb_fourier.{name}": (widths[0],) for name in ("freqs", "phases")}
    noise = base * k.get("channel_mult_noise", 1)
    found |= {"map_layer0.weight": (e, noise), "map_layer0.bias": (e,), "map_layer1.weight": (e, e), "map_layer1.bias": (e,)}
    if adm:
        return found | norm("out_norm", n) | convolution("out_conv", n, 3, 3) | {"map_label.weight": (e, 10)}
    found |= {"map_label.weight": (noise, 10), "map_label.bias": (noise,)}
    return found | ({"map_noise.freqs": (noise // 2,)} if k["embedding_type"] == "fourier" else {})


@given(CASES)
@settings(max_examples=30, deadline=None)
def test_names_and_shapes_follow_from_the_arguments(case):
    network, kwargs = case
    about = description("ddpmpp", precond="Precond" if network == "UNet" else "EDMPrecond", network=network, kwargs=kwargs)
    state = Description.of(about, SHAPE).empty().state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected(network, kwargs, 8)


@given(CASES)
@settings(max_examples=5, deadline=None)
def test_every_network_runs(case):
    network, kwargs = case
    about = description("ddpmpp", precond="Precond" if network == "UNet" else "EDMPrecond", network=network, kwargs=kwargs)
    found = build(about, tensors(about), SHAPE, "cpu", torch.float32)[0]
    x, sigma, labels = points(SHAPE)
    y = found(x.float(), sigma.float(), labels)
    assert y.shape == x.shape
    assert y.isfinite().all()


# --- derivatives and compilation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_agree(kind):
    """Vᵀ J v by reverse mode, by forward mode and by differences, per image."""
    network, (x, sigma, labels) = made(kind), asked(kind)
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    z = x.clone().requires_grad_(True)
    with sdpa_kernel(SDPBackend.MATH):
        vjp = torch.autograd.grad(network(z, sigma, labels), z, v)[0].mul(v).flatten(1).sum(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of its forward rules
            jvp = torch.func.jvp(lambda z: network(z, sigma, labels), (x,), (v,))[1].mul(v).flatten(1).sum(1)
    h = 1e-5 * sigma[:, None, None, None]
    difference = (network(x + h * v, sigma, labels) - network(x - h * v, sigma, labels)) / (2 * h)
    torch.testing.assert_close(vjp, jvp, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(vjp, (difference * v).flatten(1).sum(1), rtol=1e-4, atol=1e-4)


def test_estimators_of_the_divergence_agree_with_the_exact_one():
    about = description("ddpmpp", size=4, kwargs=SMALL | {"channel_mult": [1]})
    network = build(about, tensors(about), (3, 4, 4), "cpu", torch.float64)[0]
    x, sigma = points((3, 4, 4))[0][1:3], torch.tensor(0.7, dtype=torch.float64)

    def step(z):
        return network(z, sigma), None

    (exact, _), (found, _) = Exact()(step, x, 0), Hutchinson(probes=100, method="vjp")(step, x, 0)
    error = found.values.std(0) / 10
    assert ((found.values.mean(0) - exact.values[0]).abs() < 4 * error).all()
    assert (error < 0.2 * exact.values[0].abs()).all()
    forward, reverse = (Hutchinson(probes=3, method=method)(step, x, 0)[0].values for method in ("jvp", "vjp"))
    torch.testing.assert_close(forward, reverse, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["ddpmpp", "edm2"])
def test_the_network_is_one_graph(kind):
    """Compiled without a break, which a wait for the device would be; with eager kernels and one level, to be fast."""
    network = made(kind, torch.float32, kwargs=KINDS[kind][3] | {"channel_mult": [1], "attn_resolutions": []})
    x, sigma, labels = asked(kind, torch.float32)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, sigma, labels), network(x, sigma, labels))


# --- what is refused -------------------------------------------------------------------------------------------------

ABSURD = [
    ({"event_shape": [3, 4096, 4096]}, "img_resolution=4096: need a whole number from 1 to 2,048"),
    ({"event_shape": [3, 9, 9]}, "must be a multiple of 2"),
    ({"event_shape": [3, 8, 16]}, r"need images \(C, R, R\)"),
    ({"event_shape": [1000, 8, 8]}, "in_channels=1000"),
    ({"label_dim": 10**9}, "label_dim=1000000000: need a whole number from 0 to 1,000,000"),
    ({"label_dim": "ten"}, "label_dim='ten'"),
    ({"label_dim": True}, "label_dim=True"),
    ({"kwargs": SMALL | {"model_channels": 10**6}}, "model_channels=1000000"),
    (
        {"kwargs": SMALL | {"model_channels": 4096, "channel_mult": [64, 64]}},
        "parameters: .*: more than 4,000,000,000",
    ),
    ({"kwargs": SMALL | {"num_blocks": 10**9}}, "num_blocks=1000000000"),
    ({"kwargs": SMALL | {"channel_mult": list(range(1, 20))}}, "need 1 to 8 levels"),
    ({"kwargs": SMALL | {"channel_mult": [1] * 10**5}}, "a list of a few whole numbers"),
    ({"kwargs": SMALL | {"channel_mult": 3}}, "a list of a few whole numbers"),
    ({"kwargs": SMALL | {"channel_mult": [1, 0]}}, "each 1 to 64 times"),
    ({"kwargs": SMALL | {"model_channels": 3}}, "needs an even width"),
    (
        {"kwargs": SMALL | {"wings": 2}},
        r"kwargs=\['wings'\]: SongUNet has no such",
    ),
    ({"kwargs": SMALL | {"img_resolution": 16}}, r"kwargs=\['img_resolution'\]: SongUNet has no such arguments here"),
    ({"kwargs": SMALL | {"encoder_type": "odd"}}, "encoder_type = 'odd': this version knows standard, residual, skip"),
    ({"kwargs": SMALL | {"resample_filter": [1]}}, "filter of two or four numbers"),
    ({"kwargs": [1, 2]}, r"kwargs = \[1, 2\]: need an object"),
    ({"network": "os.system"}, "network = 'os.system': this version knows SongUNet"),
    ({"precond": "Other"}, "precond = 'Other'"),
    ({"precond_kwargs": {"beta": 3}}, r"precond_kwargs=\['beta'\]"),
    ({"sigma_data": "half"}, "sigma_data='half': need a number"),
    ({"sigma_data": -1}, "sigma_data=-1.0"),
    ({"sigma_min": 5, "sigma_max": 1}, r"noise_range=\(5.0, 1.0\)"),
]


@pytest.mark.parametrize(("changes", "message"), ABSURD)
def test_absurd_descriptions_are_refused_before_anything_is_made(changes, message):
    about = description("ddpmpp")
    kept = tensors(about)
    about |= changes
    with pytest.raises(InputError, match=message):
        build(about, kept, tuple(about["event_shape"]), "cpu", torch.float32)


def test_images_noise_levels_and_labels_of_another_shape_are_refused():
    network, (x, sigma, labels) = made("ddpmpp"), asked("ddpmpp")
    with pytest.raises(InputError, match=r"takes \(B, 3, 8, 8\)"):
        network(x[:, :2], sigma)
    with pytest.raises(InputError, match=r"takes \(B, 3, 8, 8\)"):
        network(torch.cat([x, x], 3), sigma)
    with pytest.raises(InputError, match="for a batch of 4"):
        network(x, sigma[:2])
    with pytest.raises(InputError, match=r"whole numbers of shape \(4,\)"):
        network(x, sigma, labels[:2])
    with pytest.raises(InputError, match=r"whole numbers of shape \(4,\)"):
        network(x, sigma, labels.double())


@pytest.mark.parametrize("kwargs", [SMALL | NCSN, SMALL | SKIP])
def test_a_tensor_of_another_shape_is_refused(kwargs):
    about = description("ddpmpp")
    with pytest.raises(RuntimeError, match=r"size mismatch|Missing key|Unexpected key"):
        build(about | {"kwargs": kwargs}, tensors(about), SHAPE, "cpu", torch.float32)
