"""The comparison with peers: rows are made once, scored on other noise, and shown together."""

import json

import pytest

from research import calibrated_peers


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peers")
    wanted = ["--bed", "wine_mixture", "--nfe", "2", "--trajectories", "16", "--images", "32", "--out", str(folder)]
    assert calibrated_peers.main([*wanted, "--peers", "calibrated", "best_plain", "best_plain_2n", "olss"]) == 0
    return folder, wanted


def test_ours_is_nearer_than_a_peer_and_the_best_plain_solver(made):
    rows = {row["peer"]: row for row in calibrated_peers.rows(made[0])}
    ours, plain, olss = (rows[name]["endpoint"][0] for name in ("calibrated", "best_plain", "olss"))
    assert ours < olss < plain
    assert [rows[name]["evaluations"] for name in ("calibrated", "best_plain", "best_plain_2n", "olss")] == [2, 2, 4, 2]
    assert rows["calibrated"]["images"] > rows["olss"]["images"] > 0


def test_a_row_that_is_there_is_not_made_again_and_the_page_has_all(made, capsys):
    folder, wanted = made
    path = folder / "wine_mixture" / "2" / "olss.json"
    changed = {**json.loads(path.read_text()), "endpoint": [0.5, 0.01]}
    path.write_text(json.dumps(changed))
    page, into = folder / "page.md", folder / "into.md"
    page.write_text("# Peers\n<!-- every run -->\n<!-- end of every run -->\n")
    into.write_text("Before.\n<!-- peers -->\n<!-- end of peers -->\nAfter.\n")
    assert calibrated_peers.main([*wanted, "--peers", "olss", "ddim", "--page", str(page), "--into", str(into)]) == 0
    text = page.read_text()
    assert "| 2 | olss | 0.500 ± 0.010 |" in text
    assert "| 2 | ddim |" in text
    assert "| 2 | best_plain: " in text
    ours = json.loads((folder / "wine_mixture" / "2" / "calibrated.json").read_text())["endpoint"][0]
    assert f"| olss | {0.5 / ours:.3g}× ▲ |" in into.read_text()
    assert into.read_text().endswith("<!-- end of peers -->\nAfter.\n")


def test_another_name_is_refused(made, capsys):
    assert calibrated_peers.main([*made[1], "--peers", "olss_2"]) == 2
    assert "olss_2" in capsys.readouterr().err
