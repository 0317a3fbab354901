"""JSON that somebody else wrote: bounded in size and depth, each key once, every number finite; and JSON with a seal.

A sealed object ends with the SHA-256 of all else in it, by value: what a reader sees is what was written, whatever the layout.
"""

import hashlib
import json
from collections.abc import Iterable
from operator import ne
from typing import Any, Final

from steindiff.io import limits

SEAL: Final = "file_sha256"
"""The entry of a sealed object or header, which covers all others."""


def parse(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is no JSON in UTF-8, is too large or too deep, has a key twice, or a number that is not finite.
    """
    limits.within("json_bytes", len(text), "its JSON has bytes:")
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_int=_whole, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError(f"its JSON nests deeper than {limits.most('json_depth')} lists and objects") from None
    _check_depth(value)
    return value


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """The object with its seal; values are those that JSON has."""
    bare = {key: entry for key, entry in value.items() if key != SEAL}
    return {**bare, SEAL: _digest(bare)}


def unsealed(value: Any) -> Any:
    """The object without its seal; anything without one as it is. Raises ValueError where the seal is another object's."""
    if not isinstance(value, dict):
        return value
    seal, bare = apart(value)
    if seal not in (None, _digest(bare)):
        raise ValueError("damaged: its digest differs from that of its entries")
    return bare


def apart(value: dict[str, Any]) -> tuple[object, dict[str, Any]]:
    """The seal, None where there is none, and all else. Raises ValueError where the seal's own name is damaged."""
    near = [key for key in value if len(key) == len(SEAL) and sum(map(ne, key, SEAL)) == 1]
    if near:
        raise ValueError(f"damaged: its digest differs in its name, {near[0]!r}")
    return value.get(SEAL), {key: entry for key, entry in value.items() if key != SEAL}


def _digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"its JSON has the key {key[:80]!r} twice")
        found[key] = value
    return found


def _whole(text: str) -> int:
    if len(text) > 19:  # more than 64 bits have
        limits.within("digits", len(text.lstrip("-")), "a whole number in its JSON has digits:")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not abs(value) < float("inf"):
        raise ValueError(f"its JSON has the number {text[:40]}: need finite ones")
    return value


def _check_depth(value: Any) -> None:
    """Raise ValueError where lists and objects nest too deep; without recursion."""
    layer, most = [value], limits.most("json_depth")
    for _ in range(most + 1):
        layer = [entry for part in layer if isinstance(part, dict | list) for entry in _inside(part)]
        if not layer:
            return
    raise ValueError(f"its JSON nests deeper than {most} lists and objects")


def _inside(part: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return part.values() if isinstance(part, dict) else part
