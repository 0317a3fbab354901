"""The check of the rule under guidance: what a cell says, on eight images."""

import pytest

from research import guided_rule


@pytest.mark.parametrize("top", ["0", "14.6"])
def test_what_auto_takes_holds_and_is_nearer_than_the_published_solvers(capsys, top):
    assert guided_rule.main(["--scales", "8", "--nfe", "6", "--samples", "8", "--steps", "60", "--top", top]) == 0
    own, best, none = capsys.readouterr().out.splitlines()[-1].split("|")[2].replace("/", " ").split()
    assert float(own) < 0.8 * float(best)
    assert none == "(0)"


def test_at_scale_one_the_testbed_itself_is_run(capsys):
    options = ["--what", "wine_mixture", "--scales", "1", "--nfe", "12", "--samples", "8", "--steps", "60", "--top", "14.6"]
    assert guided_rule.main(options) == 0
    own, best, none = capsys.readouterr().out.splitlines()[-1].split("|")[2].replace("/", " ").split()
    assert 0 < float(own) < float(best)
    assert none == "(0)"
