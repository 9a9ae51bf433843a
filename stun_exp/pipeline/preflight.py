"""What can be said of a run before its weights are read: every refusal at once, and what the user should know."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from stun_exp.calibration.protocol import Calibration
from stun_exp.checkpoint.architecture import Architecture
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.source import carried_files
from stun_exp.checkpoint.writer import names_in
from stun_exp.config.settings import Settings
from stun_exp.data.missing import Missing, MissingData, in_words
from stun_exp.evaluation.benchmarks import PreparedBenchmarks
from stun_exp.moe.skip import GateRatios
from stun_exp.pipeline.backend import check_backend
from stun_exp.pipeline.budget import Budget, budget_of, expected_counts, weights_in_scope, weights_ratio
from stun_exp.pipeline.kept_experts import KeptExperts, kept_experts
from stun_exp.pipeline.skip import gate_statistics
from stun_exp.pipeline.weight_stage import WeightStage
from stun_exp.state.artifacts import ARTIFACTS, CHECKPOINT
from stun_exp.state.device import machine
from stun_exp.unstructured_pruner.pattern import check_width, parsed

TOKEN_BYTES = 48
"""What a token takes in memory while calibration text is drawn: a number in a list, and once more in a tensor."""


class Refusals:
    """Mistakes found one after the other, told together."""

    def __init__(self, choices: Mapping[str, str | None] = MappingProxyType({})) -> None:
        """`choices` are the run's, by group of settings: what fetches that which is missing names them."""
        self.lines: list[str] = []
        self.missing: list[Missing] = []
        self._choices = choices

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.lines or self.missing)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Keeps what is wrong in the block, so that what comes after it is looked at too."""
        try:
            yield
        except MissingData as error:
            self.missing += error.missing
        except (ValueError, OSError) as error:
            if str(error) not in self.lines:
                self.lines.append(str(error))

    def tell(self) -> None:
        """ValueError with all mistakes, a line each, if there are any."""
        if self:
            raise ValueError("\n       ".join([*self.lines, *self.told_missing()]))

    def told_missing(self) -> list[str]:
        """What is not on this machine, all of it at once, if anything."""
        return [in_words(self.missing, self._choices)] if self.missing else []


def load_tokenizer(checkpoint: Checkpoint, trust_remote_code: bool) -> Any:
    """The tokenizer beside the weights; ValueError if there is none, or the embeddings have no row for its tokens."""
    from transformers import AutoTokenizer

    path = checkpoint.path
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        tokenizer("a text")  # some of its settings are not looked at before
        ids = tokenizer.get_vocab().values()
    except Exception as error:  # a dozen classes of three libraries
        names, _ = carried_files(path)
        if not any("token" in name or name.startswith(("vocab", "merges", "spiece")) for name in names):
            raise ValueError(
                f"{path}: no tokenizer beside the weights; copy its files there (tokenizer.json, tokenizer_config.json)"
            ) from error
        told = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: its tokenizer cannot be loaded ({type(error).__name__}: {told})") from error
    rows = checkpoint.config.get_text_config().vocab_size
    if (most := max(len(tokenizer) - 1, *ids)) >= rows:
        raise ValueError(
            f"{path}: its tokenizer numbers {most + 1} tokens, and the embeddings have {rows} rows (vocab_size); "
            "give the tokenizer that belongs to the weights, or resize the embeddings"
        )
    return tokenizer


def check_length(calibration: Calibration, checkpoint: Architecture) -> None:
    """ValueError for sequences that are longer than the model takes."""
    longest = getattr(checkpoint.config, "max_position_embeddings", None)
    if longest is not None and calibration.sequence_length > longest:
        raise ValueError(
            f"calibration.sequence_length={calibration.sequence_length}: the model takes at most {longest} tokens "
            f"(max_position_embeddings); pass calibration.sequence_length={longest} or less"
        )


def check_room(settings: Settings, checkpoint: Checkpoint, out: Path) -> None:
    """ValueError if memory and disk cannot take the calibration text, or the hidden states that it becomes."""
    calibration, stream = settings.calibration, settings.stream
    memory = machine()["RAM"]
    sequences = calibration.num_sequences + settings.recovery.num_sequences
    text = TOKEN_BYTES * sequences * calibration.sequence_length
    # Those that reach a layer and those that leave it; gradients want what reached each layer, in 32 bits.
    states = calibration.num_sequences * calibration.sequence_length * checkpoint.config.get_text_config().hidden_size
    if settings.structured_pruner.needs_gradients():
        states, lists = states * torch.float32.itemsize * (2 + checkpoint.num_layers), 3
    else:
        states, lists = states * checkpoint.dtype.itemsize * 2, 2
    in_memory = min(states, lists * stream.hidden_states_gb * 1e9)
    asked = (
        f"calibration.num_sequences={calibration.num_sequences} of {calibration.sequence_length} tokens"
        f"{f' and recovery.num_sequences={settings.recovery.num_sequences}' if settings.recovery.num_sequences else ''}"
    )
    if text + in_memory > memory:
        raise ValueError(
            f"{asked}: the text takes {text / 1e9:,.1f} GB and the hidden states {in_memory / 1e9:,.1f} GB of memory, "
            f"and this machine has {memory / 1e9:,.1f} GB; lower them, or stream.hidden_states_gb"
        )
    free = shutil.disk_usage(out).free
    if states - in_memory > free:
        raise ValueError(
            f"{asked}: {(states - in_memory) / 1e9:,.1f} GB of hidden states go to files in hydra.run.dir={out}, and "
            f"{free / 1e9:,.1f} GB are free there; lower them, raise stream.hidden_states_gb, or choose another disk"
        )


def warnings_at_once(
    settings: Settings, checkpoint: Checkpoint, benchmarks: PreparedBenchmarks, skips: bool, zeros: float
) -> Iterator[str]:
    """Warnings of settings without effect, of figures that are no results, and of what is left as it is.

    `zeros` is the share of the weights in scope that is zero in the source.
    """
    nf4, ratio = settings.model.load == "nf4", settings.expert_pruner.removed_share()
    if skips and not benchmarks.benchmarks:
        yield "skipping has no effect on any figure: no benchmark is run (eval=none)"
    if benchmarks.limit is not None:
        yield f"eval.limit={benchmarks.limit}: the figures are of each task's first items, for trials only"
    if nf4 and checkpoint.scratch is not None:
        yield "model.load=nf4 holds the experts of the layer that is run in memory, whatever stream.experts says"
    if how := checkpoint.packing.method:
        yield f"the checkpoint is packed ({how}): unpacked on reading, and written in {checkpoint.written_dtype}"
    for part, keys in checkpoint.keys.unused.items():
        yield f"{part} ({len(keys)} tensors) is on disk but not run by the architecture; it is copied unpruned"
    single = [layer.index for layer in checkpoint.outlines if layer.num_experts == 1]
    if single and ratio > 0:
        where = ", ".join(map(str, single))
        yield f"layer {where}: has one expert, which stays, whatever expert_pruner.ratio={ratio:g} says"
    if zeros:
        yield (
            f"{zeros:.2%} of the weights in scope are zero in the source already: the weight stage takes them first, "
            "and they count in its share; where it does not prune they are reported apart"
        )
    yield from carried_files(checkpoint.path)[1]


@dataclass(frozen=True)
class Checked:
    """What the checks have made."""

    benchmarks: PreparedBenchmarks
    gates: dict[int, GateRatios]
    budget: Budget
    kept: KeptExperts
    ratio: float
    """Share of what is left to it that the weight stage takes."""
    num_removed: int


def check_settings(settings: Settings, checkpoint: Checkpoint, tokenizer: Any, told: Refusals) -> Checked | None:
    """What settings, config and index show together; each mistake is noted, and None if there is one.

    Where all is well with them, the routers may be read: what the experts come to shows in these.
    """
    pruner, in_nf4 = settings.unstructured_pruner, settings.model.load == "nf4"
    ratio = settings.expert_pruner.removed_share()
    benchmarks, gates, counts = None, None, dict[int, int]()
    with told.noted():
        gates = gate_statistics(settings.skipping, checkpoint)
    with told.noted():
        benchmarks = settings.eval.prepare()
        check_backend(benchmarks, checkpoint, in_nf4, bool(gates))
        if tokenizer is not None:
            benchmarks.check(tokenizer)
    with told.noted():
        check_pattern(checkpoint, WeightStage(pruner, settings.sparsity_scope))
    with told.noted():
        check_structure(settings, checkpoint)
    with told.noted():
        # The same totals whichever experts go, so what cannot be met is known before anything is run.
        counts = expected_counts(checkpoint, ratio)
        budget_left(settings, checkpoint, counts)
    with told.noted():
        equal = settings.expert_pruner.has_equal_layers() and settings.structured_pruner.has_equal_layers()
        settings.export.check(checkpoint, ratio, equal)
    with told.noted():
        settings.inference.check(checkpoint, settings.model.torch_device(), in_nf4)
    if told or benchmarks is None or gates is None:
        return None
    with told.noted():
        kept = kept_experts(checkpoint, settings.expert_pruner)
        counts = kept.num_kept or counts
        budget, share = budget_left(settings, checkpoint, counts)
        num_removed = sum(checkpoint.outline(layer).num_experts - count for layer, count in counts.items())
        return Checked(benchmarks, gates, budget, kept, share, num_removed)
    return None


def budget_left(settings: Settings, checkpoint: Architecture, counts: dict[int, int]) -> tuple[Budget, float]:
    """(The budget if layers keep so many experts, the share that the weight stage takes)."""
    pruner = settings.unstructured_pruner
    assert isinstance(settings.sparsity, float | int)
    budget = budget_of(checkpoint, counts, settings.sparsity, settings.sparsity_scope, pruner.attention)
    if not budget.in_scope:
        raise ValueError(
            f"sparsity_scope={settings.sparsity_scope}: {checkpoint.path} has no such weights; pass "
            "sparsity_scope=decoder"
        )
    if share := settings.structured_pruner.expected_share(checkpoint.outlines):
        budget = budget.without(share, round(share * weights_in_scope(checkpoint, "decoder")))
    return budget, weights_ratio(budget, pruner)


def check_structure(settings: Settings, checkpoint: Architecture) -> None:
    """ValueError, before any weight is read, if the model cannot lose the parts that are asked."""
    pruner = settings.structured_pruner
    if not pruner.removed_share():
        return
    if settings.sparsity_scope == "experts":
        raise ValueError(
            "sparsity_scope=experts counts no weight that structured_pruner takes; pass sparsity_scope=decoder"
        )
    if pruner.single_sequences() and settings.calibration.batch_size != 1:
        raise ValueError(
            f"structured_pruner.official=true takes a batch for one sequence, and calibration.batch_size="
            f"{settings.calibration.batch_size}; pass calibration.batch_size=1"
        )
    if pruner.needs_gradients() and settings.model.load == "nf4":
        raise ValueError(
            "model.load=nf4 runs weights in 4 bits, and this structured_pruner takes gradients in 32; pass "
            "model.load=full"
        )
    n_of_m = parsed(settings.unstructured_pruner.pattern) if settings.unstructured_pruner.prunes else None
    pruner.check(checkpoint.outlines, n_of_m[1] if n_of_m else 1)


def check_pattern(checkpoint: Architecture, stage: WeightStage) -> None:
    """ValueError, before any weight is read, if an n:m pattern does not divide the inputs of a matrix to prune."""
    for index in range(checkpoint.num_layers):
        for matrix in stage.prunable(checkpoint.outline(index)):
            check_width(stage.pruner.pattern, matrix.weight_OC.shape[1], f"layer {index}'s {matrix.name}")


def files_of(checkpoint: Checkpoint) -> list[str]:
    """The files that a run writes in its folder, but for those that explain a plan."""
    return [*ARTIFACTS, *(f"{CHECKPOINT}/{name}" for name in names_in(checkpoint))]
