"""The check of the rule under guidance: what a cell says, on eight images."""

from research import guided_rule


def test_a_table_holds_where_the_rule_says_so_and_breaks_far_below(capsys):
    assert guided_rule.main(["--scales", "8", "--more", "-3", "3", "--samples", "8", "--steps", "60"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    few, enough = line.split("|")[2:4]
    error, _, broken = few.split()[0], few.split()[2], few.split()[3]
    assert float(error) > 1
    assert int(broken.strip("()")) > 0
    table, ddim, none = enough.replace("/", " ").split()
    assert float(table) < 0.5 * float(ddim)
    assert none == "(0)"
