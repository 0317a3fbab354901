"""The table of misread networks: the right adapter is sound, and the wrong ones are not."""

from research import misread


def test_only_the_right_adapter_is_sound(capsys):
    assert misread.main(["--images", "4"]) == 0
    *_, right, schedule, velocity, data = capsys.readouterr().out.splitlines()
    assert right.endswith("| sound |")
    assert [line.endswith("| not consistent |") for line in (schedule, velocity, data)] == [True] * 3
