"""One tiny model, runs of it to damage, and what a damaged run may and may not do."""

import ctypes
import io
import json
import os
import re
import signal
import stat
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from shutil import copytree
from types import FrameType
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from stun_exp.cli.main import CONF, job
from stun_exp.config.build import ConfigError, build

SEED, CASES = os.environ.get("STUN_FUZZ_SEED", "0"), int(os.environ.get("STUN_FUZZ_CASES", "16"))
"""Of each kind; more of them, or others, are for hunting."""
SECONDS = 20
MOST_LINES, MOST_CHARACTERS = 12, 1200
STAGE = re.compile(r"^\w+ +[\d.]+ s +")
BASE = (
    *("model=local", "model.device=cpu", "calibration=local", "eval=none", "cache=none", "save=true", "name=fuzz"),
    *("calibration.sequence_length=16", "calibration.num_sequences=2", "calibration.batch_size=2"),
    *("expert_pruner=frequency", "allocation=uniform", "unstructured_pruner=wanda", "sparsity=0.4"),
)
CACHED = (*(text for text in BASE if text != "cache=none"), "cache=folder")
PLANNED = tuple("expert_pruner=from_plan" if text == "expert_pruner=frequency" else text for text in BASE)
_COMPOSED: dict[tuple[str, ...], DictConfig] = {}


class Hangs(BaseException):
    """A command that was not done in time."""


@dataclass
class Ended:
    """How a command ended."""

    code: int
    said: str
    """On stderr, without the lines that tell of stages."""
    crash: str = ""

    @property
    def lines(self) -> list[str]:
        return [line for line in self.said.splitlines() if line.strip()]


def composed(overrides: Iterable[str]) -> DictConfig:
    """The config of these overrides, Hydra's part included, a copy of one composed once."""
    key = tuple(overrides)
    if key not in _COMPOSED:
        with initialize_config_dir(str(CONF), version_base="1.3", job_name="stun"):
            _COMPOSED[key] = compose("config", list(key), return_hydra_config=True)
    return deepcopy(_COMPOSED[key])


def stun(out: Path, values: Mapping[str, Any], overrides: Iterable[str] = BASE) -> Ended:
    """Runs what the command runs, with settings as they are after its command line was read."""
    cfg = filled(values, overrides)
    out.mkdir(parents=True, exist_ok=True)
    with open_dict(cfg):
        cfg.hydra.mode = "RUN"
        cfg.hydra.runtime.output_dir = str(out)
        HydraConfig.instance().set_config(cfg)
        del cfg["hydra"]
    return ended(lambda: job(cfg))


def built(out: Path, values: Mapping[str, Any], overrides: Iterable[str] = BASE) -> Ended:
    """Checks the settings alone."""
    cfg = filled(values, overrides)
    with open_dict(cfg):
        HydraConfig.instance().set_config(cfg)
        del cfg["hydra"]
    return ended(lambda: build(cfg))


def filled(values: Mapping[str, Any], overrides: Iterable[str]) -> DictConfig:
    """The config of these overrides, with these values in it, whatever they are."""
    cfg = composed(overrides)
    with open_dict(cfg):
        for key, value in values.items():
            OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    return cfg


def ended(command: Callable[[], Any]) -> Ended:
    """How a command ends, in this process."""
    code, crash, err = 0, "", io.StringIO()
    with redirect_stderr(err), redirect_stdout(io.StringIO()), warnings.catch_warnings(), in_time():
        warnings.simplefilter("ignore")
        try:
            command()
        except ConfigError as error:
            print(*error.mistakes, sep="\n", file=sys.stderr)
            code = 2
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except Hangs as error:
            crash = "hangs: " + "".join(traceback.format_exception(error)[-4:])
        except BaseException as error:
            crash = "".join(traceback.format_exception(error))
    text = "\n".join(line for line in err.getvalue().splitlines() if not STAGE.match(line))
    return Ended(code, text, crash)


@contextmanager
def in_time() -> Iterator[None]:
    """Raises Hangs where the block is after so many seconds."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hangs

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS, 1)  # once more, should the first be swallowed
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def as_anybody() -> Iterator[None]:
    """Takes from this thread root's right to read and write whatever a file's mode says."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, caps = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, caps) == 0
    before = caps[0]
    caps[0] = before & ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, caps) == 0
    try:
        yield
    finally:
        caps[0] = before
        assert libc.capset(header, caps) == 0


def everything(*folders: Path) -> dict[str, Any]:
    """All that lies in folders, by its path: a digest of a file, and what else is there."""
    found: dict[str, Any] = {}
    for folder in folders:
        for at, names, files in os.walk(folder):
            for path in (Path(at, name) for name in (*names, *files)):
                mode = path.lstat().st_mode
                if stat.S_ISREG(mode):
                    found[str(path)] = sha256(path.read_bytes()).hexdigest()
                elif stat.S_ISLNK(mode):
                    found[str(path)] = f"-> {os.readlink(path)}"
                else:
                    found[str(path)] = stat.S_IFMT(mode)
    return found


def result(out: Path) -> dict[str, Any]:
    """What a run has decided and made."""
    report = json.loads((out / "report.json").read_text())
    weights = {file.name: sha256(file.read_bytes()).hexdigest() for file in (out / "checkpoint").glob("*.safetensors")}
    parts = {key: report[key] for key in ("experts", "metrics", "recovery", "skipping", "export")}
    return parts | {"weights": weights, "achieved": report["sparsity"]["achieved"]}


@dataclass
class World:
    """A model, text and runs, to be copied before they are damaged."""

    home: Path
    results: dict[str, Any] = field(default_factory=dict)

    def copy(self, to: Path, *names: str) -> Path:
        for name in names:
            copytree(self.home / name, to / name, symlinks=True)
        return to

    def values(self, at: Path) -> dict[str, Any]:
        return {"model.path": str(at / "model"), "calibration.path": str(at / "text/text.jsonl")}


def pruned(out: Path) -> bool:
    """Whether a run has begun with the weights."""
    file = out / "journal.jsonl"
    return file.is_file() and b'"stage": "prune"' in file.read_bytes()


def complaint(
    ended: Ended,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    named: Iterable[str],
    own: Callable[[str], bool] = lambda path: False,
) -> str:
    """What no command may do, whatever is wrong; "" if it did none of it."""
    if ended.crash:
        return ended.crash
    if "Traceback" in ended.said:
        return "a traceback"
    if lost := [path for path in before if before[path] != after.get(path) and not own(path)]:
        return f"changed or lost: {lost}"
    if ended.code == 0:
        return ""
    if ended.code not in (1, 2):
        return f"exit code {ended.code}"
    if not 1 <= len(ended.lines) <= MOST_LINES or max(map(len, ended.lines)) > MOST_CHARACTERS:
        return "too much said, or too little"
    return "" if any(name in ended.said for name in named) else "says not where"
