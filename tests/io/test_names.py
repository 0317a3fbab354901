"""Names of files: whatever a label says, what comes out is one name of a file in one folder."""

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from steindiff.errors import InputError
from steindiff.io.files import HALF
from steindiff.io.names import checked_name, file_name, printable

ANY = st.text(st.characters(exclude_categories=()), max_size=300)
HOSTILE = (
    "../../../evil",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a\0b",
    "\ud800",
    "x" * 300,
    "é" * 300,
    "CON",
    "nul.txt",
    "-rf",
    "a\\b",
)


@given(st.lists(ANY, min_size=1, max_size=8))
@example(["../../../evil"])
@example(["..", ".."])
@example(["\U00020000" * 80] * 8)
def test_any_labels_give_the_name_of_a_file(labels):
    name = file_name(*labels)
    assert name == Path(name).name
    assert 0 < len(name.encode()) <= 255 - len(f".-12345678{HALF}.safetensors")
    assert name.isprintable()
    assert name[0] not in ".-"
    assert name.partition(".")[0].lower() not in ("con", "nul", "aux", "prn", "com1", "lpt1")
    assert file_name(*labels) == name


@pytest.mark.parametrize("label", HOSTILE)
def test_a_file_of_a_hostile_name_lies_in_its_folder(tmp_path, label):
    path = tmp_path / f"{file_name(label)}.safetensors"
    path.write_text("here")
    assert os.listdir(tmp_path) == [path.name]


def test_long_labels_that_differ_beyond_the_cut_differ():
    assert file_name("x" * 300 + "a") != file_name("x" * 300 + "b")
    assert file_name(*["x" * 60] * 8) != file_name(*["x" * 60] * 7, "x" * 59 + "y")
    assert file_name("dpmpp_3m(exact=True)", "karras", 5) == "dpmpp_3m(exact=True)-karras-5"  # names of earlier versions stay
    assert file_name("heun", "k" * 16).endswith("-" + "k" * 16)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_a_user_gives_is_taken_as_it_is_or_refused(name):
    with pytest.raises(InputError, match=r"--name .* (need the name of a file|at most)") as refused:
        checked_name(name, "--name")
    assert str(refused.value).isprintable()


@given(ANY)
def test_a_checked_name_stays_in_its_folder(name):
    try:
        assert checked_name(name, "--name") == name == Path(name).name
    except InputError:
        assert name != "cifar10"


def test_usual_names_are_welcome():
    for name in ("cifar10", "my model (2)", "größe-1.5", "модель"):
        assert checked_name(name, "--name") == name


def test_what_is_shown_is_one_line():
    assert printable("a\nb\0c\ud800d\x1b[31m") == "a�b�c�d�[31m"
    assert len(printable("x" * 300)) == 100
