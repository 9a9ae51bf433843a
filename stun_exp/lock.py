"""One process at a time in a run's folder."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

LOCK = "run.lock"


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Holds a run's folder for this process inside the block; ValueError that names the process that holds it.

    The system lets go of the lock when its process ends, however it ends; the file stays and says whose it was.
    """
    try:
        file = (out / LOCK).open("a+")
    except OSError as error:
        raise OSError(
            f"{out}: cannot be written ({error.strerror}); choose another folder with hydra.run.dir=DIR"
        ) from error
    with file:
        try:
            flock(file, LOCK_EX | LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ValueError(
                f"hydra.run.dir={out}: {_holder(file.read())} is at work there; wait for it or choose another folder"
            ) from error
        except OSError as error:  # some network disks have no locks
            raise OSError(
                f"{out}: cannot be locked ({error.strerror}), so two runs could meet there; choose a folder on another "
                "disk with hydra.run.dir=DIR"
            ) from error
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}) + "\n")
        file.flush()
        yield


def _holder(content: str) -> str:
    """The process that a lock's file names; it may be read before that has written its name."""
    try:
        holder = json.loads(content)
        return f"process {holder['pid']} on {holder['host']}"
    except ValueError:
        return "another process"
