"""Files made to do harm: each gives one clear error, with file, finding, limit and remedy, in little memory."""

import gzip
import io
import json
import os
import pickle
import resource
import struct
import tarfile
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from faults.kinds import ABOUT, KINDS, picture
from safetensors.torch import save_file

from steindiff import models
from steindiff.corrections.stein import read_numbers
from steindiff.errors import InputError, ModelFileError
from steindiff.io import limits
from steindiff.io.files import read_json, read_tensors, write_tensors
from steindiff.io.packed import read_npz
from steindiff.metrics.fid.references import read_reference
from steindiff.models.datasets import load_images
from steindiff.solvers import table_files
from steindiff.study import store as cells
from steindiff.train.checkpoint import FORMAT, _read

MOST = 200 * 2**20
"""Bytes of memory that a refusal may take; what the files ask for is many times more."""


def _peak():
    """The most bytes that the process has had, since it was last forgotten where Linux lets it be forgotten."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.fixture(autouse=True)
def little_memory():
    """The process grows by little, whatever the file asks for, and whatever earlier tests have taken."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    yield
    assert _peak() - before < MOST


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width, height, *extra):
    """A PNG file of this size, of white pixels if anybody unpacks it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(min((width + 1) * height, 2**20)))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + b"".join(extra) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


# --- images ----------------------------------------------------------------------------------------------------------

TEXT = _chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(50 * 2**20)))
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (_png(30_000, 30_000), r"a\.png has pixels: 900,000,000: more than 67,108,864 .*image_pixels=900000000 allows it"),
        (_png(5, 4, TEXT), r"a\.png is not a readable image .*remove or replace it"),
        (POSTSCRIPT, r"a\.png is not a readable image"),
        (_png(5, 4)[:44], r"a\.png is not a readable image"),
        (b"", r"a\.png is not a readable image"),
    ],
    ids=["pixels", "text", "program", "truncated", "empty"],
)
def test_images(tmp_path, data, reason):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(InputError, match=reason):
        load_images(tmp_path, resolution=4)


def test_a_resolution_that_no_memory_has(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(_png(5, 4))
    with pytest.raises(InputError, match=r"resolution 100000 have pixels: 10,000,000,000: more than .*image_pixels"):
        load_images(tmp_path, resolution=100_000)

    def lacks(*args):
        raise MemoryError

    monkeypatch.setattr("steindiff.models.datasets._fitted", lacks)
    with pytest.raises(MemoryError):  # the image is in order
        load_images(tmp_path, resolution=4)


def test_a_pipe_among_images_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(InputError, match="holds no images"):
        load_images(tmp_path)


def test_images_that_are_too_many_for_the_memory(tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(picture())
    assert len(load_images(tmp_path)) == 3
    monkeypatch.setenv(limits.VARIABLE, "dataset_bytes=150")
    with pytest.raises(InputError, match=r"the images up to c\.png have bytes: 180: more than 150 .*dataset_bytes=180 allows"):
        load_images(tmp_path)


# --- archives --------------------------------------------------------------------------------------------------------


def _zip(path, *names, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in names:
            archive.writestr(name, picture())
    return path


def _patched(path, at, form, value, local=None):
    """The zip file with a number of its first member changed in the list of members, and before the member itself."""
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, data.index(b"PK\x01\x02") + at, value)
    if local is not None:
        struct.pack_into(form, data, local, value)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ((24, "<L", 2**31), r"i\.zip: a\.png unpacks to bytes: 2,147,483,648: more than 268,435,456 .*image_bytes"),
        ((8, "<H", 1, 6), r"i\.zip: a\.png is encrypted: unpack the archive with its password"),
        ((10, "<H", 99, 8), r"i\.zip: a\.png is packed by method 99: pack the archive anew"),
        ((16, "<L", 1), r"i\.zip is not a readable archive .*CRC"),
        ((42, "<L", 2**31), r"i\.zip is not a readable archive"),
    ],
    ids=["size", "encrypted", "method", "checksum", "place"],
)
def test_zips(tmp_path, change, reason):
    with pytest.raises(InputError, match=reason):
        load_images(_patched(_zip(tmp_path / "i.zip", "a.png"), *change))


def test_a_member_that_unpacks_to_more_than_it_says(tmp_path):
    """A gigabyte of zeros in a megabyte, whose stated size is a hundred bytes."""
    crusher = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = 64 * (crusher.compress(bytes(2**24)) + crusher.flush(zlib.Z_FULL_FLUSH)) + crusher.flush()
    sizes = struct.pack("<3L2H", 0, len(body), 100, 5, 0)
    local = b"PK\x03\x04" + struct.pack("<5H", 20, 0, zipfile.ZIP_DEFLATED, 0, 0) + sizes + b"a.png" + body
    listed = b"PK\x01\x02" + struct.pack("<6H", 20, 20, 0, zipfile.ZIP_DEFLATED, 0, 0) + sizes + bytes(14) + b"a.png"
    end = b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 1, 1, len(listed), len(local), 0)
    (tmp_path / "i.zip").write_bytes(local + listed + end)
    with pytest.raises(InputError, match=r"i\.zip is not a readable archive .*CRC"):
        load_images(tmp_path / "i.zip")


@pytest.mark.parametrize(
    ("at", "form", "value", "reason"),
    [
        (10, "<H", 3, r"its list has 2 of 3 members"),
        (12, "<L", 2**30, r"the room for its list of members is that for 23,342,213: more than 10,000,000 .*archive_members"),
    ],
    ids=["entries", "room"],
)
def test_the_record_at_the_end_of_a_zip(tmp_path, at, form, value, reason):
    """A list that has lost its end reads as a shorter one; one that is said to be long is not read at all."""
    path = _zip(tmp_path / "i.zip", "a.png", "b.png")
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, data.index(b"PK\x05\x06") + at, value)
    path.write_bytes(data)
    with pytest.raises(InputError, match=reason):
        load_images(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_ways_of_packing_that_are_unpacked_without_a_bound_are_refused(tmp_path, method):
    path = _zip(tmp_path / "i.zip", "a.png", method=method)
    with pytest.raises(InputError, match=rf"a\.png is packed by method {method}: pack the archive anew, by zip or deflate"):
        load_images(path)
    path.rename(tmp_path / "i.npz")
    with pytest.raises(InputError, match=rf"packed by method {method}: pack"):
        read_npz(tmp_path / "i.npz", ("a.png",))


@pytest.mark.parametrize(("limit", "what"), [("archive_members=2", "members"), ("archive_bytes=300", "unpacks to bytes")])
def test_archives_have_few_members_and_bytes(tmp_path, monkeypatch, limit, what):
    names = [f"{i}.png" for i in range(4)]
    places = [_zip(tmp_path / "i.zip", *names), _tar(tmp_path / "i.tar.gz", *[(tarfile.TarInfo(n), picture()) for n in names])]
    for place in places:
        assert len(load_images(place)) == 4
    monkeypatch.setenv(limits.VARIABLE, limit)
    for place in places:
        with pytest.raises(InputError, match=rf"{place.name}: .*{what}.*more than {limit.partition('=')[2]}"):
            load_images(place)


def _tar(path, *entries):
    with tarfile.open(path, f"w:{path.suffix[1:].replace('tar', '')}") as archive:
        for info, data in entries:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def _tar_header(name, kind, size):
    """A tar file whose first member claims this size, and has nothing."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("name", "kind", "size", "reason"),
    [
        ("a.png", tarfile.REGTYPE, 2**30, r"a\.png has bytes: 1,073,741,824: more than 268,435,456"),
        ("a", tarfile.REGTYPE, 2**39, r"unpacks to bytes: 549,755,814,\d+: more than|not a readable archive"),
        ("a", tarfile.GNUTYPE_LONGNAME, 2**33, r"a part of it has bytes: 8,589,\d+,\d+: more than"),
        ("a", tarfile.XHDTYPE, 2**33, r"a part of it has bytes: 8,589,\d+,\d+: more than"),
        ("a.png", tarfile.GNUTYPE_SPARSE, 0, r"a\.png is a sparse file: pack it as a plain one"),
        ("a.png", tarfile.SYMTYPE, 0, r"holds no images"),
        ("a.png", tarfile.LNKTYPE, 0, r"holds no images"),
        ("a.png", tarfile.CHRTYPE, 0, r"holds no images"),
    ],
)
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_tars(tmp_path, name, kind, size, reason, suffix):
    data = _tar_header(name, kind, size) + bytes(1024)
    path = tmp_path / f"i{suffix}"
    path.write_bytes(data if suffix == ".tar" else gzip.compress(data))
    with pytest.raises(InputError, match=rf"i{suffix}.*({reason})"):
        load_images(path)


@pytest.mark.parametrize(("room", "reason"), [(None, ""), (2**20, r"the room .* is that for 22,795: more than 1,000 .*")])
def test_the_records_at_the_end_of_a_large_zip(tmp_path, monkeypatch, room, reason):
    """As Go writes them: all is in a record of its own, and the last one says no more than that it is there."""
    monkeypatch.setenv(limits.VARIABLE, "archive_members=1000")
    path = _zip(tmp_path / "i.zip", "a.png", "b.png")
    data = path.read_bytes()
    end = data.index(b"PK\x05\x06")
    held, place = struct.unpack_from("<LL", data, end + 12)
    large = struct.pack("<4sQHHLLQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 2, 2, room or held, place)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)
    for last in ((0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF), (2, 2, held, place)):
        path.write_bytes(data[:end] + large + locator + b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, *last, 0))
        if room is None:
            assert len(load_images(path)) == 2
        else:
            with pytest.raises(InputError, match=reason):
                load_images(path)


def _npz(path, shape, dtype="u1", data=b"\0" * 48, stated=None):
    """An .npz file of one array with this header; `stated` is the size that the list of members says."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", buffer.getvalue() + data)
    return path if stated is None else _patched(path, 24, "<L", stated)


@pytest.mark.parametrize(
    "header",
    ["{'descr': (", "(" * 300, "-" * 5000 + "1", "{[]: 1}", "{'descr': ',', 'fortran_order': False, 'shape': (2,)}", "\x00"],
    ids=["open", "many open", "deep", "no key", "no type", "no text"],
)
def test_a_header_that_describes_no_array(tmp_path, header):
    """NumPy's reader has another error for each."""
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(8)
    with zipfile.ZipFile(tmp_path / "i.npz", "w") as archive:
        archive.writestr("arr_0.npy", data)
    with pytest.raises(InputError, match=r"i\.npz is not a readable \.npz file of numbers .*: copy or make it again"):
        read_npz(tmp_path / "i.npz", ["arr_0"])


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"shape": (10**9, 512, 512, 3)}, r"said to hold uint8 of shape \(1000000000, 512, 512, 3\) in"),
        ({"shape": (10**30, 4, 4, 3)}, "said to hold"),
        ({"shape": (-1, 4, 4, 3)}, "said to hold"),
        ({"shape": (1, 4, 4, 3), "dtype": "|O"}, "said to hold object"),
        ({"shape": (1, 4, 4, 3), "dtype": "<U0"}, "said to hold"),
        ({"shape": (1, 4, 4, 3), "data": b"\0" * 40}, "other bytes than the 48"),
        ({"shape": (1, 4, 4, 3), "data": b"\0" * 60}, "other bytes than the 48"),
        ({"shape": (1000, 512, 512, 3), "stated": 1000 * 512 * 512 * 3 + 128}, "other bytes|not a readable"),
    ],
)
def test_npz(tmp_path, given, reason):
    path = _npz(tmp_path / "i.npz", **given)
    with pytest.raises(InputError, match=rf"i\.npz.*({reason}).*"):
        load_images(path)


def test_an_array_larger_than_the_limit(tmp_path, monkeypatch):
    path = _npz(tmp_path / "i.npz", (1, 4, 4, 3))
    assert load_images(path).event_shape == (3, 4, 4)
    monkeypatch.setenv(limits.VARIABLE, "dataset_bytes=100")
    with pytest.raises(InputError, match=r"i\.npz: arr_0\.npy unpacks to bytes: 1\d\d: more than 100"):
        load_images(path)


# --- JSON ------------------------------------------------------------------------------------------------------------

BAD_JSON = [
    ('{"labels": ' + "[" * 100_000 + "]" * 100_000 + "}", "deeper than 64"),
    ('{"labels": ' + "[" * 70 + "]" * 70 + "}", "deeper than 64"),
    ('{"labels": [["a.png", ' + "9" * 5000 + "]]}", "has digits: 5,000: more than 40"),
    ('{"labels": [["a.png", NaN]]}', "the number NaN: need finite"),
    ('{"labels": [["a.png", 1e999]]}', "the number 1e999: need finite"),
    ('{"labels": [["a.png", 1]], "labels": null}', "has the key 'labels' twice"),
    ('{"labels": [["a.png", 1000000000000000000000000000000]]}', "a label is 1,000,000,.*: more than 1,000,000 .*labels="),
    ('{"labels": [["a.png", 1.5]]}', "1.5 is no whole number"),
    ('{"labels": [["a.png", true]]}', "True is no whole number"),
    ('{"labels": 5}', "repair or remove it"),
    ('["labels"]', "repair or remove it"),
    ("", "repair or remove it"),
    ("\ud800".encode("utf-8", "surrogatepass"), "repair or remove it"),
]


@pytest.mark.parametrize(("text", "reason"), BAD_JSON, ids=range(len(BAD_JSON)))
def test_labels(tmp_path, text, reason):
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "dataset.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=rf"dataset\.json .*{reason}"):
        load_images(tmp_path)


@pytest.mark.parametrize(
    "text", ["[NaN]", "[" * 10**5, '{"a": 1}', "[" + "9" * 400 + "]", "[1e400]", "[]", "[true]", "\0", "[[1]]"]
)
def test_gamma_tables(tmp_path, text):
    (tmp_path / "g.json").write_text(text)
    with pytest.raises(InputError, match=r"g\.json is not a gamma table"):
        read_numbers(tmp_path / "g.json", "a gamma table")


def test_json_of_other_kinds_of_file(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(ValueError, match="need a file on a disk"):
            read_json(path)
    (tmp_path / "a.json").write_text("[1, 2, 3]")
    assert read_json(tmp_path / "a.json") == [1, 2, 3]
    monkeypatch.setenv(limits.VARIABLE, " json_bytes = 5 ,")
    with pytest.raises(ValueError, match="its size in bytes is 9: more than 5"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("image_pixel=5", "did you mean 'image_pixels'"),
        ("labels", "need NAME=NUMBER"),
        ("labels=-1", "need NAME"),
        ("labels=1e9", "NAME"),
    ],
)
def test_a_limit_that_is_none(monkeypatch, text, reason):
    monkeypatch.setenv(limits.VARIABLE, text)
    with pytest.raises(InputError, match=reason):
        limits.most("json_bytes")


# --- models and tables -----------------------------------------------------------------------------------------------


def _model(path, text=None, **changes):
    """A model file with a changed description."""
    about = {"format": 1, **ABOUT, **changes}
    save_file({"weight": torch.zeros(2)}, path, {"steindiff": json.dumps(about) if text is None else text})
    return path


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"unet": ABOUT["unet"] | {"blocks": 10**7}}, "blocks=10000000: need a whole number from 1 to 32"),
        ({"unet": ABOUT["unet"] | {"channels": 10**12}}, "channels=1000000000000: need a whole number"),
        ({"unet": ABOUT["unet"] | {"channels": 8.0}}, "channels=8.0: need a whole number"),
        ({"unet": ABOUT["unet"] | {"mults": [1] * 10**5}}, "at least one level and at most 8"),
        ({"unet": ABOUT["unet"] | {"num_classes": 10**9}}, "num_classes=1000000000"),
        (
            {"unet": ABOUT["unet"] | {"channels": 4096, "mults": [64]}},
            "the network has parameters: .*more than 4,000",
        ),
        ({"unet": [1, 2]}, "does not hold what its description says"),
        ({"event_shape": [1, 65536, 65536]}, r"numbers: 4,294,967,296: more than 67,108,864 .*event_size"),
        ({"event_shape": [1, -4, 4]}, "need a list of one to four whole numbers from 1 on"),
        ({"event_shape": ["1", "4", "4"]}, "need a list of one to four whole numbers"),
        ({"event_shape": "144"}, "need a list of one to four whole numbers"),
        ({"event_shape": [1] * 100}, "need a list of one to four whole numbers"),
        ({"kind": ["edm_unet"]}, r"kind \['edm_unet'\]"),
        ({"sigma_data": [1]}, "does not hold what its description says"),
        ({"text": "[" * 10**5 + "]" * 10**5}, "deeper than 64"),
        ({"text": '{"a": ' * 70 + "1" + "}" * 70}, "deeper than 64"),
        ({"text": '{"a": 1, "a": 2}'}, "the key 'a' twice"),
        ({"text": '{"a": NaN}'}, "the number NaN"),
        ({"text": '{"a": ' + "1" * 5000 + "}"}, "has digits: 5,000"),
    ],
)
def test_descriptions_of_models(tmp_path, changes, reason):
    with pytest.raises(ModelFileError, match=rf"m\.safetensors .*{reason}.*") as refused:
        models.load(_model(tmp_path / "m.safetensors", **changes))
    assert len(str(refused.value)) < 1000  # whatever the file asks for


def test_files_of_tensors_of_absurd_sizes(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 40 * 2**20))
        file.truncate(50 * 2**20)
    with pytest.raises(ModelFileError, match=r"its header has bytes: 41,943,040: more than 33,554,432 .*header_bytes"):
        models.load(path)
    with open(path, "r+b") as file:
        file.truncate(2**37)
    with pytest.raises(ModelFileError, match=r"its size in bytes is 137,438,953,472: more than 68,719,476,736 .*file_bytes"):
        models.load(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="need a file on a disk"):
        read_tensors(path)
    with pytest.raises(ModelFileError, match="is no readable table: need a file on a disk"):
        table_files.load(path)


# --- what a study keeps, references, checkpoints ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"n": "many"}, {"n": 2.5}, {"n": True}, {"n": None}, {"values": [1]}, {"values": {"energy": "x"}},
        {"values": {"energy": [1, 2, 3]}}, {"seconds": "long"}, {"failure": 3}, {"trace": {}}, {"cell": {"bed": "digits"}},
        {"cell": None}, {"spectrum": ["x"]}, {"trace": [1]}, {"lengths": {"energy": "3"}}, {"kept": None}, {"spread": [1, 2]},
        {"unknown": 1},
        {"kept": {"format": cells.FORMAT, "key": "key", "tensors": 5}},
    ],
    ids=repr,
)  # fmt: skip
def test_cells_of_other_kinds(tmp_path, change):
    kind = KINDS["cell"]
    path = kind.make(tmp_path)
    about, tensors = read_tensors(path, "shown", "spread")
    head = {**about["kept"], "tensors": [name for name in ("shown", "spread") if name not in change]}
    write_tensors(path, dict(zip(("shown", "spread"), tensors, strict=True)), {**about, "kept": head, **change})
    with pytest.raises(InputError, match=r"cell\.safetensors is not what its name says .*: remove it, and it is made again"):
        kind.read(path)


C = np.eye(2)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"mu": np.array([0, np.nan]), "sigma": C}, "hold NaN or infinity"),
        ({"mu": np.zeros(2), "sigma": np.full((2, 2), np.inf)}, "hold NaN or infinity"),
        ({"mu": np.zeros(2), "sigma": np.array([[1, 0.5], [0, 1]])}, "differs from its transpose"),
        ({"mu": np.zeros(3), "sigma": C}, "need \\(d,\\) and \\(d, d\\)"),
        ({"mu": np.zeros(2), "sigma": C * 1j}, "need real numbers"),
        ({"mu": np.array(["0", "1"]), "sigma": C}, "need real numbers"),
        ({"mu": np.zeros(2), "sigma": C, "n": np.asarray(2.5)}, "n is 2.5, need int"),
        ({"mu": np.zeros(2), "sigma": C, "n": np.asarray(-3)}, "n=-3: need at least one"),
        ({"mu": np.zeros(2), "sigma": C, "n": np.arange(5)}, "not a readable"),
        ({"mu": np.zeros(2), "sigma": C, "resize": np.asarray(1)}, "resize is 1, need str"),
        ({"mu": np.array([None, 1], dtype=object), "sigma": C}, "said to hold object"),
        ({"mu": np.zeros(2)}, "no entry 'sigma'"),
        ({"mu": np.zeros(2), "sigma": C, "file_sha256": np.asarray("0" * 64)}, "damaged: its digest differs"),
    ],
)
def test_references(tmp_path, entries, reason):
    np.savez(tmp_path / "r.npz", **entries)
    with pytest.raises(InputError, match=rf"r\.npz.*{reason}"):
        read_reference(tmp_path / "r.npz")


def _laughs():
    """2^60 lists in 60."""
    value = []
    for _ in range(60):
        value = [value, value]
    return value


def _deep():
    value = []
    for _ in range(200):
        value = [value]
    return value


STATE = {"format": FORMAT, "step": 3, "seconds": 1.0, "identity": {"recipe": {"steps": 9}, "unet": {}}, "network": {},
         "average": {}, "optimizer": {}, "scaler": {}}  # fmt: skip


@pytest.mark.parametrize(
    ("held", "reason"),
    [
        ([1, 2], "it holds a list"),
        ({**STATE, "step": "3"}, "step and steps"),
        ({**STATE, "identity": {"recipe": {"steps": 10.5}}}, "step and steps"),
        ({**STATE, "identity": 5}, "no attribute"),
        ({**STATE, "network": [1]}, "parts of another kind"),
        ({**STATE, "more": 1}, "unexpected keyword"),
        ({**STATE, "network": _laughs()}, r"values in it are at least 1,001: more than 1,000"),
        ({**STATE, "network": _deep()}, "nest to the depth 65: more than 64"),
        (
            {**STATE, "network": {"w": torch.zeros(1).expand(10**9)}},
            r"said to lie in the same memory",
        ),
        ({**STATE, "network": {"w": torch.zeros(1).expand(5)}}, r"a tensor of shape \(5,\) is said to lie"),
        ({**STATE, "network": [torch.zeros(9)[i:] for i in range(9)]}, "parts of another kind"),
        ({**STATE, "network": 30 * [torch.zeros(10**6)]}, "its tensors are said to lie in the same memory, more than 8 in one"),
        ({**STATE, "network": {"w": torch.eye(3).to_sparse()}}, "Cannot access"),
        ({**STATE, "network": {"w": torch.zeros(3, device="meta")}}, "meta"),
        ({**STATE, "file_sha256": "0" * 64}, "damaged: its digest differs"),
    ],
    ids=range(15),
)
def test_checkpoints(tmp_path, monkeypatch, held, reason):
    monkeypatch.setenv(limits.VARIABLE, "values=1000")
    torch.save(held, tmp_path / "c.pt")
    with pytest.raises(InputError, match=rf"c\.pt is not a readable checkpoint \(.*{reason}.*\): remove it to start anew"):
        _read(tmp_path / "c.pt")


def test_a_checkpoint_that_is_packed_is_a_bomb(tmp_path):
    torch.save(STATE | {"network": {"w": torch.zeros(10**6)}}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "c.pt", "w") as packed,
    ):
        for info in plain.infolist():
            packed.writestr(info.filename, plain.read(info), zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match=r"c\.pt is not a readable checkpoint \(it unpacks to 4,\d+,\d+ bytes of"):
        _read(tmp_path / "c.pt")
    (tmp_path / "c.pt").write_bytes(pickle.dumps(STATE))
    with pytest.raises(InputError, match="not a readable checkpoint"):
        _read(tmp_path / "c.pt")
