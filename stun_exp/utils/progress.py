"""Progress on the terminal; quiet when standard error is not one."""

import gc
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)
T = TypeVar("T")


def track(items: Iterable[T], description: str) -> Iterator[T]:
    """The items, with a progress bar while they are worked on."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not shows_progress()) as progress:
        yield from progress.track(items, description=description)


def shows_progress() -> bool:
    """Whether anybody sees a progress bar: on a terminal, or in a notebook."""
    return console.is_terminal or console.is_jupyter


@contextmanager
def loading() -> Iterator[None]:
    """Libraries load in the block: prepared, and never looked through for garbage, which takes half a second."""
    prepare_libraries()
    if gc.get_freeze_count():  # loaded already; what runs left behind is to be collected
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def prepare_libraries() -> None:
    """Sets what other libraries read from the environment; call before they load.

    Silences other libraries' chatter, and their progress bars where there is no terminal.
    """
    # Threads that spin while they wait make small models a hundred times slower on a machine with other work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # On a CPU in 16 bits the code made for each shape of a product is kept, a thousand of them by default, and experts
    # get another number of tokens every time: memory grew by 8 MB a layer, for no time saved.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "16")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # It misses a kernel that it can do without, and says so in the middle of a run.
    logging.getLogger("bitsandbytes.backends").setLevel(logging.ERROR)
    if not console.is_terminal:
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
