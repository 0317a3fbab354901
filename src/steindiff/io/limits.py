"""The most that a file may ask for, by name: far above what honest files need, and below what harms a machine.

A file is not trusted: it may name a picture of 10¹² pixels, a network of 10⁷ blocks, or unpack to a million times its size.
What it asks for is compared with these numbers before any memory is given to it. The variable STEINDIFF_LIMITS raises or lowers
them, as in STEINDIFF_LIMITS=image_pixels=500000000,labels=2000000.
"""

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from steindiff.errors import InputError, unknown_name

VARIABLE: Final = "STEINDIFF_LIMITS"
LIMITS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "file_bytes": 64 * 2**30,  # of a file of tensors; EDM2's largest network has 6 GB in float32
        "header_bytes": 32 * 2**20,  # of the description in front of the tensors
        "json_bytes": 64 * 2**20,  # of a JSON file; 50,000 seeds are half a megabyte
        "json_depth": 64,  # lists and objects within each other
        "digits": 40,  # of a whole number in JSON
        "values": 5_000_000,  # lists, entries and numbers of a training checkpoint
        "parameters": 4_000_000_000,  # of a network; EDM2's largest has 1.5 billion
        "event_size": 2**26,  # numbers of one image or latent, C·H·W
        "labels": 1_000_000,  # classes
        "image_pixels": 2**26,  # of one picture that is read
        "image_bytes": 2**28,  # of one picture or table of labels as it is packed, and of what stands before it in a tar
        "archive_members": 10_000_000,  # files in an archive
        "archive_bytes": 2**38,  # of all that is unpacked of one archive
        "dataset_bytes": 16 * 2**30,  # of all pictures in memory, one byte a pixel and channel
        "reference_bytes": 2**31,  # of one array of reference statistics; 16,384 features have as many
    }
)
"""Name and default of every limit."""


def most(name: str) -> int:
    """The limit of this name. Raises InputError where the variable names no limit, or gives no whole number."""
    changed = LIMITS[name]
    for entry in filter(None, os.environ.get(VARIABLE, "").split(",")):
        key, _, value = (part.strip() for part in entry.partition("="))
        if key not in LIMITS:
            raise unknown_name(f"limit in {VARIABLE}", key, LIMITS)
        if not value.isdecimal() or len(value) > LIMITS["digits"]:
            raise InputError(f"{VARIABLE} has {entry[:80]!r}: need NAME=NUMBER, a whole number, such as {key}={LIMITS[key]}")
        changed = int(value) if key == name else changed
    return changed


def within(name: str, value: int, what: str) -> int:
    """The value, where it keeps the limit of this name; `what` is what has so many.

    Raises:
        InputError: it is more; the error names the value, the limit, and how it is raised.

    Example:
        >>> within("labels", 2000000, "a label is")
        Traceback (most recent call last):
        steindiff.errors.InputError: a label is 2,000,000: more than 1,000,000 (STEINDIFF_LIMITS=labels=2000000 allows it)
    """
    limit = most(name)
    if value > limit:
        raise InputError(f"{what} {value:,}: more than {limit:,} ({VARIABLE}={name}={value} allows it)")
    return value
