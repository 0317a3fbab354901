"""The program behind the figures of self-consistency: its four tables on few images and steps."""

import pytest

from research import readings


@pytest.fixture(scope="module")
def tables():
    """The rows of each table, by their first column."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        text = list[str]()
        patch.setattr("builtins.print", lambda *parts, **options: text.append("".join(map(str, parts))))
        assert readings.main(["--samples", "16", "--steps", "5", "10"]) == 0
    for block in "".join(text).split("\n\n"):
        if block.startswith("|"):
            rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.strip().splitlines()]
            found.append({row[0]: row[1:] for row in rows if not row[0].startswith("---")})
    return found


def value(text):
    return float(text.split(" ± ")[0])


def test_the_iteration_ends_far_from_the_law(tables):
    first = tables[1]
    assert value(first["exact flow"][0]) == pytest.approx(0.27, abs=0.02)
    assert all(15 < value(cell) < 30 for n in ("5", "10") for cell in first[n])


def test_the_weight_and_the_errors_are_there(tables):
    plain, whole, half, ahead, first, last, ones = tables[2]["10"]
    assert value(plain) < value(half) < value(whole)
    assert value(ahead) == pytest.approx(value(whole), rel=0.1)
    assert float(first) > float(last)
    assert ones == "0 of 9"
    assert len(tables[2]["order of the last two"]) == 7


def test_only_a_proposal_that_reads_the_noise_runs_away(tables):
    rows = {name: value(cells[0]) for name, cells in tables[3].items() if name not in ("proposal", "no self-consistency")}
    assert rows["none"] == rows["clamped(mode=tweedie)"] < value(tables[3]["no self-consistency"][0])
    assert rows["clamped"] > 10
    assert float(tables[3]["clamped"][1]) > 50
