"""The first stage: what a run works on, and every reason not to begin, before a weight is read."""

import logging
from dataclasses import asdict
from hashlib import sha256
from typing import Any

from pydantic import TypeAdapter
from torch import Tensor

from stun_exp.calibration.protocol import CalibrationTokens, decoder_start
from stun_exp.checkpoint.census import Census, census_of
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.data.missing import MissingData
from stun_exp.pipeline.answers import ModelAnswers
from stun_exp.pipeline.context import TRAINING, RunContext, Stage
from stun_exp.pipeline.drawn_tokens import drawn_tokens
from stun_exp.pipeline.dry_run import plan_by_card, print_budget
from stun_exp.pipeline.inputs import Inputs
from stun_exp.pipeline.preflight import (
    Checked,
    Refusals,
    check_length,
    check_room,
    check_settings,
    files_of,
    load_tokenizer,
    warnings_at_once,
)
from stun_exp.pipeline.source_zeros import LayerZeros, check_reachable, layer_zeros, share_of
from stun_exp.pipeline.training_text import training_sequences
from stun_exp.pipeline.weight_stage import WeightStage
from stun_exp.state.artifacts import CHECKPOINT, REPORT
from stun_exp.state.fingerprint import made_by
from stun_exp.state.finished import is_finished, missing_of
from stun_exp.state.journal import own_files
from stun_exp.state.ownership import check_folder, remove
from stun_exp.unstructured_pruner.pattern import fixed_ratio

log = logging.getLogger(__name__)
OPEN: Stage[Inputs | None] = Stage("open")


def open_inputs(run: RunContext) -> Inputs | None:
    """What the run works on; None for a dry run, which prints the budget instead.

    ValueError or OSError with every reason not to begin. What is complete already is looked at no further.
    """
    settings, told = run.settings, Refusals(run.choices)
    checkpoint = _checkpoint(run, told)
    if checkpoint is None:
        plan_by_card(settings, told)
        return None
    with told.noted():
        run.own = own_files(run.out)
        check_folder(run.out, checkpoint.path, run.own, files_of(checkpoint))
    tokenizer, text, checked = None, None, None
    asks_model = settings.calibration.asks_model()
    with told.noted():
        tokenizer = load_tokenizer(checkpoint, settings.model.trust_remote_code)
        with told.noted():
            check_length(settings.calibration, checkpoint)
            check_room(settings, checkpoint, run.out)
            text = None if asks_model else _text(run, checkpoint, tokenizer)
    if asks_model:  # which reads the weights: when nothing is left that could be refused
        checked = check_settings(settings, checkpoint, tokenizer, told)
        told.tell()
        text = None if settings.dry_run else _text(run, checkpoint, tokenizer)
    identity = None
    if text and not told and not settings.dry_run:
        identity = _identify(run, checkpoint, *text)
        if _is_complete(run):
            return None
    checked = checked or check_settings(settings, checkpoint, tokenizer if text else None, told)
    told.tell()
    assert checked is not None
    if identity is None:
        print_budget(checkpoint, checked, text[0].num_tokens if text else settings.calibration.most_tokens)
        return None
    assert text is not None
    tokens, training_NT = text
    stage = WeightStage(settings.unstructured_pruner, settings.sparsity_scope)
    zeros, source_zeros = _zeros(run, checkpoint, identity, stage, checked)
    at_once = warnings_at_once(settings, checkpoint, checked.benchmarks, bool(checked.gates), source_zeros)
    for warning in (*tokens.notes, *at_once):
        run.warn(warning)
    found = (checked.benchmarks, checked.gates, zeros, source_zeros, checkpoint, identity)
    return Inputs(checkpoint, identity, tokenizer, tokens, training_NT, stage, *found)


def _checkpoint(run: RunContext, told: Refusals) -> Checkpoint | None:
    """The model; None if it is not on this machine and a dry run can go by its card.

    ValueError with all that is not on this machine, if a run is to begin. A model that is there and cannot be opened
    has an error of its own.
    """
    settings = run.settings
    try:
        return settings.model.open(settings.stream.scratch(run.out))
    except MissingData as error:
        told.missing += error.missing
    with told.noted():
        settings.eval.prepare()
    with told.noted():
        settings.calibration.find()
    if not (settings.dry_run and settings.model.dimensions is not None and told.missing):
        told.tell()
    return None


def _text(run: RunContext, checkpoint: Checkpoint, tokenizer: Any) -> tuple[CalibrationTokens, Tensor]:
    """What the model is calibrated on, and what a recovery trains on."""
    settings, calibration, seed = run.settings, run.settings.calibration, run.settings.seed
    answer = ModelAnswers(run, checkpoint) if calibration.asks_model() else None
    start, companions = decoder_start(checkpoint.config), checkpoint.companions(run.digests.of)
    where = (run.store, run.digests.of)
    tokens = drawn_tokens(calibration, tokenizer, seed, start, companions, *where, answer)
    return tokens, training_sequences(calibration, tokenizer, seed, settings.recovery.num_sequences, answer)


def _identify(
    run: RunContext, checkpoint: Checkpoint, tokens: CalibrationTokens, training_NT: Tensor
) -> dict[str, str]:
    """The checkpoint's identity; by its content and that of the text the run is known from here on."""
    identity = checkpoint.identity(run.digests.of)
    run.inputs = {
        **{f"checksum of {name}": digest for name, digest in identity.items()},
        "precision": str(checkpoint.dtype),
        "load": run.settings.model.load,
        "device": run.device.type,
        "calibration tokens": tokens.sha256,
        "calibration batches": [list(batch.shape) for batch in tokens.batches_BT],
        TRAINING: sha256(training_NT.numpy().tobytes()).hexdigest(),
    }
    return identity


def _is_complete(run: RunContext) -> bool:
    """Whether the folder holds all that this run would leave; ValueError if somebody has changed what it kept."""
    if run.settings.resume != "continue" or not is_finished(run.out, run.fingerprint("report")):
        return False
    missing = missing_of(run.out, run.digests.of) if run.keeps_checkpoint else []
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        run.warn(f"{run.out / missing[0]}{more}: the run was finished, and this is gone; it is made again")
        remove(run.out, [REPORT])
        return False
    log.info("%s: already complete, skipping (resume=restart to rerun)", run.out)
    if not run.keeps_checkpoint:  # it was stopped on its last step
        remove(run.out, run.own_in(CHECKPOINT))
    return True


def _zeros(
    run: RunContext, checkpoint: Checkpoint, identity: dict[str, str], stage: WeightStage, checked: Checked
) -> tuple[list[LayerZeros], float]:
    """Looks at every weight of the source, once for all runs of it; ValueError if its zeros rule the budget out."""
    census = _census(run, checkpoint, identity)
    zeros = layer_zeros(checkpoint, census, stage)
    share = share_of(zeros, census, checked.budget.in_scope, stage.scope)
    if stage.pruner.prunes and not fixed_ratio(stage.pruner.pattern):
        check_reachable(zeros, checked.budget, checked.num_removed, share)
    return zeros, share


def _census(run: RunContext, checkpoint: Checkpoint, identity: dict[str, str]) -> Census:
    key = {"checkpoint": identity, "dtype": str(checkpoint.dtype), **made_by(census_of.__module__)}
    found = run.store.find("censuses", key)
    if found is None:
        found = asdict(census_of(checkpoint))
        run.store.add("censuses", key, found)
    return TypeAdapter(Census).validate_python(found)
