"""The benchmarks: their counts are exact where they count, and every command runs at its smallest setting."""

import pytest
import torch
from benchmarks import derivatives, distances, growth, mixtures, start
from benchmarks.memory import peak
from benchmarks.timing import Quartiles, ratio, turns

from steindiff.io.files import read_json

X = torch.zeros(1000)


def held():
    """Ten states at once."""
    return [X + i for i in range(10)]


def dropped():
    """A state after another: two at a time, the old one and the new one."""
    x = X
    for i in range(10):
        x = x + i
    return x


def viewed():
    """A view holds its storage, and another view adds nothing."""
    view = (X + 1)[:3]
    return view, view[:1], X + 2


@pytest.mark.parametrize(("run", "states"), [(held, 10), (dropped, 2), (viewed, 2)])
def test_the_peak_is_the_most_that_is_held_at_a_time(run, states):
    assert peak(run) == states * X.nbytes


def test_what_stays_for_a_derivative_is_counted():
    """Every tanh keeps its value for the way back."""

    def through(layers):
        x = X.clone().requires_grad_()
        y = x
        for _ in range(layers):
            y = y.tanh()
        return torch.autograd.grad(y.sum(), x)

    assert peak(lambda: through(12)) - peak(lambda: through(2)) == 10 * X.nbytes


def test_ratios_are_of_neighbouring_turns():
    times = {"ours": [1.0, 4.0, 9.0], "theirs": [1.0, 2.0, 3.0]}
    assert ratio(times, "ours", "theirs") == Quartiles(1.0, 2.0, 3.0)
    calls = []
    taken = turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert "".join(calls) == "ababab"
    assert [len(values) for values in taken.values()] == [2, 2]


def test_a_short_run_is_repeated_within_its_turn():
    calls = []
    (taken,) = turns({"a": lambda: calls.append(sum(range(1000)))}, 1, least=0.01).values()
    assert len(calls) > 50
    assert 0 < taken[0] < 1e-3


def test_slopes_of_powers():
    sizes = (1, 2, 4, 8, 16)
    assert growth.slope(sizes, tuple(3.0 * n**2 for n in sizes)) == pytest.approx(2.0)
    assert growth.slope(sizes, (100.0, 50.0, 7.0, 7.0, 7.0)) == pytest.approx(0.0, abs=1e-12)  # the larger half only


@pytest.mark.parametrize("run", list(growth.RUNS))
def test_memory_does_not_grow_with_the_steps(run):
    """Neither the trace nor a graph holds a state of every step."""
    few, many = (peak(growth.one_run(run, {**growth.START, "batch": 2, "steps": n})) for n in (12, 60))
    state = 2 * growth.START["dimension"] * 4
    assert many - few < state


def test_memory_grows_with_the_batch():
    one, two = (peak(growth.one_run("literal", {**growth.START, "batch": n})) for n in (8, 16))
    assert two == pytest.approx(2 * one, rel=0.05)


def smallest(folder, module, *more):
    """A command at its smallest setting, and the results that it keeps."""
    threads = torch.get_num_threads()
    try:
        assert module.main(["--outdir", str(folder), "--rounds", "1", *more]) == 0
    finally:
        torch.set_num_threads(threads)
    assert (folder / "report.md").read_text(encoding="utf-8").startswith("# ")
    return read_json(folder / "results.json")["found"]


def test_derivatives_command(tmp_path):
    (row,) = smallest(tmp_path, derivatives, "--models", "digits", "--batch", "8")
    assert 0 < row["whole"][1] < 100
    assert 0 < row["part"][1] < 100


def test_mixtures_command_counts_the_products(tmp_path):
    """K = 10 Gaussians in 64 dimensions: to the axes and back, 2 · 2 K d² a point, and a little for the means."""
    (row,) = smallest(tmp_path, mixtures, "--laws", "digits_mixture", "--batch", "16")
    assert row["flops"] / (16 * 4 * 10 * 64**2) == pytest.approx(1.0, abs=0.1)
    assert 0 < row["share"][1] < 1.5


def test_distances_command(tmp_path):
    """A distance takes some decompositions with all that is around them, and not the 41 of a jackknife that solves anew."""
    found = smallest(tmp_path, distances, "--dimensions", "300")
    assert [(row["distance"], row["dimension"]) for row in found] == [("two sets", 300), ("a reference", 300)]
    assert all(0 < row["decompositions"][1] < 41 for row in found)


def test_growth_command_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "SIZES", {axis: sizes[:3] for axis, sizes in growth.SIZES.items()})
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    page.write_text("# Page\n\n<!-- growth -->\n<!-- end of growth -->\n\nThe end.\n", encoding="utf-8")
    found = smallest(tmp_path / "out", growth, "--runs", "tweedie", "--page", str(page))
    assert [line["axis"] for line in found] == ["batch", "dimension", "steps"]
    drawn = (tmp_path / "out" / "growth.png").read_bytes()
    assert len(drawn) > 10_000
    assert (page.parent / "images" / "growth.png").read_bytes() == drawn
    said = page.read_text(encoding="utf-8")
    assert "| tweedie | steps |" in said
    assert "![growth](images/growth.png)" in said
    assert said.endswith("The end.\n")


def test_the_start_counts_a_process():
    assert start.processor_seconds(("-c", "sum(range(10**6))")) > 0
