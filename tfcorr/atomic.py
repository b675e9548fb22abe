"""Files and folders that are whole or not there, whatever happens while they are written.

What is written gets a name of its own beside its place (``.tfcorr-*.part``), is synchronised to the disk, and
only then renamed. Whoever reads sees the old content or the new one. After an error nothing is left behind;
after a kill or a power cut a hidden file may be, which `remove_leftovers` takes away.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from tfcorr.errors import TfcorrError

__all__ = [
    "WriteError",
    "append_line",
    "check_folder",
    "remove_leftovers",
    "replacing",
    "replacing_folder",
    "write_bytes",
    "write_text",
]

LEFTOVERS = ".tfcorr-*.part"
"""What a killed process may leave beside its outputs."""

_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
# What may happen to a file while others write to it for us; an error of another kind is not about the target.
_WHILE_WRITING = {*_FULL, errno.EFBIG, errno.EIO, errno.EROFS}
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


class WriteError(TfcorrError, OSError):
    """A file or folder could not be written; what was there before is untouched.

    Attributes:
        path: as the caller named it.
        problem: what went wrong.
        errno: of the system's error, or None.
        is_full: whether there is no space left for it.
    """

    def __init__(self, path: str | os.PathLike, problem: str, number: int | None = None):
        super().__init__(f"{os.fspath(path)}: {problem}")
        self.path = os.fspath(path)
        self.problem = problem
        self.errno = number

    @classmethod
    def of(cls, path: str | os.PathLike, error: OSError) -> WriteError:
        """The error for a file that an error of the system kept from being written."""
        if isinstance(error, cls):
            return error
        number = _number(error)
        reason = _FULL.get(number) or error.strerror or str(error)
        return cls(path, f"cannot be written: {reason}", number)

    @property
    def is_full(self) -> bool:
        return self.errno in _FULL


def _number(error: OSError) -> int | None:
    # HDF5 tells the system's error in its message alone.
    told = re.search(r"errno = (\d+)", str(error)) if error.errno is None else None
    return int(told[1]) if told else error.errno


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike,
    *,
    overwrite: bool = True,
    previous: str | os.PathLike | None = None,
) -> Iterator[Path]:
    """Gives an empty file to write to, which takes its place at the end unless an error is raised.

    A symbolic link is followed, so that it still points to the file afterwards. Rights are those that the
    block gives to the file, else those of the file that is replaced, else those of any new file.

    Args:
        path: the target; its folder exists.
        overwrite: whether a file that is there may be replaced.
        previous: where the file that is replaced goes, on the same file system; None removes it. If the
            process is killed between these two renames, the target is missing and `previous` is whole.

    Raises:
        WriteError: the file cannot be written, or is there and is not to be overwritten; or, within the
            block, the disk was full or failed.
    """
    target = Path(os.path.realpath(path))
    try:
        mode = _mode(target) if _is_replaceable(path, target) else None
        part = _new_file(target.parent)
        new = _mode(part)
    except OSError as error:
        raise WriteError.of(path, error) from error
    try:
        try:
            yield part
        except OSError as error:
            if isinstance(error, WriteError) or _number(error) not in _WHILE_WRITING:
                raise
            raise WriteError.of(path, error) from error
        try:
            _synchronise(part)
            if mode is not None and _mode(part) == new:
                os.chmod(part, mode)
            if not overwrite and target.exists():
                raise WriteError(path, "is there already and is not to be overwritten", errno.EEXIST)
            if previous is not None and target.exists():
                os.replace(target, previous)
            os.replace(part, target)
        except OSError as error:
            raise WriteError.of(path, error) from error
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise
    _synchronise_folder(target.parent)


def _is_replaceable(path: str | os.PathLike, target: Path) -> bool:
    """Whether there is a file; anything else in its place, such as /dev/null, is refused."""
    if not target.exists():
        return False
    if not target.is_file():
        raise WriteError(path, f"is {'a folder' if target.is_dir() else 'not a regular file'}; name a file")
    return True


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _new_file(folder: Path) -> Path:
    part = folder / f".tfcorr-{secrets.token_hex(8)}.part"
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    return part


def _synchronise(path: Path) -> None:
    # Windows synchronises only what could be written to.
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _synchronise_folder(folder: Path) -> None:
    # The rename has happened and cannot fail any more; some file systems cannot synchronise a folder.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_bytes(path: str | os.PathLike, data: bytes | memoryview, *, overwrite: bool = True) -> None:
    """Writes a file completely or not at all; see `replacing`.

    Raises:
        WriteError: if that fails; nothing is left behind then, and an earlier file is untouched.
    """
    with replacing(path, overwrite=overwrite) as part, open(part, "wb") as file:
        file.write(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file in UTF-8 completely or not at all; its folder is made if it is missing.

    Raises:
        WriteError: if that fails.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError.of(path, error) from error
    write_bytes(path, text.encode())


def append_line(path: str | os.PathLike, line: str, *, synchronise: bool = False) -> None:
    """Appends a line to a text file; it stands alone, even where a kill left half a line before.

    Args:
        path: of the file, made if it is missing.
        line: without its end.
        synchronise: whether the line has to be on the disk afterwards.

    Raises:
        WriteError: if that fails; half of the line may be there then.
    """
    try:
        with open(path, "ab+") as file:
            broken = False
            if file.tell():
                file.seek(-1, os.SEEK_END)
                broken = file.read(1) != b"\n"
            file.write((b"\n" if broken else b"") + line.encode() + b"\n")
            if synchronise:
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise WriteError.of(path, error) from error


def check_folder(path: str | os.PathLike) -> None:
    """Finds out before long work whether `replacing_folder` could write this folder.

    Raises:
        WriteError: as `replacing_folder`, as far as it can be known before.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_dir():
        raise WriteError(path, "is a file, expected a folder or nothing")
    if target.is_dir() and os.path.ismount(target):
        raise WriteError(path, "is a mount point, which cannot be replaced; name a folder in it")
    parent = next(folder for folder in target.parents if folder.exists())
    if not parent.is_dir():
        raise WriteError(path, f"cannot be written: {str(parent)!r} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise WriteError(path, f"cannot be written: no permission to write in the folder {str(parent)!r}")


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike, *, keep: bool = False) -> Iterator[Path]:
    """Gives an empty folder to write into, which takes its place at the end unless an error is raised.

    An earlier folder is exchanged with the new one in one step where the system can (Linux), else by two
    renames.

    Args:
        path: the folder to be; parents are made.
        keep: whether what the earlier folder holds beside the new files stays.

    Raises:
        WriteError: the folder cannot be written or replaced, as it is a mount point; or, within the block,
            the disk was full or failed.
    """
    target = Path(os.path.realpath(path))
    part = target.parent / f".tfcorr-{secrets.token_hex(8)}.part"
    check_folder(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.mkdir()
        if target.is_dir():
            shutil.copymode(target, part)
    except OSError as error:
        raise WriteError.of(path, error) from error
    try:
        try:
            yield part
        except OSError as error:
            if isinstance(error, WriteError) or _number(error) not in _WHILE_WRITING:
                raise
            raise WriteError.of(path, error) from error
        try:
            for file in part.rglob("*"):
                (_synchronise_folder if file.is_dir() else _synchronise)(file)
            if keep and target.is_dir():
                _keep_others(target, part)
            _synchronise_folder(part)
            _put_in_place(part, target)
        except OSError as error:
            raise WriteError.of(path, error) from error
        _synchronise_folder(target.parent)
    finally:
        # The new folder after an error; the old one, if they were exchanged.
        shutil.rmtree(part, ignore_errors=True)


def _keep_others(old: Path, new: Path) -> None:
    """Gives a new folder what the old one has beside: the same files under a second name where possible."""

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target, follow_symlinks=False)
        except (NotImplementedError, OSError):
            shutil.copy2(source, target, follow_symlinks=False)

    for entry in os.scandir(old):
        place = new / entry.name
        if os.path.lexists(place):
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.copytree(entry.path, place, symlinks=True, copy_function=link)
        elif entry.is_file() or entry.is_symlink():
            link(entry.path, os.fspath(place))


def _put_in_place(part: Path, target: Path) -> None:
    if not target.exists():
        os.rename(part, target)
    elif not _exchange(part, target):
        # Not the name of a leftover: for a moment this is the only one.
        old = target.with_name(f".{target.name}.before-{secrets.token_hex(4)}")
        os.rename(target, old)
        try:
            os.rename(part, target)
        except OSError:
            os.rename(old, target)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names in one step; False where the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    names = os.fsencode(one), os.fsencode(other)
    return renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0


def remove_leftovers(folder: str | os.PathLike, *, older_than: float = 3600.0) -> int:
    """Removes what killed processes left in a folder (not in its subfolders).

    Args:
        folder: may be missing.
        older_than: seconds since the last change; 0 only where no other process writes.

    Returns:
        How many were removed.
    """
    removed = 0
    for path in Path(folder).glob(LEFTOVERS):
        with contextlib.suppress(OSError):
            if time.time() - path.lstat().st_mtime < older_than:
                continue
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            removed += 1
    return removed
