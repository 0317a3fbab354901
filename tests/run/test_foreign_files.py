"""What a run of images finds in its folder and has not made stays as it is, whatever the options."""

import json
import os
import shutil
from dataclasses import replace

import pytest

from steindiff.errors import InputError
from steindiff.io.files import read_json, write_json
from steindiff.io.folders import LOCK, fingerprint
from steindiff.run import Job, generate
from steindiff.run.holding import PARTS

JOB = Job("digits", (0, 1, 2), "ddim", nfe=1, batch=2)


def tree(folder):
    """Every file and link below a folder."""
    paths = sorted(p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())
    return {str(p.relative_to(folder)): os.readlink(p) if p.is_symlink() else p.read_bytes() for p in paths}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return generate(JOB, tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def run(finished, tmp_path):
    """A finished run's folder of this test's own."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("names", [("grid.png",), ("000001.png", "samples.npz"), ("trace.jsonl",), ("run.json",)])
def test_files_in_the_way_are_listed_before_any_work(tmp_path, names, overwrite):
    for name in names:
        (tmp_path / name).write_text('{"mine": 1}')
    before = tree(tmp_path)
    with pytest.raises(InputError, match=f"in the way .*: {', '.join(names)}; move or remove them, or choose another --outdir"):
        generate(JOB, tmp_path, overwrite=overwrite)
    assert tree(tmp_path) == before


def test_overwrite_takes_what_run_json_lists_and_nothing_else(run):
    (run / "000007.png").write_text("mine")
    generate(replace(JOB, seeds=(1, 3)), run, overwrite=True)
    assert sorted(tree(run)) == ["000001.png", "000003.png", "000007.png", "grid.png", "run.json", "samples.npz", "trace.jsonl"]
    assert (run / "000007.png").read_text() == "mine"
    with pytest.raises(InputError, match=r"000007\.png"):
        generate(replace(JOB, seeds=(7,)), run, overwrite=True)
    assert (run / "000003.png").exists()


def test_a_file_that_replaces_one_of_the_run_is_not_the_runs(run):
    (run / "grid.png").write_text("mine")
    before = tree(run)
    with pytest.raises(InputError, match=r"1 file in the way that this run has not written, or not so: grid\.png"):
        generate(JOB, run, overwrite=True)
    assert tree(run) == before


def test_a_run_of_an_earlier_version_lists_no_files_and_is_known_by_its_seeds(run):
    about = read_json(run / "run.json")
    del about["files"]
    (run / "run.json").write_text(json.dumps(about))
    (run / "000007.png").write_text("mine")
    with pytest.raises(InputError, match="already holds a finished run"):
        generate(JOB, run)
    generate(replace(JOB, seeds=(4,)), run, overwrite=True)
    assert sorted(p.name for p in run.glob("0*.png")) == ["000004.png", "000007.png"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("way", ["no record", "a link", "a file"])
def test_parts_that_are_not_a_runs_are_never_emptied(tmp_path, way, overwrite):
    theirs, run = tmp_path / "theirs", tmp_path / "run"
    theirs.mkdir()
    run.mkdir()
    if way == "no record":
        (run / PARTS).mkdir()
        (run / PARTS / "000000.safetensors").write_text("mine")
    elif way == "a link":
        (theirs / "job.json").write_text('{"seeds": [0]}')
        (run / PARTS).symlink_to(theirs)
    else:
        (run / PARTS).write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(InputError, match=r"\.parts.*(is no folder of a run|; move or remove them).* another --outdir"):
        generate(JOB, run, overwrite=overwrite)
    assert tree(tmp_path) == before


def test_links_and_strangers_among_the_parts_of_a_run_stay(finished, tmp_path):
    """A run that is stopped at its end; somebody puts things into its folders; both ways out leave them alone."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name in ("000000.png", "000002.safetensors"):
        (theirs / name).write_text("mine")
    for overwrite in (False, True):
        run = tmp_path / str(overwrite)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("steindiff.run.output.Output.finish", lambda *_, **__: (_ for _ in ()).throw(InputError("stopped")))
            with pytest.raises(InputError, match="stopped"):
                generate(JOB, run)
        (run / PARTS / "notes.txt").write_text("mine")
        (run / PARTS / "000002.safetensors").symlink_to(theirs / "000002.safetensors")
        generate(JOB, run, overwrite=overwrite)
        assert sorted(p.name for p in (run / PARTS).iterdir()) == ["000002.safetensors", "notes.txt"]
    assert all(path.read_text() == "mine" for path in theirs.iterdir())


def test_a_folder_of_images_behind_a_link_is_not_written_to(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "000000").symlink_to(tmp_path / "theirs")
    with pytest.raises(InputError, match=r"in the way .*: 000000;"):
        generate(JOB, tmp_path / "run", subdirs=True)
    assert not list((tmp_path / "theirs").iterdir())


@pytest.mark.parametrize("link", ["000000", "000000/000001.png", "grid.png"])
def test_a_link_that_somebody_puts_into_a_stopped_run_is_not_followed(tmp_path, monkeypatch, link):
    theirs, run = tmp_path / "theirs", tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("steindiff.run.output.Output.finish", lambda *_, **__: (_ for _ in ()).throw(InputError("stopped")))
        with pytest.raises(InputError, match="stopped"):
            generate(JOB, run, subdirs=True)
    (run / PARTS / "000001.safetensors").unlink()
    shutil.move(run / link if (run / link).exists() else run / "000000", theirs)
    (run / link).parent.mkdir(exist_ok=True)
    (run / link).symlink_to(theirs)
    before = tree(tmp_path)
    with pytest.raises(InputError, match=f"1 file in the way .*: {link};"):
        generate(JOB, run, subdirs=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "files", [["../theirs", "/etc/passwd", 3], {"../theirs": "00", "x" * 300: "0", "a\0": "0"}, "grid.png"]
)
def test_a_manifest_that_names_files_elsewhere_moves_nothing(run, files):
    (run.parent / "theirs").write_text("mine")
    about = read_json(run / "run.json")
    (run / "run.json").write_text(json.dumps({**about, "files": files}))
    with pytest.raises(InputError, match="in the way"):
        generate(JOB, run, overwrite=True)
    assert (run.parent / "theirs").read_text() == "mine"


@pytest.mark.parametrize("where", ["run.json", "the record"])
@pytest.mark.parametrize("absolute", [False, True])
def test_overwrite_removes_nothing_outside_whatever_a_file_in_the_folder_lists(run, where, absolute):
    """Also where the digest is right: who made the list can compute it."""
    theirs = run.parent / "theirs"
    theirs.write_text("mine")
    name = str(theirs) if absolute else "../theirs"
    if where == "run.json":
        about = read_json(run / "run.json")
        write_json(run / "run.json", {**about, "files": {**about["files"], name: fingerprint(theirs)}}, seal=True)
    else:
        write_json(run / PARTS / "job.json", {"removing": [name]}, seal=True)
    generate(JOB, run, overwrite=True)
    assert theirs.read_text() == "mine"


def test_nothing_of_the_lock_is_left(run):
    assert not (run / LOCK).exists()
