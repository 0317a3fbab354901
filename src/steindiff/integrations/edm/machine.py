"""A pickle read as data: the opcodes of protocols 3 to 5, over values that cannot act.

The machine imports nothing and calls nothing that a file names. What a file asks for by name becomes what `globals_` gives for
it, or is refused. Long bytes stay in the file, as spans. Memory and time are bounded: an operation costs at most in proportion
to what the operations before it pushed, and `Limits` counts them.

Source: the opcodes are those that Python's `pickletools` documents.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from steindiff.integrations.edm.source import DAMAGED, Source, shown


@dataclass(frozen=True, eq=False)
class Global:
    """What stands for a name that a file asks for: how a call, `REDUCE` or `NEWOBJ`, becomes a value of ours."""

    name: str
    call: Callable[[tuple[Any, ...]], object]
    is_class: bool = False


@dataclass(eq=False)
class Stateful:
    """A value whose state may come after it, once (`BUILD`)."""

    state: object = field(default=None, init=False)


class Machine:
    """One run over one pickle."""

    def __init__(self, source: Source, globals_: Callable[[str, str], Global | None]) -> None:
        self.source, self.globals = source, globals_
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks below the marks
        self.memo: dict[int, Any] = {}
        self.text_bytes = 0

    def run(self) -> object:
        """The value of the pickle. Raises ModelFileError for whatever is not plainly one of a network."""
        source = self.source
        for _ in range(source.limits.operations):
            source.at = source.file.tell()
            code = source.read(1)[0]
            if code == _STOP:
                return self._end()
            action = _ACTIONS.get(code)
            if action is None:
                source.refuse(f"opcode {_REFUSED.get(code, f'0x{code:02x}, which is none')} has no place in a network's file")
            action(self)
        source.refuse(f"the pickle has more than {source.limits.operations:,} operations")

    def _end(self) -> object:
        value = self.pop()
        rest = self.source.size - self.source.file.tell()
        if self.stack or self.below or rest:
            self.source.refuse(f"the pickle ends with values left over, and {rest} bytes after it", DAMAGED)
        return value

    def pop(self) -> Any:
        """The value on top."""
        if not self.stack:
            self.source.refuse("the pickle takes a value where there is none", DAMAGED)
        return self.stack.pop()

    def top(self, *kinds: type) -> Any:
        """The value on top, of one of these types, which stays there."""
        if not self.stack or not isinstance(self.stack[-1], kinds):
            found = type(self.stack[-1]).__name__ if self.stack else "nothing"
            self.source.refuse(f"an operation for {' or '.join(k.__name__ for k in kinds)} finds {found}")
        return self.stack[-1]

    def to_mark(self) -> list[Any]:
        """The values above the last mark, which goes."""
        if not self.below:
            self.source.refuse("the pickle goes back to a mark where there is none", DAMAGED)
        values, self.stack = self.stack, self.below.pop()
        return values

    def tuple_of(self, count: int) -> None:
        """Replace the values on top by their tuple."""
        values = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(values)))

    def put(self, pairs: list[Any]) -> None:
        """Fill the dictionary on top by keys and values in turn."""
        into = self.top(dict)
        if len(pairs) % 2:
            self.source.refuse("a key has no value", DAMAGED)
        into.update((self.source.key(key), value) for key, value in zip(pairs[::2], pairs[1::2], strict=True))

    def text(self, form: str) -> None:
        """Push the text whose length comes next."""
        count = self.source.number(form)
        self.text_bytes += count
        if self.text_bytes > self.source.limits.text_bytes:
            self.source.refuse(f"the file holds more than {self.source.limits.text_bytes:,} bytes of text")
        try:
            self.stack.append(self.source.read(count).decode("utf-8", "surrogatepass"))
        except UnicodeDecodeError:
            self.source.refuse("a text is not UTF-8", DAMAGED)

    def integer(self, form: str) -> None:
        """Push the whole number whose length comes next."""
        count = self.source.number(form)
        if not 0 <= count <= 8:
            self.source.refuse(f"a whole number of {count:,} bytes, where 8 do")
        self.stack.append(int.from_bytes(self.source.read(count), "little", signed=True))

    def named(self, module: object, name: object) -> None:
        """Push what stands for a name."""
        found = self.globals(module, name) if isinstance(module, str) and isinstance(name, str) else None
        if found is None:
            wanted = ascii(f"{module}.{name}"[:200])[1:-1] if isinstance(module, str) and isinstance(name, str) else "no text"
            self.source.refuse(f"it asks for {wanted}, which the file of a network has no need of")
        self.stack.append(found)

    def line(self) -> str:
        """The text up to the end of the line, as `GLOBAL` has it."""
        data = self.source.file.readline(1000)
        if not data.endswith(b"\n"):
            self.source.refuse("a name has no end", DAMAGED)
        return data[:-1].decode("utf-8", "replace")

    def call(self, *, new: bool) -> None:
        """Replace a name and its arguments by the value of ours."""
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            self.source.refuse(f"it calls {shown(function)}, which is no name")
        if new and not function.is_class:
            self.source.refuse(f"it makes an object of {function.name}, which is no class")
        self.stack.append(function.call(arguments))

    def build(self) -> None:
        """Give the value on top its state."""
        state = self.pop()
        target = self.top(Stateful)
        if target.state is not None:
            self.source.refuse("an object is given its state twice")
        target.state = state

    def get(self, form: str) -> None:
        """Push a value of before."""
        index = self.source.number(form)
        if index not in self.memo:
            self.source.refuse(f"it refers to value {index} of before, which there is not", DAMAGED)
        self.stack.append(self.memo[index])

    def remember(self, index: int) -> None:
        """Keep the value on top for later."""
        self.memo[index] = self.top(object)

    def start(self) -> None:
        """The version, which comes first and again nowhere."""
        version = self.source.number("<B")
        if self.source.at != 0 or version not in (3, 4, 5):
            self.source.refuse(f"pickle protocol {version} at byte {self.source.at}; 3 to 5 are read, at byte 0")

    def mark(self) -> None:
        """A new stack on the old."""
        self.below.append(self.stack)
        self.stack = []

    def drop(self) -> None:
        """Leave the value on top, or the mark where none is above it."""
        if self.stack:
            self.stack.pop()
        else:
            self.to_mark()

    def push(self, value: object) -> None:
        """A value on top."""
        self.stack.append(value)


def _span(form: str) -> Callable[[Machine], None]:
    return lambda m: m.push(m.source.span(m.source.number(form)))


def _number(form: str) -> Callable[[Machine], None]:
    return lambda m: m.push(m.source.number(form))


def _frame(m: Machine) -> None:
    m.source.left(m.source.number("<Q"))


def _pop_mark(m: Machine) -> None:
    m.to_mark()


def _stack_global(m: Machine) -> None:
    name, module = m.pop(), m.pop()
    m.named(module, name)


def _one_item(m: Machine) -> None:
    value, key = m.pop(), m.pop()
    m.put([key, value])


def _append(m: Machine) -> None:
    value = m.pop()
    m.top(list).append(value)


def _appends(m: Machine) -> None:
    values = m.to_mark()
    m.top(list).extend(values)


def _add(m: Machine) -> None:
    values = m.to_mark()
    m.top(set).update(map(m.source.key, values))


_STOP: Final = ord(".")
_ACTIONS: Final[dict[int, Callable[[Machine], None]]] = {
    0x80: Machine.start,
    0x95: _frame,
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("K"): _number("<B"), ord("M"): _number("<H"), ord("J"): _number("<i"), ord("G"): _number(">d"),
    0x8A: lambda m: m.integer("<B"), 0x8B: lambda m: m.integer("<i"),
    0x8C: lambda m: m.text("<B"), ord("X"): lambda m: m.text("<I"), 0x8D: lambda m: m.text("<Q"),
    ord("C"): _span("<B"), ord("B"): _span("<I"), 0x8E: _span("<Q"), 0x96: _span("<Q"),
    ord("]"): lambda m: m.push([]), ord("}"): lambda m: m.push({}), ord(")"): lambda m: m.push(()),
    0x8F: lambda m: m.push(set()),
    0x85: lambda m: m.tuple_of(1), 0x86: lambda m: m.tuple_of(2), 0x87: lambda m: m.tuple_of(3),
    ord("t"): lambda m: m.push(tuple(m.to_mark())), ord("l"): lambda m: m.push(m.to_mark()),
    ord("("): Machine.mark, ord("0"): Machine.drop, ord("1"): _pop_mark,
    ord("a"): _append, ord("e"): _appends, ord("s"): _one_item, ord("u"): lambda m: m.put(m.to_mark()), 0x90: _add,
    ord("q"): lambda m: m.remember(m.source.number("<B")), ord("r"): lambda m: m.remember(m.source.number("<I")),
    0x94: lambda m: m.remember(len(m.memo)),
    ord("h"): lambda m: m.get("<B"), ord("j"): lambda m: m.get("<I"),
    ord("c"): lambda m: m.named(m.line(), m.line()), 0x93: _stack_global,
    ord("R"): lambda m: m.call(new=False), 0x81: lambda m: m.call(new=True), ord("b"): Machine.build,
}  # fmt: skip
_REFUSED: Final = {
    ord("i"): "INST", ord("o"): "OBJ", ord("P"): "PERSID", ord("Q"): "BINPERSID", 0x82: "EXT1", 0x83: "EXT2", 0x84: "EXT4",
    0x92: "NEWOBJ_EX", 0x91: "FROZENSET", 0x97: "NEXT_BUFFER", 0x98: "READONLY_BUFFER", ord("2"): "DUP", ord("I"): "INT",
    ord("L"): "LONG", ord("F"): "FLOAT", ord("S"): "STRING", ord("T"): "BINSTRING", ord("U"): "SHORT_BINSTRING",
    ord("V"): "UNICODE", ord("d"): "DICT", ord("g"): "GET", ord("p"): "PUT",
}  # fmt: skip
