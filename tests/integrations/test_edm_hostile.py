"""Pickles that would do harm: nothing in them runs, what they ask for is named, and their cost is bounded."""

import contextlib
import io
import json
import os
import pickle
import struct
import time
import tracemalloc
import warnings
from collections import OrderedDict
from datetime import timedelta

import pytest
import torch
from faults.edm_pickles import Persistent, called, name, small, snapshot, text, whole
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steindiff.errors import InputError, ModelFileError
from steindiff.integrations.edm.description import describe
from steindiff.integrations.edm.source import Limits
from steindiff.integrations.edm.unpickle import opened
from steindiff.io.files import plain

PERSISTENT = ("torch_utils.persistence", "_reconstruct_persistent_obj")
NUMPY = "numpy.core.multiarray"
CLASS = b"}(" + text("type") + text("class") + text("class_name")
TENSOR = ("torch._utils", "_rebuild_tensor_v2")


def read(path, data, **limits):
    """The header's entries and the tensors that bytes hold."""
    path.write_bytes(data)
    with opened(path, Limits(**limits)) as file:
        found = describe(file.root, file.source)
        return found.info, {key: file.tensor(stored) for key, stored in found.tensors.items()}


@pytest.fixture
def canary(tmp_path):
    """A path at which a file appears if any of a pickle's programs runs."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "the pickle was run"


def programs(canary):
    """Opcodes that would make the canary, and the name that the error must have."""
    touch, write = text(f"touch {canary}"), text(f"open({str(canary)!r}, 'w').close()")
    return {
        "os.system": called("os", "system", touch),
        "posix.system": called("posix", "system", touch),
        "subprocess.check_output": called("subprocess", "check_output", b"]" + text("touch") + b"a" + text(str(canary)) + b"a"),
        "builtins.eval": called("builtins", "eval", write),
        "builtins.exec": called("builtins", "exec", write),
        "builtins.open": called("builtins", "open", text(str(canary)), text("w")),
        "builtins.__import__": called("builtins", "__import__", text("os")),
        "builtins.getattr": called("builtins", "getattr", name("os", "path"), text("os")),
        "pathlib.Path": called("pathlib", "Path", text(str(canary))),
        "torch.hub.load": called("torch.hub", "load", text("x/y"), text("z")),
        "torch.load": called("torch", "load", text(str(canary))),
        "torch.storage.os.system": called("torch.storage", "os.system", touch),
        "torch.nn.modules.module.torch.os.system": called("torch.nn.modules.module", "torch.os.system", touch),
        "torch.nn.modules.utils.import_module": called("torch.nn.modules.utils", "import_module", text("os")),
        "torch.nn.modules.container.ModuleDict.__init__.__globals__": name(
            "torch.nn.modules.container", "ModuleDict.__init__.__globals__"
        ),
        "evil.persistence._reconstruct_persistent_obj": called("evil.persistence", "_reconstruct_persistent_obj", b"}"),
        "torch_utils.persistence.os.system": called("torch_utils.persistence", "os.system", touch),
        "evil.OrderedDict": called("evil", "OrderedDict"),
        "collections.UserDict": called("collections", "UserDict"),
        "numpy.core.multiarray.fromfile": called("numpy.core.multiarray", "fromfile", text(str(canary))),
        "copyreg._reconstructor": called("copyreg", "_reconstructor"),
        "codecs.encode": called("codecs", "encode", text("x")),
    }


NAMES = tuple(programs("x"))


@pytest.mark.parametrize("wanted", NAMES)
def test_a_name_that_a_network_does_not_need_is_refused(tmp_path, canary, wanted):
    program = programs(canary)[wanted]
    places = (
        program,  # alone
        b"}" + text("ema") + program + b"s",  # in the dictionary
        called(*PERSISTENT, b"}" + text("state") + program + b"s"),  # nested in an allowed call
        name("torch.nn.modules.container", "ModuleDict") + b")\x81" + program + b"b",  # as a state
        called(*TENSOR, program),
    )
    for body in places:
        with pytest.raises(
            ModelFileError, match=rf"byte \d+: it asks for {wanted}, which .* nothing in the file was run"
        ) as told:
            read(tmp_path / "bad.pkl", whole(body))
        assert "--trust-pickle" in str(told.value)


def test_global_of_older_protocols_is_refused_alike(tmp_path, canary):
    with pytest.raises(ModelFileError, match=r"asks for posix\.system"):
        read(tmp_path / "bad.pkl", whole(b"cposix\nsystem\n(" + text(f"touch {canary}") + b"tR", 3))


@pytest.mark.parametrize(
    ("opcode", "body"),
    [
        ("INST", b"(" + text("touch x") + b"ios\nsystem\n"),
        ("OBJ", b"(" + name("torch.nn.modules.container", "ModuleDict") + b"o"),
        ("EXT1", b"\x82\x01"),
        ("EXT2", b"\x83\x01\x00"),
        ("EXT4", b"\x84\x01\x00\x00\x00"),
        ("PERSID", b"Pname\n"),
        ("BINPERSID", b"NQ"),
        ("NEWOBJ_EX", name("torch.nn.modules.container", "ModuleDict") + b")}\x92"),
        ("NEXT_BUFFER", b"\x97"),
        ("READONLY_BUFFER", b"N\x98"),
        ("GET", b"g0\n"),
        ("STRING", b"S'x'\n"),
        ("LONG", b"L" + b"9" * 5000 + b"L\n"),
        ("0xff", b"\xff"),
    ],
)
def test_opcodes_of_no_use_are_refused_by_name(tmp_path, opcode, body):
    with pytest.raises(ModelFileError, match=f"opcode {opcode}.* has no place"):
        read(tmp_path / "bad.pkl", whole(body))


def test_states_and_source_texts_are_kept_as_data(tmp_path, canary):
    """Neither is run: a program in the source text, names that Python gives a meaning, a module of unknown class."""
    net = small(source=f"open({str(canary)!r}, 'w').close()")
    inner = net._modules["model"]
    inner.state_too = {"__setstate__": "x", "__class__": "y", "__reduce__": ["z"]}
    inner.add_module("x", torch.nn.Identity())
    info, tensors = read(tmp_path / "odd.pkl", snapshot(net, loss_fn=Persistent("Loss", source="import os")))
    assert info["network"] == "SongUNet"
    assert list(tensors) == list(net.state_dict())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"NN\x93", "asks for no text"),
        (text("os") + b"NR", "calls 'os', which is no name"),
        (b"N)R", "calls <NoneType>"),
        (name(*PERSISTENT) + b")\x81", "which is no class"),
        (name("torch.nn.modules.container", "ModuleDict") + b"(K\x01t\x81", "is made of arguments"),
        (name("torch.nn.modules.container", "ModuleDict") + b")\x81}b}b", "given its state twice"),
        (b"}}b", "an operation for Stateful finds dict"),
        (name("numpy", "ndarray") + b")R", "an array of numpy made by its class"),
        (called("numpy", "dtype", text("O8")), "numbers of numpy's type 'O8'"),
        (called(NUMPY, "scalar", called("numpy", "dtype", text("f8")), b"C\x01x"), "1 numbers of .* in 1 bytes"),
        (called(NUMPY, "_reconstruct", name("collections", "OrderedDict"), b")", b"C\x00"), "of another class"),
        (called(*PERSISTENT), "is no class"),
        (called(*PERSISTENT, CLASS + text("a b") + b"u"), "of class 'a b'"),
        (called(*PERSISTENT, CLASS + text("A") + text("version") + b"K\x07u"), "persistence version 7"),
        (called(*PERSISTENT, CLASS + text("A") + text("version") + b"K\x06" + text("state") + b")u"), "state is <tuple>"),
        (called("collections", "OrderedDict", b"]K\x01a"), "something else than pairs"),
        (called("collections", "OrderedDict", b"](]NaK\x01e"), "something else than pairs"),
        (called("builtins", "set", b"K\x01"), "something else than a list"),
        (b"}]K\x01s", "a key is <list>"),
        (b"}G" + bytes(8) + b"K\x01s", "a key is <float>"),
        (b"\x8f(]\x90", "a key is <list>"),
        (b"}(K\x01u", "a key has no value"),
        (b"h\x05", "refers to value 5"),
        (b"0", "goes back to a mark"),
        (b"R", "takes a value where there is none"),
        (b"NN", "values left over"),
        (b"N\x80\x04", "protocol 4 at byte 3"),
        (b"X\x02\x00\x00\x00\xff\xff", "not UTF-8"),
        (b"ca\xff", "a name has no end"),
    ],
)  # fmt: skip
def test_opcodes_in_wrong_places_are_refused(tmp_path, body, message):
    with pytest.raises(ModelFileError, match=message):
        read(tmp_path / "bad.pkl", whole(body))


@pytest.mark.parametrize(
    "body",
    [
        b"X" + struct.pack("<I", 2**32 - 1),
        b"\x8d" + struct.pack("<Q", 2**63),
        b"B" + struct.pack("<I", 2**32 - 1),
        b"\x8e" + struct.pack("<Q", 2**64 - 1),
        b"\x96" + struct.pack("<Q", 2**62),
        b"\x95" + struct.pack("<Q", 2**62),
        b"\x8a\xff" + b"\x01" * 255,
        b"\x8b" + struct.pack("<i", 2**31 - 1),
        b"\x8b" + struct.pack("<i", -1),
        b"(" * 200_000,
        b"\x8f" * 10_000 + b"\x94" * 100_000,
        b"]" + b"]a" * 10_000 + b"h\x00",
        b")" + b"\x85" * 20_000,
        b"]" + b"\x94h\x00a" * 10_000,
    ],
    ids=["text", "text8", "bytes", "bytes8", "bytearray8", "frame", "long1", "long4", "less", "marks", "sets", "lists",
         "tuples", "itself"],
)  # fmt: skip
def test_bombs_cost_little_memory(tmp_path, body):
    """Lengths that the file does not have are never asked of the memory; an operation costs less than 500 bytes."""
    tracemalloc.start()
    with pytest.raises(ModelFileError):
        read(tmp_path / "bomb.pkl", whole(body), operations=20_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 500 * 20_000


def test_depth_is_no_recursion(tmp_path):
    """Tuples and lists of a depth that would overflow a stack that is not Python's; the time is bounded too."""
    start = time.process_time()
    for body in (b")" + b"\x85" * 100_000, b"]" + b"]" * 50_000 + b"a" * 50_000):
        with pytest.raises(ModelFileError, match="no network under 'ema'"):
            read(tmp_path / "deep.pkl", whole(body))
    assert time.process_time() - start < 60


def test_lists_that_double_are_no_argument(tmp_path):
    double: list[object] = [1]
    for _ in range(60):
        double = [double, double]
    with pytest.raises(ModelFileError, match="channel_mult=<list>"):
        read(tmp_path / "bomb.pkl", snapshot(small(channel_mult=double)))


class Told:
    """What pickles as a call of a function with arguments of any kind."""

    def __init__(self, function, *arguments):
        self.told = function, arguments

    def __reduce__(self):
        return self.told


def elements(obj):
    """The bytes that torch writes of one object, as those of a tensor in a pickle."""
    kept = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of the storages that it writes
        torch.save(obj, kept, _use_new_zipfile_serialization=False)
    return kept.getvalue()


def storage(count=4, dtype=torch.float32):
    """The bytes of the elements 0, 1, …"""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return elements(torch.arange(count).to(dtype).storage())


def with_tensor(stored, offset=0, shape=(4,), stride=(1,), hooks=(), *more):
    """A file with one tensor as told, beside good ones."""
    net = small()
    bytes_ = Told(torch.storage._load_from_bytes, stored) if isinstance(stored, bytes) else stored
    told = Told(torch._utils._rebuild_tensor_v2, bytes_, offset, shape, stride, False, OrderedDict(hooks), *more)
    net._modules["model"]._buffers["told"] = told
    return snapshot(net)


def test_a_tensor_as_told_is_read(tmp_path):
    """The helper of the tests below makes good files too."""
    _, tensors = read(tmp_path / "good.pkl", with_tensor(storage(), 1, (2,), (2,)))
    assert tensors["model.told"].tolist() == [1.0, 3.0]


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ((0, (5,), (1,)), "is said to lie in 4 elements"),
        ((1, (4,), (1,)), "is said to lie in 4 elements"),
        ((2**62, (1,), (1,)), "is said to lie in 4 elements"),
        ((0, (4,), (2,)), "is said to lie in 4 elements"),
        ((0, (2**40,), (0,)), "is said to lie in 4 elements"),
        ((0, (2**31, 2**31, 2**31), (0, 0, 0)), "is said to lie in 4 elements"),
        ((0, (5,), (0,)), "is said to lie in 4 elements"),
        ((0, (2,), (2**62,)), "is said to lie in 4 elements"),
        ((-1, (4,), (1,)), "do not fit"),
        ((0, (-4,), (1,)), "do not fit"),
        ((0, (4,), (-1,)), "do not fit"),
        ((0, (4,), (1, 1)), "do not fit"),
        ((0, (1,) * 9, (1,) * 9), "do not fit"),
        ((0, [4], (1,)), "do not fit"),
        ((0, (4.0,), (1,)), "do not fit"),
        ((0, (True,), (1,)), "do not fit"),
        ((0, (4,), (1,), {"a": 1}), "with hooks or metadata"),
        ((0, (4,), (1,), {}, {"m": 1}), "with hooks or metadata"),
    ],
)
def test_a_tensor_that_lies_about_its_elements_is_refused(tmp_path, told, message):
    with pytest.raises(ModelFileError, match=message):
        read(tmp_path / "bad.pkl", with_tensor(storage(), *told))


class Touch:
    """A program that makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_elements_that_are_programs_are_refused(tmp_path, canary):
    """A pickle in a pickle: torch's weights-only reader names what it refuses."""
    for obj, message in (
        (Touch(canary), r"unsupported GLOBAL posix.system"),
        ({"a": Touch(canary)}, r"unsupported GLOBAL posix.system"),
        (Told(torch.storage._load_from_bytes, elements(Touch(canary))), r"Unsupported.*_load_from_bytes"),
        (Told(eval, f"open({str(canary)!r}, 'w')"), r"Unsupported.*eval"),
        ({"a": 1}, "AttributeError"),
        (torch.ones(4), "AttributeError|a tensor of"),
    ):
        with pytest.raises(ModelFileError, match=message):
            read(tmp_path / "bad.pkl", with_tensor(elements(obj)))


def test_elements_of_other_forms_are_refused(tmp_path, canary):
    archive = io.BytesIO()
    torch.save(torch.ones(4), archive)
    count = struct.pack("<q", 4)
    claims = {
        "not as torch writes them": [b"", pickle.dumps(Touch(canary)), archive.getvalue(), storage()[1:]],
        "torch's weights-only reader refuses": [
            storage()[:-1],
            storage()[:30],
            storage().replace(count, struct.pack("<q", 2**40)),
            storage().replace(b"K\x04Nt", b"\x8a\x06" + struct.pack("<q", 2**40)[:6] + b"Nt"),
            storage()[:140] + b"(" * 10_000,
        ],
        "a tensor of torch.complex64": [storage(dtype=torch.complex64)],
    }  # fmt: skip
    for message, payloads in claims.items():
        for payload in payloads:
            with pytest.raises(ModelFileError, match=message):
                read(tmp_path / "bad.pkl", with_tensor(payload))
    for stored in (None, "text", Told(torch.storage._load_from_bytes, "text"), Told(torch.storage._load_from_bytes)):
        with pytest.raises(ModelFileError, match="something else than"):
            read(tmp_path / "bad.pkl", with_tensor(stored))


def test_one_storage_cannot_be_read_over_and_over(tmp_path):
    """Many tensors of one storage would be many times the file in memory."""
    net, big = small(), Told(torch.storage._load_from_bytes, storage(1000))
    for i in range(20):
        told = Told(torch._utils._rebuild_tensor_v2, big, 0, (1000,), (1,), False, OrderedDict())
        net._modules["model"]._buffers[f"copy{i}"] = told
    with pytest.raises(ModelFileError, match="together have more bytes than the file"):
        read(tmp_path / "bad.pkl", snapshot(net))


GOOD = snapshot(small(classes=10, channel_mult=[1, 2], dropout=0.13), dataset_kwargs={"path": "x", "resolution": 8})
OPCODES = b"(.012BCGJKMNRX]}abcehjlqrstu\x80\x81\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x90\x93\x94\x95\x96"
places = st.integers(0, len(GOOD) - 1)
edits = st.one_of(
    st.tuples(st.just("set"), places, st.binary(min_size=1, max_size=4)),
    st.tuples(st.just("set"), places, st.sampled_from([bytes([code]) for code in OPCODES])),
    st.tuples(st.just("insert"), places, st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("cut"), places, st.integers(1, 40)),
    st.tuples(st.just("repeat"), places, st.integers(1, 200)),
    st.tuples(st.just("end"), places, st.just(0)),
)


def edited(data, edit):
    kind, at, what = edit
    if kind in ("set", "insert"):
        return data[:at] + what + data[at + (len(what) if kind == "set" else 0) :]
    return {"cut": data[:at] + data[at + what :], "repeat": data[: at + what] + data[at:], "end": data[:at]}[kind]


@settings(max_examples=300, deadline=timedelta(seconds=20), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(edits, min_size=1, max_size=3))
def test_every_mutation_is_read_as_a_network_or_refused(tmp_path, changes):
    """A pickle has no checksum: a changed number is another number. Nothing else happens than that, or an error of ours."""
    data = GOOD
    for change in changes:
        data = edited(data, change) or b"\x00"
    with contextlib.suppress(ModelFileError, InputError):
        info, tensors = read(tmp_path / "mutant.pkl", data)
        assert info.keys() == read(tmp_path / "good.pkl", GOOD)[0].keys()
        assert json.loads(json.dumps(plain(info)))["precond"] == "EDMPrecond"
        assert sum(t.nbytes for t in tensors.values()) <= len(data)
