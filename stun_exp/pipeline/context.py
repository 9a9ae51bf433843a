"""What all stages of a run share: its folder, its journal, the cache, its costs, its warnings and its log."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Generic, TypeVar

from stun_exp.checkpoint.shards import INDEX
from stun_exp.config.component import Component
from stun_exp.config.settings import STAGES, WEIGHT_STAGES, RunSpec, since
from stun_exp.state.artifacts import ARTIFACTS
from stun_exp.state.cache import Store
from stun_exp.state.computed import computed_once
from stun_exp.state.costs import Costs, StageCost
from stun_exp.state.device import circumstances
from stun_exp.state.fingerprint import components, digests, fingerprint, versions
from stun_exp.state.finished import Kept
from stun_exp.state.identity import Digests
from stun_exp.state.journal import Journal
from stun_exp.state.lock import run_lock
from stun_exp.state.log import RunLog, logging_on
from stun_exp.utils.json_files import write_json

TRAINING = "training tokens"
"""Among a run's inputs, the text of a recovery."""
UNTRAINED = STAGES[: STAGES.index("recover")]
"""Stages that it has no part in."""
MEASURING = STAGES[STAGES.index("evaluate") :]
"""Stages that lm-eval has a part in."""
T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage(Generic[T]):
    """A part of a run: what it is called, and what becomes of its result."""

    name: str
    result: type[T] | None = None
    """The dataclass that it gives, if the journal keeps it for a run that is interrupted."""
    cached: bool = False
    """Whether other runs of the same fingerprint take its result from the cache."""
    warnings: Callable[[T], Iterable[str]] = lambda result: ()
    artifacts: Callable[[T], Mapping[str, Any]] = lambda result: {}
    """The JSON files that it leaves in the run's folder, by their names there."""


class RunContext:
    """One run at work. `stage` is how all of its parts are gone through."""

    def __init__(self, spec: RunSpec, choices: Mapping[str, str | None]):
        self.spec = spec
        self.settings = spec.settings
        self.out = spec.out
        self.choices = choices
        self.device = spec.settings.model.torch_device()
        self.costs = Costs(self.device)
        self.cost = StageCost()
        """Of the stage that is gone through."""
        self.warnings = list(spec.warnings)
        self.store = Store(spec.settings.cache, self.warn)
        self.digests = Digests(self.store)
        self.inputs: dict[str, Any] = {}
        """What the run works on, known by its content."""
        self.own: set[str] = set()
        """The files in the folder that runs have written there."""
        self._fingerprints: dict[str, str] = {}
        self._log = RunLog(spec.out)
        self._journal: Journal | None = None
        self._recorded = time.perf_counter()
        self._earlier: dict[str, StageCost] = {}

    @classmethod
    @contextmanager
    def open(cls, spec: RunSpec, choices: Mapping[str, str | None]) -> "Iterator[RunContext]":
        """A run that holds its folder, which is made, inside the block; ValueError if another process holds it."""
        spec.out.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.enter_context(run_lock(spec.out))
            stack.enter_context(logging_on())
            run = cls(spec, choices)
            stack.enter_context(run._log.attached())
            yield run

    @property
    def keeps_checkpoint(self) -> bool:
        """Whether the written checkpoint stays when the run is over."""
        return self.settings.save or self.settings.export.keeps_checkpoint

    @property
    def sparsity(self) -> float:
        """Share of the weights in scope that is to be gone in total."""
        assert not isinstance(self.settings.sparsity, tuple), "each sparsity is a run of its own"
        return self.settings.sparsity

    @property
    def in_nf4(self) -> bool:
        """Whether weights are held in 4 bits where the model is run."""
        return self.settings.model.load == "nf4"

    @property
    def journal(self) -> Journal:
        """What is finished; to be had once the run has begun."""
        assert self._journal is not None, "no stage is recorded before the run has begun"
        return self._journal

    def begin(self, made_of: Mapping[str, Any], anew: bool, names: Iterable[str]) -> None:
        """Opens the journal, `anew` or to go on; ValueError if it is of a run that is made of something else.

        `names` are the files besides its artifacts that the run is going to write.
        """
        self._journal = Journal(self.out, made_of, anew, [*ARTIFACTS, *names])
        self._log.open()
        self._recorded = time.perf_counter()
        if changed := self._journal.note_code({**digests(self._modules("recover")), **versions()}):
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            self.warn(
                f"{', '.join(changed[:3])}{more}: changed since the run was interrupted; the stages that depend on it "
                "are done again"
            )

    def warn(self, message: str) -> None:
        """Says it on the terminal, in the log and in the report."""
        self.warnings.append(message)
        with self._log.at_work():
            log.warning("%s", message)

    def stage(self, stage: Stage[T], function: Callable[..., T], *inputs: Any) -> T:
        """The result of a stage: from the journal, from the cache, or else from the function, given this and `inputs`.

        Its cost is measured, its warnings are said, and its artifacts are written.
        """
        with self.at_work(stage.name):
            result = self._result(stage, function, inputs)
            for warning in stage.warnings(result):
                self.warn(warning)
            for name, content in stage.artifacts(result).items():
                write_json(self.out / name, content)
        return result

    def charge_earlier(self, name: str, cost: StageCost) -> None:
        """Adds what an earlier start of the run spent on a stage to the cost that the stage is going to have."""
        self._earlier.setdefault(name, StageCost()).add(cost)

    def own_in(self, folder: str) -> list[str]:
        """Those of the run's own files that lie in a folder of its; the index first, with which a folder is whole."""
        inside = (name for name in self.own if name.startswith(f"{folder}/"))
        return sorted(inside, key=lambda name: (not name.endswith(INDEX), name))

    @contextmanager
    def at_work(self, name: str) -> Iterator[StageCost]:
        """Measures a stage and logs one line when it is done."""
        with self._log.at_work(), self.costs.measured(name) as self.cost:
            self.cost.add(self._earlier.pop(name, StageCost()))
            yield self.cost
        cost = self.cost
        device = "" if cost.peak_device_gib is None else f", {cost.peak_device_gib:.2f} GiB device"
        with self._log.at_work():
            log.info(f"{name:<12} {cost.wall_seconds:7.1f} s  {cost.peak_host_gib:.2f} GiB host{device}")

    def _result(self, stage: Stage[T], function: Callable[..., T], inputs: tuple[Any, ...]) -> T:
        if stage.result is None:
            return function(self, *inputs)
        own = self.fingerprint(stage.name)
        recorded = self.journal.find(stage.name, own, stage.result)
        if recorded is not None:
            self.cost.add(recorded.cost)
            return recorded.value
        if stage.cached:
            key = {"fingerprint": own, **circumstances(self.device)}
            result = computed_once(
                self.store, stage.name, key, stage.result, self.cost, lambda: function(self, *inputs)
            )
        else:
            result = function(self, *inputs)
        self.record(stage.name, result, self.cost.forward_passes, self.cost.charged_seconds)
        return result

    def record(self, stage: str, result: Any, passes: float, charged: float = 0.0) -> None:
        """Journals the result of the stage of that name, or one of several, with the time since the last record.

        The result is a dataclass; what it speaks of must be on disk.
        """
        now = time.perf_counter()
        own = now - self._recorded
        self.journal.add(
            stage,
            self.fingerprint(stage),
            result,
            StageCost(wall_seconds=own, charged_seconds=own + charged, forward_passes=passes),
        )
        self._recorded = now

    def note_kept(self, kept: Kept) -> None:
        """Journals what is kept of the finished checkpoint."""
        self.journal.add("kept", "", kept, StageCost())

    def fingerprint(self, stage: str) -> str:
        """The sha256 of all that a stage's result depends on: what affects it and the stages before it."""
        if stage not in self._fingerprints:
            config = {name: self.spec.config[name] for name in self._affecting(stage)}
            chosen = (getattr(self.settings, name) for name in config)
            read = [file for one in chosen if isinstance(one, Component) for file in one.reads()]
            files = {str(file): self.digests.of(file) for file in read}
            inputs = {name: value for name, value in self.inputs.items() if name != TRAINING or stage not in UNTRAINED}
            measures = {"lm-eval": version("lm-eval")} if stage in MEASURING else {}
            parts = {"settings": config, "inputs": inputs, "files": files, **measures}
            self._fingerprints[stage] = fingerprint(self._modules(stage), parts)
        return self._fingerprints[stage]

    def made_of(self) -> dict[str, Any]:
        """All that the pruned weights depend on and a user may change, by name: settings and inputs."""
        names = {name for stage in WEIGHT_STAGES for name in since(stage)}
        return {**_flat({name: value for name, value in self.spec.config.items() if name in names}), **self.inputs}

    def code(self) -> dict[str, str]:
        """The digest of each module that decides the results of the run, by its name."""
        return digests(self._modules("report"))

    def _affecting(self, stage: str) -> list[str]:
        """The settings that affect a stage, or one before it.

        Those of `open` do so through the inputs, which are known by their content, and count by themselves at the end.
        """
        first = 0 if stage == STAGES[-1] else 1
        return sorted(name for one in STAGES[first : STAGES.index(stage) + 1] for name in since(one))

    def _modules(self, stage: str) -> list[str]:
        own = [f"stun_exp.pipeline.{name}" for name in STAGES[1 : STAGES.index(stage) + 1]]
        whole = ["stun_exp.pipeline.run"] if stage == STAGES[-1] else []
        return [*own, *whole, *components({name: self.spec.config[name] for name in self._affecting(stage)})]


def _flat(node: Any, path: str = "") -> dict[str, Any]:
    """Every value in nested settings by its dotted name."""
    if not isinstance(node, dict):
        return {path: node}
    return {k: v for key, value in node.items() for k, v in _flat(value, f"{path}.{key}" if path else key).items()}
