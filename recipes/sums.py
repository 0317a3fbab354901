"""The SHA-256 of the shipped files that have no seal in their header, by path in the package: `python -m recipes.sums`.

A file that is written anew has a seal, and needs no entry. The files without one stay as they are, since studies and tables
name them by their digest.
"""

from safetensors import safe_open

from steindiff.io import jsons
from steindiff.io.digests import PACKAGE, SUMS, sha256
from steindiff.io.files import write_json


def sums() -> dict[str, str]:
    """The digest of every shipped file of tensors that has no seal."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            about = jsons.parse(file.metadata()["steindiff"])
        if jsons.SEAL not in about:
            found[path.relative_to(PACKAGE).as_posix()] = sha256(path)
    return found


if __name__ == "__main__":
    write_json(SUMS, sums())
