"""One process at a time in a run's folder."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from stat import S_ISREG
from typing import TextIO

LOCK = "run.lock"


@contextmanager
def run_lock(out: Path) -> Iterator[None]:
    """Holds a run's folder for this process inside the block; ValueError that names the process that holds it.

    The system lets go of the lock when its process ends, however it ends; the file stays and says whose it was. A file
    of that name that is none of ours is a ValueError too, and stays as it is.
    """
    with _opened(out / LOCK) as file:
        try:
            flock(file, LOCK_EX | LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"hydra.run.dir={out}: {_holder(file.read())} is at work there; wait for it or choose another folder"
            ) from error
        except OSError as error:  # some network disks have no locks
            raise OSError(
                f"{out}: cannot be locked ({error.strerror}), so two runs could meet there; choose a folder on another "
                "disk with hydra.run.dir=DIR"
            ) from error
        if (content := file.read()) and not _is_ours(content):
            raise _not_ours(out / LOCK)
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}) + "\n")
        file.flush()
        yield


def _opened(file: Path) -> TextIO:
    """The lock's file, to read and to add to; a pipe would keep its reader waiting, and a link lead elsewhere."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if file.is_symlink() or file.exists():
            raise _not_ours(file) from error
        raise OSError(
            f"{file.parent}: cannot be written ({error.strerror}); choose another folder with hydra.run.dir=DIR"
        ) from error
    if not S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_ours(file)
    return os.fdopen(descriptor, "r+", errors="replace")


def _not_ours(file: Path) -> ValueError:
    return ValueError(
        f"{file}: cannot be opened, or is not the file with which a run holds its folder; move it away, or choose "
        "another folder with hydra.run.dir=DIR"
    )


def _is_ours(content: str) -> bool:
    try:
        holder = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(holder, dict) and holder.keys() == {"pid", "host"}


def _holder(content: str) -> str:
    """The process that a lock's file names; it may be read before that has written its name."""
    if not _is_ours(content):
        return "another process"
    holder = json.loads(content)
    return f"process {holder['pid']} on {holder['host']}"
