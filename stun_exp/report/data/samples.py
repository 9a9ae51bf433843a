"""How runs did on each item of their benchmarks, from the samples.jsonl that lies beside a report."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stun_exp.utils.json_files import read_regular
from stun_exp.utils.names import shortened

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SAMPLES = "samples.jsonl"
MOST_BYTES_TOLD = 200
"""Of what is wrong with a damaged file."""
NAMED_ITEMS = 5
"""Items that an error names before it counts the rest."""


class Items(NamedTuple):
    """One run on one benchmark, item by item."""

    ids: tuple[tuple[str, int, str], ...]
    """Task, number and hash, in order."""
    values: "NDArray[np.float64]"


def read_samples(folder: Path, metrics: Collection[str]) -> Mapping[str, Items] | None:
    """The items of those metrics that have any; None if the run left no samples.

    Args:
        folder: The run's own.
        metrics: Each as `benchmark/metric,filter`.

    Raises:
        ValueError: The file is damaged.
    """
    import numpy as np

    try:
        content = read_regular(folder / SAMPLES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{folder / SAMPLES}: cannot be read ({error.strerror})") from error
    wanted = {tuple(key.split("/", 1)): list[tuple[tuple[str, int, str], float]]() for key in metrics}
    try:
        lines = content.decode().splitlines()
        for row in json.loads(f"[{','.join(lines)}]"):  # at once: line by line takes twice as long
            items = wanted.get((row["benchmark"], row["metric"]))
            if items is not None:
                items.append(((str(row["task"]), int(row["doc"]), str(row["hash"])), float(row["value"])))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        why = shortened(repr(error), MOST_BYTES_TOLD)
        raise ValueError(f"{folder / SAMPLES}: damaged ({why}); run it again, or delete the file") from error
    found = {}
    for key, unsorted in zip(metrics, wanted.values(), strict=True):
        if unsorted:
            unsorted.sort(key=lambda item: item[0])
            ids, values = zip(*unsorted, strict=True)
            found[key] = Items(ids, np.array(values, dtype=np.float64))
    return found


def check_same_items(key: str, by_run: Mapping[str, Items]) -> None:
    """ValueError that names the items which two runs do not share, if there are any."""
    (first, expected), *others = by_run.items()
    for name, items in others:
        if items.ids == expected.ids:
            continue
        apart = sorted({(task, doc) for task, doc, _ in set(items.ids) ^ set(expected.ids)})
        more = f" and {len(apart) - NAMED_ITEMS} more" if len(apart) > NAMED_ITEMS else ""
        shown = ", ".join(f"{task} {doc}" for task, doc in apart[:NAMED_ITEMS])
        raise ValueError(
            f"{key}: {first} and {name} did not answer the same items: {shown}{more} differ or are in one alone; so no "
            "test can pair them, their data or prompts are others; give only runs that agree"
        )
