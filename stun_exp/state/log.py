"""The log of a run: a file in its folder, and lines on the terminal; both take what modules log to their loggers."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from logging.handlers import MemoryHandler
from pathlib import Path

from stun_exp.state.artifacts import LOG
from stun_exp.utils.progress import console

MOST_WAITING = 10_000
"""Lines that are kept until the run's folder is known to be its own."""
_at_work: ContextVar[Path | None] = ContextVar("run", default=None)


class RunLog:
    """The log file of one run among those of this process; nothing is written before `open`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._waiting = MemoryHandler(MOST_WAITING, flushLevel=logging.CRITICAL + 1)
        self._waiting.addFilter(lambda record: _at_work.get() in (None, folder))

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Takes what is logged in the block while this run, or none in particular, is at work."""
        ours = logging.getLogger("stun_exp")
        ours.addHandler(self._waiting)
        try:
            yield
        finally:
            ours.removeHandler(self._waiting)
            if self._waiting.target is not None:  # else a refused run leaves nothing
                self._waiting.flush()
                self._waiting.target.close()
            self._waiting.setTarget(None)
            self._waiting.buffer.clear()
            self._waiting.close()

    def open(self) -> None:
        """Writes to run.log from here on, beginning with what was logged before."""
        file = _File(self.folder / LOG, encoding="utf-8", errors="backslashreplace", delay=True)
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._waiting.setTarget(file)
        self._waiting.flush()
        self._waiting.capacity = 1  # each line as it comes

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """What is logged in the block is of this run alone."""
        token = _at_work.set(self.folder)
        try:
            yield
        finally:
            _at_work.reset(token)


class _File(logging.FileHandler):
    """A file whose disk may be full: the run goes on without."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # it cannot even be opened
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.filters:
            console.print(f"warning: {self.baseFilename} cannot be written; the run goes on", style="yellow")
            self.addFilter(lambda _: False)  # no more of it


class _Terminal(logging.Handler):
    """Shows what is logged as plain lines, warnings in yellow."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            console.print(f"warning: {text}", style="yellow", markup=False)
        else:
            console.print(text, markup=False, soft_wrap=True)


@contextmanager
def logging_on() -> Iterator[None]:
    """Shows on the terminal what the package logs in the block, and leaves logging as it was."""
    ours = logging.getLogger("stun_exp")
    if any(isinstance(handler, _Terminal) for handler in ours.handlers):  # one run within another's block
        yield
        return
    with ExitStack() as after:
        after.callback(ours.setLevel, ours.level)
        after.callback(setattr, ours, "propagate", ours.propagate)
        ours.propagate = False  # else a handler of somebody's would say every line a second time
        ours.setLevel(logging.INFO)
        ours.addHandler(terminal := _Terminal())
        after.callback(ours.removeHandler, terminal)
        yield
