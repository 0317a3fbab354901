"""The energy rule's study: the page's columns by default, `track` beside them on request, neither changing the other."""

import pytest
import torch

from research import energy_rule

SMALL = ["--samples", "16", "--nfe", "6", "--moment", "given"]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.setattr(energy_rule, "SOLVERS", ("dpmpp_2m", "heun"))
    return energy_rule


def _printed(script, capsys, argv):
    """Columns by their head, the counts by their variant, and the lines of η."""
    script.main(argv)
    table, _, etas = capsys.readouterr().out.partition("\nη by")
    lines = table.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    counts = dict(line[2:].split(": ") for line in lines if line.startswith("- "))
    return (
        dict(zip(rows[0], zip(*rows[1:], strict=True), strict=True)),
        counts,
        [line for line in etas.splitlines() if line.startswith("- ")],
    )


def test_the_default_is_the_four_columns_of_the_page(script):
    args = script.parser().parse_args([])
    rules = script.variants(args, torch.ones(8, 1, 8, 8))
    assert list(rules) == ["one η, M given", "one η, M own", "bands, M given", "bands, M own"]
    assert {rule.deficit for rule in rules.values()} == {"local"}
    assert [rule.moment is None for rule in rules.values()] == [False, True, False, True]


def test_track_beside_local_leaves_local_as_it_was(script, capsys):
    alone, _, etas = _printed(script, capsys, SMALL)
    assert not etas
    both, counts, etas = _printed(script, capsys, [*SMALL, "--eta", "--deficit", "track", "local"])
    heads = ["one η, M given", "one η, track, M given", "bands, M given", "bands, track, M given"]
    assert list(both) == ["solver", "NFE", "plain", *heads]
    assert {head: both[head] for head in alone} == alone
    assert both["bands, track, M given"] != both["bands, M given"]
    assert list(counts) == [*heads[:2], f"{heads[1]}, against local", *heads[2:], f"{heads[3]}, against local"]
    for line in counts.values():
        assert sum(int(part.split()[0]) for part in line.split(", ")) == 2  # cells
    assert [line.split(":")[0] for line in etas] == [f"- {s}, NFE 6, {h}" for s in ("dpmpp_2m", "heun") for h in heads]
    assert "NFE 6, one η, M given: 80 → 1.00 zero_residual, 30.2 → " in etas[0]
