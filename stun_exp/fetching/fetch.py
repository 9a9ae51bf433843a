"""`stun fetch`: all that a run reads, brought to this machine, or into one folder for another, and loaded once."""

from collections.abc import Iterator
from pathlib import Path

from stun_exp.checkpoint.model import AGAIN, FILES
from stun_exp.config.settings import Settings
from stun_exp.data.hub import hub_cache, why_unreachable
from stun_exp.data.reading import NotHere, read_rows, read_set
from stun_exp.data.sets import DataSet
from stun_exp.evaluation.extras import fetch_extras
from stun_exp.evaluation.tasks import data_set_of
from stun_exp.fetching.repositories import fetch_data_set, fetch_repository


def fetch(settings: Settings, to: Path | None) -> Iterator[str]:
    """Fetches what a run with these settings reads, into the hub's own cache, or a folder that HF_HOME can name.

    Gives a line for each thing, once it has been loaded from where it now lies.

    Raises:
        ValueError: The hub does not answer, or has not what is asked for, or what came is not to be read.
        OSError: It could not be written.
    """
    if why := why_unreachable():
        raise ValueError(f"stun fetch: {why}; run it on a machine with a network, without HF_HUB_OFFLINE")
    cache = hub_cache() if to is None else to / "hub"
    count = 0
    for line in (*_benchmarks(settings, cache), *_calibration(settings, cache), *_model(settings, cache)):
        count += 1
        yield line
    for line in fetch_extras(settings.eval.definitions(), to):
        count += 1
        yield line
    if not count:
        yield "nothing to fetch: all that such a run reads comes with stun, or is a file of yours"
    elif to is not None:
        yield f"all of it is in {to}: take the folder along, and set HF_HOME to it there, and HF_HUB_OFFLINE=1"


def _benchmarks(settings: Settings, cache: Path) -> Iterator[str]:
    parts: dict[str, dict[DataSet, None]] = {}
    for definition in settings.eval.definitions():
        if (data_set := data_set_of(definition)) is not None:
            parts.setdefault(data_set.name, {})[data_set] = None
    for name, wanted in parts.items():
        folder = fetch_data_set(name, wanted, cache)
        for part in wanted:
            yield f"{part}: {_rows_in(part, folder, alone=len(wanted) == 1)}"


def _rows_in(part: DataSet, folder: Path, alone: bool) -> str:
    try:
        splits = read_set(part, [folder], alone)
    except NotHere as why:
        raise ValueError(
            f"{part}: was fetched to {folder}, and has no such part that can be read ({why or 'no file of it'}); "
            "the data set has changed, or needs a loader of its own: leave the benchmark out"
        ) from why
    return ", ".join(f"{len(rows):,} {split}" for split, rows in splits.items())


def _calibration(settings: Settings, cache: Path) -> Iterator[str]:
    for data_set in settings.calibration.data_sets():
        assert data_set.file is not None, "calibration reads single files"
        folder = fetch_data_set(data_set.name, [data_set], cache)
        if not (folder / data_set.file).is_file():
            raise ValueError(f"calibration.shard={data_set.file}: {data_set.name} has no such file; see its page")
        with read_rows(folder / data_set.file) as rows:
            yield f"{data_set}: {len(rows):,} documents"


def _model(settings: Settings, cache: Path) -> Iterator[str]:
    model = settings.model
    if not model.is_of_hub():
        return
    folder = fetch_repository(model.path, model.revision, FILES, cache, "model", AGAIN)
    found = model.model_copy(update={"path": str(folder), "revision": None}).open()
    yield f"{model.path} ({folder.name}): {found.num_parameters:,} parameters"
