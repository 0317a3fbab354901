"""The wheel and the sdist: what is in them, how large they are, and what they say about themselves."""

import re
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

import pytest

import steindiff

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "steindiff"
SUFFIXES = {".css", ".json", ".md", ".py", ".safetensors", ".typed"}
"""Code, cards, networks, tables, and how a report looks: no images, no data, no pickles."""
WEIGHTS = {"cifar10.safetensors", "cifar10_mixture.safetensors", "digits.safetensors", "digits_classes.safetensors"}
FOLDERS = {"benchmarks", "docs", "faults", "examples", "recipes", "research", "src", "tests"}
FILES = {
    ".gitignore", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "PKG-INFO", "README.md",
    "SECURITY.md", "constraints.txt", "mkdocs.yml", "pyproject.toml",
}  # fmt: skip
MOST_WHEEL, MOST_SDIST = 18_000_000, 22_000_000
"""Bytes. Four networks and the features of a classifier are 16 MB of either; say so in docs/models.md before raising these."""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """The wheel, built from the sdist, and the sdist; built with what is installed, and without a network."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def _inside(wheel: Path) -> dict[str, int]:
    with zipfile.ZipFile(wheel) as archive:
        return {info.filename: info.file_size for info in archive.infolist()}


def _metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return BytesParser().parsebytes(archive.read(f"steindiff-{steindiff.__version__}.dist-info/METADATA"))


def test_the_wheel_is_the_package_and_nothing_else(built):
    inside = {name for name in _inside(built[0]) if ".dist-info/" not in name}
    ours = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert inside == {f"steindiff/{path.relative_to(PACKAGE).as_posix()}" for path in ours}
    assert {Path(name).suffix or ".typed" for name in inside} <= SUFFIXES
    assert {"steindiff/py.typed", "steindiff/report/page.css", "steindiff/report/published.json"} <= inside
    assert {Path(name).name for name in inside if "/models/weights/" in name and name.endswith(".safetensors")} == WEIGHTS


def test_the_sdist_has_what_builds_and_tests_the_package(built):
    with tarfile.open(built[1]) as archive:
        names = [Path(name).relative_to(f"steindiff-{steindiff.__version__}") for name in archive.getnames()]
    assert {path.parts[0] for path in names if len(path.parts) > 1} == FOLDERS
    assert {path.name for path in names if len(path.parts) == 1} == FILES
    assert not [path for path in names if "__pycache__" in path.parts or path.suffix in {".npz", ".pkl", ".pt", ".tmp", ".zip"}]


def test_the_packages_are_small(built):
    wheel, sdist = (path.stat().st_size for path in built)
    assert wheel < MOST_WHEEL
    assert sdist < MOST_SDIST


def test_the_metadata_are_those_of_the_project(built):
    found = _metadata(built[0])
    assert found["Name"] == "steindiff"
    assert found["Version"] == steindiff.__version__
    assert found["Requires-Python"] == ">=3.10"
    assert found["License-Expression"] == "Apache-2.0"
    assert found.get_all("License-File") == ["LICENSE"]
    assert "Typing :: Typed" in found.get_all("Classifier", [])
    assert found.get_payload().startswith("# steindiff\n")


def test_the_core_needs_four_libraries_and_each_extra_its_own(built):
    needs = _metadata(built[0]).get_all("Requires-Dist", [])
    extras: dict[str, set[str]] = {}
    for need in needs:
        name = re.match(r"[\w.-]+", need)
        extra = re.search(r"extra == '(\w+)'", need)
        assert name is not None
        extras.setdefault(extra[1] if extra else "", set()).add(name[0].lower())
    assert extras.pop("dev") > set().union(*(extras[name] for name in ("cli", "diffusers", "docs", "metrics", "train")))
    assert extras == {
        "": {"torch", "numpy", "safetensors", "filelock"},
        "cli": {"typer", "rich", "markdown-it-py", "tqdm", "pillow", "matplotlib"},
        "diffusers": {"diffusers", "accelerate"},
        "docs": {"mkdocs-material", "mkdocstrings"},
        "metrics": {"scikit-learn"},
        "train": {"accelerate"},
    }


def test_the_command_is_there(built):
    with zipfile.ZipFile(built[0]) as archive:
        text = archive.read(f"steindiff-{steindiff.__version__}.dist-info/entry_points.txt").decode()
    assert text.split() == ["[console_scripts]", "steindiff", "=", "steindiff.__main__:main"]


def test_an_index_would_take_them(built):
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *built], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2


def test_every_file_of_the_release_says_the_same_version():
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited is not None
    assert cited[1] == steindiff.__version__
