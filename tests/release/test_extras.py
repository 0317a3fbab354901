"""What the package does without the libraries of its extras: the core runs, and the rest names the extra that is missing."""

import json
import subprocess
import sys

import pytest

LIBRARIES = ("PIL", "accelerate", "diffusers", "markdown_it", "matplotlib", "rich", "sklearn", "tqdm", "transformers", "typer")
"""What only extras bring."""

HIDE = """
import importlib.abc, json, runpy, sys
import numpy, safetensors.torch, torch  # torch looks for tqdm

asked = []

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in libraries:
            asked.append(name)
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

cases, libraries = json.loads(sys.argv[1])
sys.meta_path.insert(0, Hidden())
"""

CORE = """
import steindiff as sd
import steindiff.integrations.diffusers, steindiff.integrations.kdiffusion, steindiff.metrics
model = sd.models.load("digits")
x = sd.initial_noise(range(8), model.event_shape)
said = {"asked": ", ".join(asked), "core": str(list(sd.sample("auto", model.denoiser, x, nfe=3).x.shape))}
"""

SAY = """
for name, code in cases.items():
    try:
        exec(code, {"model": model, "x": x})
    except ImportError as error:
        said[name] = f"{type(error).__name__}: {error}"
    except SystemExit as stop:
        said[name] = str(stop.code)
print(json.dumps(said))
"""

CASES = {
    "command line": ("runpy.run_module('steindiff', run_name='__main__')", "the command line needs typer", "cli"),
    "progress": (
        "from steindiff import sample; sample('ddim', model.denoiser, x, nfe=1, progress=True)",
        "progress=True needs tqdm",
        "cli",
    ),
    "study": ("import steindiff.study.run", "a study needs tqdm", "cli"),
    "report": ("import steindiff.report.study", "a report needs markdown_it", "cli"),
    "diagnosis": ("import steindiff.diagnostics.study", "a diagnosis needs tqdm", "cli"),
    "training": ("import steindiff.train.loop", "training needs accelerate", "cli,train"),
    "digits": ("from steindiff.models import datasets; datasets.load_digits()", "the set of digits needs sklearn", "metrics"),
    "scheduler": (
        "from steindiff.integrations.diffusers import SteindiffScheduler",
        "SteindiffScheduler needs diffusers",
        "diffusers",
    ),
    "png": (
        "from steindiff.io import images; images.save_png('x.png', images.to_uint8(x)[0])",
        "writing images needs PIL",
        "cli",
    ),
}
"""What a program does, and what it is told: the message and the extra."""


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> dict[str, str]:
    """What every case says in a process that finds none of these libraries."""
    program = tmp_path_factory.mktemp("extras") / "program.py"
    program.write_text(HIDE + CORE + SAY)
    cases = {name: "import runpy\n" + code for name, (code, *_) in CASES.items()}
    command = [sys.executable, "-W", "ignore", str(program), json.dumps([cases, LIBRARIES])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_core_runs_without_any_extra(said):
    assert said["core"] == "[8, 1, 8, 8]"


@pytest.mark.parametrize("name", CASES)
def test_a_missing_library_is_one_line_that_names_its_extra(name, said):
    _, message, extra = CASES[name]
    line = f"{message}: pip install 'steindiff[{extra}]'"
    assert said[name] == (f"error: {line}" if name == "command line" else f"MissingLibraryError: {line}")


def test_the_package_asks_for_no_library_of_an_extra(said):
    assert said["asked"] == ""
