"""Which network a denoiser is: the same through every wrapper, another after any change."""

from functools import partial

import torch
from torch import nn

from problems import MODEL, gaussian
from steindiff.denoisers import Counter, FromEps, Guided, Labelled, TimeShifted, declare
from steindiff.identity import MOST, _some, network_of
from steindiff.schedules import VE, VPLinear


class Network(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(3, 3)

    def forward(self, x, sigma, labels=None):
        return self.linear(x)


NAMED = Network()


def by_a_global(x, sigma):
    return NAMED(x, sigma)


def test_every_wrapper_has_the_network_inside():
    network = Network()
    own, context = network_of(network), torch.randn(4)
    assert own is not None
    assert len(own) == 16
    wrapped = [
        partial(network, labels=None), lambda x, s: network(x, s) + 0 * context[0], network.forward,
        FromEps(lambda x, t: network(x, t), VPLinear()), FromEps(partial(network), VE(), torch.float16),
        Labelled(network, torch.tensor(3)), Guided(Labelled(network, torch.tensor([1, 2])), network, 7.5),
        Counter(TimeShifted(network, 0.1)), declare(lambda x, s: network(x, s), schedule=VE()), by_a_global,
    ]  # fmt: skip
    assert {network_of(denoiser) for denoiser in wrapped} == {own}


def test_a_change_of_any_weight_is_seen_at_once():
    network = Network()
    before = network_of(network)
    with torch.no_grad():
        network.linear.weight[1, 2] += 1e-3
    changed = network_of(network)
    assert changed != before
    assert network_of(Network(1)) not in (before, changed)
    with torch.no_grad():
        network.linear.weight[1, 2] = Network().linear.weight[1, 2]
    assert network_of(network) == before


def test_a_wider_copy_is_the_same_network_and_a_narrower_one_is_not():
    network = Network()
    own = network_of(network)
    assert network_of(Network().double()) == own
    assert network_of(Network().to(torch.bfloat16)) != own


class Layers(nn.Module):
    """The layers given by name, registered in that order."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x, sigma):
        return x


def test_names_count_and_their_order_and_the_compiler_do_not():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    own = network_of(Layers(a=first, b=second))
    assert network_of(Layers(b=second, a=first)) == own
    assert network_of(Layers(_orig_mod=Layers(a=first, b=second))) == own  # as torch.compile wraps a module
    assert network_of(Layers(a=first, c=second)) != own
    assert network_of(Layers(a=second, b=first)) != own


def test_a_large_tensor_gives_no_more_values_than_it_should():
    for count in (MOST - 1, MOST, MOST + 1, 3 * MOST // 2, 10 * MOST - 1):
        taken = len(_some(torch.zeros(count))) // 4  # float32
        assert min(count, MOST) / 2 <= taken <= MOST


def test_two_networks_are_told_from_one():
    one, other = Network(), Network(1)
    both = network_of(Guided(one, other, 2.0))
    assert both not in (network_of(one), network_of(other), network_of(Guided(other, one, 2.0)))
    assert network_of(Guided(one, one, 2.0)) == network_of(Guided(one, one, 5.0)) == network_of(one)


def test_an_exact_law_has_a_digest_of_its_numbers():
    assert network_of(MODEL) == network_of(MODEL.to(torch.float32)) == network_of(lambda x, s: MODEL(x, s))
    moved = type(MODEL)(MODEL.weights, MODEL.means + 0.1, MODEL.covariances)
    assert network_of(moved) != network_of(MODEL)


def test_a_formula_has_none():
    assert network_of(gaussian) is None
    assert network_of(lambda x, sigma: x) is None


def test_weights_that_are_elsewhere_count_by_their_shapes():
    with torch.device("meta"):
        away, wider = nn.Linear(3, 3), nn.Linear(3, 4)
    assert network_of(away) == network_of(nn.Linear(3, 3, device="meta")) != network_of(wider)


def test_what_merely_keeps_a_state_is_no_network():
    network = Network()
    own = network_of(network)

    class Holder:
        def __init__(self):
            self.network, self.optimizer = network, torch.optim.SGD(network.parameters(), lr=0.1)
            self.anything = {"a": object()}

        def __call__(self, x, sigma):
            return self.network(x, sigma)

    assert network_of(Holder()) == network_of(Holder().__call__) == own


def test_inference_tensors_are_no_obstacle():
    with torch.inference_mode():
        network = Network()
    assert network_of(network) == network_of(Network())


def test_numbers_that_cannot_be_read_are_left_out():
    """Some programs keep weights in tensor classes without storage; names and shapes still count."""

    def net(size, value):
        made = nn.Linear(2, 2)
        nn.init.constant_(made.weight, value)
        nn.init.zeros_(made.bias)
        made.register_buffer("packed", torch.eye(size).to_sparse())
        return made

    assert network_of(net(3, 1.0)) == network_of(net(3, 1.0))
    assert len({network_of(net(*given)) for given in ((3, 1.0), (3, 2.0), (4, 1.0))}) == 3
