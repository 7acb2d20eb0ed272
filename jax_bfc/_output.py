"""Writes files so that a failure leaves what was there before."""

import contextlib
import errno
import gzip
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from typing import IO, BinaryIO, cast

__all__ = ["check_writable", "replacing", "spool", "spool_of"]


def _is_special(path: str) -> bool:
    """Whether it is a device or a pipe, which is written to and never replaced."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def check_writable(path: str) -> None:
    """Finds out without writing whether :func:`replacing` can write the file.

    Raises:
        OSError: it cannot.
    """
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    if os.path.isdir(target) or path.endswith(os.sep):
        reason = errno.EISDIR
    elif os.path.exists(target) and not os.access(target, os.W_OK):
        reason = errno.EACCES
    elif not os.path.isdir(folder):
        reason = errno.ENOTDIR if os.path.exists(folder) else errno.ENOENT
    elif not _is_special(target) and not os.access(folder, os.W_OK | os.X_OK):
        reason = errno.EACCES
    else:
        return
    raise OSError(reason, os.strerror(reason), path)


def spool(path: str) -> IO[bytes]:
    """An unnamed file beside ``path``, for what is needed on the way to it."""
    target = os.path.realpath(path)
    folder = None if _is_special(target) else os.path.dirname(target)
    return tempfile.TemporaryFile(dir=folder)


@contextlib.contextmanager
def spool_of(path: str, file: BinaryIO) -> Iterator[IO[bytes]]:
    """What native code, which compresses nothing, writes to for :func:`replacing`'s
    ``file``: that itself, or an unnamed file that is copied to it at the end."""
    if not path.endswith(".gz"):
        yield file
        return
    with spool(path) as text:
        yield text
        text.seek(0)
        shutil.copyfileobj(text, file, 1 << 20)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of ``path`` at the block's end.

    An exception out of the block leaves ``path`` as it was. A link stays a link, an
    existing file's permissions are kept, and what goes to a name in ``.gz`` is
    compressed. A device or a pipe is written to directly.

    Raises:
        OSError: the file cannot be written.
    """
    name = os.fspath(path)
    check_writable(name)
    target = os.path.realpath(name)
    special = _is_special(target)
    written = target
    if not special:
        folder, base = os.path.split(target)
        written = os.path.join(folder, f".{base[:200]}.{secrets.token_hex(4)}.tmp")
    try:
        with open(written, "wb" if special else "xb") as raw:
            if not special and os.path.exists(target):
                os.fchmod(raw.fileno(), stat.S_IMODE(os.stat(target).st_mode))
            if name.endswith(".gz"):
                with gzip.GzipFile(
                    filename="", mode="wb", compresslevel=6, fileobj=raw
                ) as packed:
                    yield cast(BinaryIO, packed)
            else:
                yield raw
        if not special:
            os.replace(written, target)
    except BaseException:
        if not special:
            with contextlib.suppress(OSError):
                os.unlink(written)
        raise
