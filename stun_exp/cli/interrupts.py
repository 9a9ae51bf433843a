"""What Ctrl-C and SIGTERM do to a command: it lets go of what it holds, says so in one line, and ends.

Imports nothing that takes time, so that a command can be stopped from its first moment on.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread, current_thread, main_thread
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_came: list[int] = []
"""The signal that came, if one did."""


class Stopped(KeyboardInterrupt):
    """A signal came; no `except Exception` keeps it from what is to be closed, unlocked and deleted."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def stoppable(say: Callable[[], str] = lambda: "stopped") -> Iterator[None]:
    """Ends the process with one line on stderr, and 130 or 143 as shells count, if it is told to stop in the block.

    A second signal ends it at once.
    """
    # What is ignored stays so: a shell's background processes do not end with Ctrl-C in its terminal.
    numbers = SIGNALS if current_thread() is main_thread() else ()  # no other thread may say what signals do
    before = {number: handler for number in numbers if (handler := signal.getsignal(number)) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, _stop)
    try:
        yield
    except KeyboardInterrupt as stop:
        _end(getattr(stop, "number", signal.SIGINT), say)
    except SystemExit as end:
        if end.code != signal.SIGTERM:
            raise
        _end(signal.SIGTERM, say)  # Ray, once it is loaded, answers the signal by this
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) != signal.SIG_DFL:  # no signal came
                signal.signal(number, handler)


def spare_workers() -> None:
    """Keeps Ctrl-C from joblib's processes, which would each print where they were: the command ends them, in silence.

    A terminal sends it to them too. They inherit what this thread blocks; another thread takes it for this process.
    """
    from multiprocessing import resource_tracker

    from joblib.externals.loky.backend import resource_tracker as of_joblib

    # Each unblocks the signal once it has started a process of its own, so they start first.
    resource_tracker.ensure_running()
    of_joblib.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    Thread(target=_take, daemon=True).start()


def _take() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    Event().wait()


def _stop(number: int, frame: FrameType | None) -> None:
    for other in SIGNALS:
        if signal.getsignal(other) != signal.SIG_IGN:
            signal.signal(other, signal.SIG_DFL)
    _came.append(number)
    raise Stopped(number)


def stop_if_told() -> None:
    """Raises Stopped if a signal came before: what fails after it, as it is passed on, is no failure to be told."""
    if _came:
        raise Stopped(_came[0])


def _end(number: int, say: Callable[[], str]) -> None:
    print(say(), file=sys.stderr)
    sys.exit(128 + number)
