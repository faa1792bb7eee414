"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["MARK", "replacing"]

# In the name of each temporary file, so that one that a killed process has left is known for what it is.
MARK = ".velot-tmp-"
# Characters that a temporary file's name has of that of its file: names are bounded, at 255 bytes mostly.
STEM = 40


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Hand out a temporary file in the same folder, which takes the place of ``path`` once it is complete.

    Whatever happens, ``path`` is complete or what it was before. The temporary file goes when something fails. If the
    process is killed it stays, as ``.{name}.velot-tmp-{random}{suffix}``. A link is followed: the file that it points
    to is replaced. The permissions are those that the file had, or those of a new file. A pipe is written to directly.
    An OSError names ``path`` and the reason.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.stem[:STEM]}{MARK}{secrets.token_hex(4)}{target.suffix}")
    try:
        _check_writable(target)
        yield temporary
        _keep(temporary, target)
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        with suppress(OSError):  # it may never have been made, and must not hide what went wrong
            temporary.unlink()


def _check_writable(target: Path) -> None:
    """Refuse what an ordinary write would refuse: a file that is there, but may not be written to."""
    if target.is_dir():
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if target.exists() and not os.access(target, os.W_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def _keep(temporary: Path, target: Path) -> None:
    """Put the temporary file in the place of the target, once all of it is on the disk."""
    # A disk over the network may say only now that it is full.
    descriptor = os.open(temporary, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if target.exists():
        with suppress(OSError):
            os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
    os.replace(temporary, target)


def _explained(error: OSError, path: Path) -> OSError:
    """Return an error of the same kind that names the file which was meant, and says what to do."""
    reason = error.strerror or str(error)
    text = f"{path} could not be written, and is as it was before: {reason}"
    with suppress(OSError):
        free = shutil.disk_usage(path.absolute().parent).free
        text += f" ({free / 2**20:,.0f} MiB are free there)"
    return OSError(text) if error.errno is None else OSError(error.errno, text)
