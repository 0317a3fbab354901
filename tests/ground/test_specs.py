"""Specs: what is read from the text, what is refused, and that nothing in it is executed."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from problems import PROPERTY
from steindiff import corrections, solvers
from steindiff.errors import InputError
from steindiff.specs import Call, Registry, parse, split


@dataclass(frozen=True)
class Thing:
    size: int = 1
    name: str = ""

    def __post_init__(self):
        if self.size < 0:
            raise InputError(f"size={self.size}: need size ≥ 0")


THINGS = Registry("thing", Thing, {"thing": Thing, "big": lambda: Thing(9)})


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("dpmpp_2m", Call("dpmpp_2m")),
        (" dpmpp_2m () ", Call("dpmpp_2m")),
        ("dpmpp_3m(exact=True)", Call("dpmpp_3m", (), {"exact": True})),
        ("energy(bands=8, moment=out/m.json)", Call("energy", (), {"bands": 8, "moment": "out/m.json"})),
        ("energy(bands=cosine(8), eta_max=1.5)", Call("energy", (), {"bands": "cosine(8)", "eta_max": 1.5})),
        ("chain(clamped, f(a=1, b=2))", Call("chain", ("clamped", "f(a=1, b=2)"))),
        ("f(a=(1, 2), b='x, y)')", Call("f", (), {"a": (1, 2), "b": "x, y)"})),
        ("f(c=-1e-3, d=inf, e=None)", Call("f", (), {"c": -1e-3, "d": float("inf"), "e": None})),
    ],
)
def test_specs_are_read(text, call):
    assert parse(text) == call


@pytest.mark.parametrize(
    "text", ["", "3m", "a b", "f(", "f)", "f(a=1", "f(a=[1)", "f(a=1)(b=2)x", "f(a=1, 2)", "f(a=1, a=2)", "f('x)"]
)
def test_malformed_specs_are_refused(text):
    with pytest.raises(InputError):
        parse(text)


def test_lists_are_split_outside_brackets_and_quotes():
    assert split("a,b(c=1,d=(2,3)), 'x,y' ,") == ["a", "b(c=1,d=(2,3))", "'x,y'", ""]
    for text in ("a(b", "a)b", "'a", "(a]"):
        with pytest.raises(InputError, match=r"close|closes"):
            split(text)


def test_nothing_is_executed():
    assert parse("f(a=__import__('os').getcwd())").options == {"a": "__import__('os').getcwd()"}


@PROPERTY
@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,5}", fullmatch=True), st.one_of(st.integers(), st.booleans(), st.text("a,b()[]'", max_size=8))
    )
)
def test_literals_come_back(options):
    text = "f(" + ", ".join(f"{k}={v!r}" for k, v in options.items()) + ")"
    assert parse(text) == Call("f", (), options)


def test_a_registry_makes_what_a_spec_names_and_passes_objects_on():
    thing = Thing(3)
    assert THINGS.names() == ("thing", "big")
    assert THINGS.make("thing(size=2)") == THINGS.make("thing(2)") == Thing(2)
    assert THINGS.make(thing) is thing
    assert THINGS.make("big") == Thing(9)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("thin", "did you mean 'thing'"),
        ("thing(length=2)", "takes size, name"),
        ("big(2)", "no options"),
        ("thing(size=-1)", "need size ≥ 0"),
        ("thing(size=text)", "size='text': write a number"),
        (3, "no thing"),
    ],
)
def test_a_registry_refuses_by_name(spec, message):
    with pytest.raises(InputError, match=message):
        THINGS.make(spec)


@pytest.mark.parametrize("word", ["false", "off", "no", "0", "'True'", "None"])
def test_a_switch_is_true_or_false_and_no_word(word):
    """Python takes any word for true: a solver would do the opposite of what is asked."""
    assert solvers.make("dpmpp_2m(lower_order_final=False)") != solvers.make("dpmpp_2m")
    with pytest.raises(InputError, match=r"lower_order_final=.*: write True or False"):
        solvers.make(f"dpmpp_2m(lower_order_final={word})")


@pytest.mark.parametrize(
    ("spec", "need"),
    [
        ("restart(times=2.5)", "times=2.5: write a whole number"),
        ("restart(steps=many)", "steps='many': write a number"),
        ("restart(times=True)", "times=True: write a number"),
    ],
)
def test_a_number_is_of_the_kind_of_its_default(spec, need):
    with pytest.raises(InputError, match=need):
        solvers.make(spec)


def test_corrections_and_bands_refuse_words_for_numbers():
    for spec in ("dcw(scale=x)", "energy(bands=random(seed=x))", "energy(bands=cosine(2.5))"):
        with pytest.raises(InputError, match=r"write a (whole )?number"):
            corrections.make(spec)
    assert corrections.make("clamped(gamma_max=None)") == corrections.make("literal")
    assert corrections.make("dcw(scale=1)") == corrections.make("dcw(scale=1.0)")
