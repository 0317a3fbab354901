"""Where calibrated tables are kept, and the seeds of the noise that they are made from."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from steindiff.errors import AccessError, InputError
from steindiff.io import folders, processes
from steindiff.io.files import plain, read_tensors, writable_file
from steindiff.io.names import file_name
from steindiff.solvers import Table
from steindiff.solvers.table import load_all, save_all

FIRST_SEED = 3_000_000_000
"""Calibration noise has seeds from here on, where no sample and no reference has any."""
_WORK = re.compile(r"(fine|\d+)\.safetensors")
_LONG = 60


@contextmanager
def keeping(path: Path) -> Iterator[Path]:
    """The folder beside a file of tables that keeps what is finished; it goes when the block ends well.

    Of what lies in that folder, only what a calibration has written is removed, and nothing through a link.

    Raises:
        InputError: another process makes this file; another user's cannot be replaced; a link or a file is where the folder
            should be.
        ModelFileError: the file is there, and holds no tables.
    """
    name = path.stem if len(path.stem) <= _LONG else file_name(path.stem)
    work = path.parent / f".{name}.parts"
    if work.is_symlink() or (work.exists() and not work.is_dir()):
        raise InputError(f"{work} is no folder of a calibration, but a link or a file: remove it, or name another file")
    with folders.locked_file(path):
        writable_file(path)
        if path.exists():
            load_all(path)
        yield work
        processes.barrier()
        if processes.rank() == 0:
            _discard(work)


def _discard(work: Path) -> None:
    for place, _, names in os.walk(work, topdown=False):
        folder = Path(place)
        for name in names if re.fullmatch("[0-9a-f]{16}", folder.name) else ():
            if _is_ours(folder / name):
                (folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # it holds something else
            folder.rmdir()


def _is_ours(path: Path) -> bool:
    """Whether a calibration has written a file: by its name and its header, or half of it by its name."""
    if not (_WORK.fullmatch(path.name) and folders.is_file(path)):
        return folders.is_half(path) or path.name == folders.LOCK  # which a kill has left
    try:
        read_tensors(path)
    except (ValueError, AccessError):
        return False
    return True


def kept_beside(path: Path, tables: Sequence[Table]) -> Path:
    """Write tables to a file; what it holds for other networks, scales, ranges or numbers of evaluations stays in it.

    Of several processes, the first writes.
    """

    def write() -> None:
        old = load_all(path) if path.exists() else []
        mine = {_place(table) for table in tables}
        save_all(path, [*(table for table in old if _place(table) not in mine), *tables])

    with folders.locked_file(path):
        processes.by_first(write)
    return path


def _place(table: Table) -> str:
    """What a table is for: no file needs two of the same."""
    solver = table.solver
    return str((plain(solver.purpose), table.nfe, solver.levels[0], solver.levels[-1]))
