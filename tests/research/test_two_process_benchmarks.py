"""The benchmarks of two processes and of calibrations: each runs at its smallest setting, and memory does not return."""

import pytest
import torch
from benchmarks import calibration, parallel
from benchmarks.memory import peak

from steindiff.calibration import calibrations
from steindiff.errors import InputError
from steindiff.io.clock import Clock
from steindiff.io.files import read_json
from steindiff.noise import initial_noise

SMALL = "sample --model digits --nfe 2 --seeds 0-3 --batch 2 --no-png --outdir {folder}"


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def page(folder, name):
    path = folder / "page.md"
    path.write_text(f"# Page\n\n<!-- {name} -->\n<!-- end of {name} -->\n\nEnd.\n", encoding="utf-8")
    return path


def test_parallel_command_measures_one_process_and_two(tmp_path, monkeypatch):
    monkeypatch.setitem(parallel.COMMANDS, "sample", SMALL)
    shown = page(tmp_path, "two-processes")
    arguments = ["--commands", "sample", "--rounds", "1", "--outdir", str(tmp_path / "out"), "--page", str(shown)]
    assert parallel.main(arguments) == 0
    (row,) = read_json(tmp_path / "out" / "results.json")["found"]
    ((one, two, apart, start),) = row["turns"]
    assert [len(spent["processor"]) for spent in (one, two, apart, start)] == [1, 2, 2, 1]
    assert min(*one["processor"], *two["processor"], *apart["processor"], *start["processor"]) > 0.5, "each imports torch"
    text = shown.read_text(encoding="utf-8")
    assert "steindiff sample --model digits --nfe 2" in text
    assert "| sample | " in text
    assert text.endswith("End.\n")


def test_a_command_that_fails_says_so():
    with pytest.raises(InputError, match="unknown model 'nowhere'"):
        parallel.launched("calibrate --model nowhere --out {folder}/t.safetensors", 1)


def test_ratios_are_of_the_clock_and_of_the_busier_process():
    one, two, start = parallel.Spent(10.0, (9.0,)), parallel.Spent(6.0, (4.5, 3.0)), parallel.Spent(2.0, (1.5,))
    row = parallel.Row("command", ((one, two, parallel.Spent(12.0, (9.5, 10.0)), start),), (0.0,))
    assert (row.wall.median, row.processor.median, row.limit.median) == (pytest.approx(10 / 6), 2.0, 1.8)
    assert row.beyond.median == 2.5


def test_calibration_command(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "SIZES", {"trajectories": (8, 10, 12)})
    monkeypatch.setattr(calibration, "START", {"trajectories": 8, "dimension": 48})
    shown = page(tmp_path, "calibration")
    arguments = ["--models", "digits", "--nfe", "1", "--trajectories", "16", "--outdir", str(tmp_path / "out")]
    assert calibration.main([*arguments, "--page", str(shown)]) == 0
    found = read_json(tmp_path / "out" / "results.json")["found"]
    (spent,) = found["models"]
    assert list(spent["seconds"]) == ["fine runs", "start", "refinement", "gate"]
    assert 0 < sum(spent["network"].values()) < sum(spent["seconds"].values())
    assert [axis["axis"] for axis in found["growth"]] == ["trajectories"]
    assert "| digits |" in shown.read_text(encoding="utf-8")


@pytest.mark.parametrize("trajectories", [16, 32])
def test_a_calibration_holds_the_fine_runs_twice_at_most(trajectories):
    """States and slopes of 65 levels, whole and divided, and what a step has beside them."""
    dimension = 3072
    noise = initial_noise(range(trajectories), (dimension,))
    states = peak(lambda: calibrations(calibration.cheap(dimension), noise, [1])) / noise.nbytes
    assert 4 * 65 <= states < 4 * 65 + 20


def test_a_clock_says_which_part_runs():
    now = iter(range(100)).__next__
    clock = Clock(now=lambda: float(now()))
    with clock("a"):
        assert clock.part == "a"
    with pytest.raises(ZeroDivisionError), clock("b"):
        now(), 1 / 0  # one second more
    with clock("a"):
        pass
    assert clock.seconds == {"a": 2.0, "b": 2.0}
    assert clock.part == ""
