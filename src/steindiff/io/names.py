"""Names of files, made of what a user or a file says: none of them leaves its folder."""

import hashlib
import re

from steindiff.errors import InputError

LONGEST = 200
"""Bytes of a name. File systems take 255; suffixes, and what a half-written file is called, need the rest."""
_LABEL = 60
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # on Windows, whatever follows the dot


def file_name(*labels: str | int) -> str:
    """Labels joined by hyphens, without what a file system or a shell would take amiss: a name, and never a path.

    A long label is cut, and ends in a digest of the whole; so do all of them where the name would be longer than `LONGEST`.
    Labels that differ only in signs that a name cannot have give one name: a key among the labels tells these apart.

    Example:
        >>> file_name("dpmpp_3m(exact=True)", "karras", 5, "tables/gamma.json")
        'dpmpp_3m(exact=True)-karras-5-tables_gamma.json'
        >>> file_name("../.."), file_name(""), file_name("x" * 300)
        ('_.._..', '_', 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx-98c26f63')
    """
    name = "-".join(_piece(str(label), _LABEL) for label in labels)
    if len(name.encode()) > LONGEST:
        name = "-".join(_piece(str(label), LONGEST // len(labels) - 1) for label in labels)
    taken_amiss = not name or name[0] in ".-" or name[-1] == "." or _RESERVED.fullmatch(name)
    return f"_{name}" if taken_amiss else name


def cut(name: str) -> str:
    """A name that is short enough for a file: a longer one ends in a digest of the whole."""
    return name if len(name.encode()) <= LONGEST else _piece(name, LONGEST)


def _piece(label: str, most: int) -> str:
    safe = re.sub(r"[^\w.()=,+-]+", "_", label).encode()
    if len(safe) <= most:
        return safe.decode()
    end = hashlib.sha256(label.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{safe[: max(0, most - 9)].decode(errors='ignore')}-{end}"


def checked_name(name: str, whose: str) -> str:
    """A name that a user gives to a file, as it is.

    Args:
        name: what the user says; spaces and letters of any script are welcome.
        whose: what an error calls it, such as "--name".

    Raises:
        InputError: it is no name but a path, is hidden or reserved, has signs that do not print, or is too long.
    """
    plain = name.isprintable() and not re.search(r'[/\\:*?"<>|]', name) and name == name.strip()
    if plain and name and name[0] not in ".-" and name[-1] != "." and not _RESERVED.fullmatch(name):
        if len(name.encode()) <= LONGEST:
            return name
        raise InputError(f"{whose} {name[:40]!r}… has {len(name.encode())} bytes: a file's name has {LONGEST} at most")
    raise InputError(f"{whose} {printable(name)!r}: need the name of a file, and no path, such as {file_name(name)!r}")


def printable(text: str, most: int = 100) -> str:
    """One line that any terminal, page or file can show: signs that do not print become �, and a long text is cut.

    Example:
        >>> printable("a" + chr(0) + "b" + chr(0xD800))
        'a�b�'
    """
    line = "".join(sign if sign.isprintable() else "�" for sign in text[: most + 1])
    return line if len(line) <= most else line[: most - 1] + "…"
