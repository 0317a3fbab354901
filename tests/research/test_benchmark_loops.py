"""What a benchmark compares computes the same: a loop by hand ends where ours ends."""

import pytest
import torch
from benchmarks import loop as benchmark
from benchmarks.loop import Half, Row, cases

from steindiff import grids, initial_noise, sample
from steindiff.denoisers import Counter
from steindiff.io.files import read_json

EVENT = (3, 8, 8)
CASES = cases(EVENT)


def bent(x, sigma):
    """Not linear, so that every evaluation and every weight matters."""
    return torch.tanh(x / (1 + torch.as_tensor(sigma).to(x))) * 0.5


@pytest.mark.parametrize("name", CASES)
def test_a_loop_by_hand_ends_where_ours_does_for_as_many_evaluations(name):
    solver, loop = CASES[name]
    sigmas = grids.karras(8) if solver.own_grid is None else solver.own_grid
    x = initial_noise(range(3), EVENT, float(sigmas[0]), dtype=torch.float64)
    by_hand, ours = Counter(bent), Counter(bent)
    with torch.no_grad():
        expected, found = loop(by_hand, x, sigmas), sample(solver, ours, x, sigmas).x
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert by_hand.calls == ours.calls


def test_the_network_of_the_benchmark_counts_its_calls():
    half = Half()
    sample("heun", half, torch.full((1, 2), 80.0), nfe=7)
    assert half.calls == 7


def test_a_ratio_is_to_the_faster_of_the_two_turn_by_turn():
    row = Row.of("heun", "1 kB", {"ours": [2.0, 3.0, 5.0], "hand": [9.0, 9.0, 9.0], "theirs": [4.0, 4.0, 4.0]})
    assert row.over_faster.median == 0.75
    assert (row.ours.median, row.by_hand.median, row.theirs.median) == (3.0, 9.0, 4.0)
    assert Row.of("free", "1 kB", {"ours": [2.0, 3.0], "hand": [2.0, 2.0]}).theirs is None


def test_the_command_puts_the_turns_of_its_processes_together(tmp_path):
    few = ["--sizes", "1 kB", "--rounds", "3", "--steps", "4", "--processes", "2", "--outdir", str(tmp_path)]
    assert benchmark.main([*few, "--solvers", "ddim", "dpm_v3"]) == 0
    rows = read_json(tmp_path / "results.json")["found"]["rows"]
    assert [(row["solver"], row["size"]) for row in rows] == [("ddim", "1 kB"), ("dpm_v3", "1 kB")]
    assert all(0 < row["over_faster"][0] <= row["over_faster"][1] <= row["over_faster"][2] < 100 for row in rows)
    assert rows[0]["theirs"] is not None
    assert rows[1]["theirs"] is None
    assert "2 processes of 3 rounds" in (tmp_path / "report.md").read_text(encoding="utf-8")
