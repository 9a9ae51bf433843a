"""What else than per_layer_config says in config.json that layers keep different numbers of experts, and who reads it.

Shapes: B sequences, T tokens, V vocabulary.
"""

import json
import time
from typing import Any, Literal

import torch

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.expert_counts import EXPERTS_PER_LAYER, PER_LAYER_NUM_EXPERTS
from stun_exp.checkpoint.load import load_checkpoint
from stun_exp.export.proof import compare_logits, fixed_batch, logits_BTV
from stun_exp.utils.files import read_json_object, write_file

Format = Literal["per_layer_num_experts", "expert_list"]

READ_BY = {
    "per_layer_num_experts": "vLLM with RCO's patch, which gives each layer its number of experts from "
    "config.per_layer_num_experts",
    "expert_list": "model code that takes a layer's number from a list in the place of the expert count, as that of "
    "STUN's published checkpoints",
}


def prove_rewritten(written: Checkpoint, form: Format, device: torch.device) -> dict[str, Any]:
    """Rewrites config.json in another form; what the report says of it once `load_pruned` reads the same model of it.

    Stock transformers reads none of these, so that no fresh process is asked. ValueError if the logits differ.
    """
    began = time.monotonic()
    batch = fixed_batch(written.config)
    before_BTV = logits_BTV(load_checkpoint(written.path, device), batch)
    write_counts(written, form)
    after_BTV = logits_BTV(load_checkpoint(written.path, device), batch)
    return {
        "loads_with": "stun_exp.load_pruned",
        "for": READ_BY[form],
        **compare_logits(before_BTV, after_BTV, written.dtype, f"{written.path}, read back with {form}"),
        "tokens": sum(map(len, batch["input_ids"])),
        "vllm": {"verified": False, "because": "stock vLLM builds every layer for equally many experts"},
        "seconds": round(time.monotonic() - began, 1),
    }


def write_counts(written: Checkpoint, form: Format) -> None:
    """Says in config.json in another form than ours how many experts each layer keeps, 0 where it has none."""
    counts = written.experts_per_layer
    assert counts is not None
    config = read_json_object(written.path / "config.json")
    del config[EXPERTS_PER_LAYER]  # so that what is proven is what the other form says
    if form == "per_layer_num_experts":
        config[PER_LAYER_NUM_EXPERTS] = counts
    else:
        for part, key in written.count_keys(config):
            part[key] = counts
    write_file(written.path / "config.json", [(json.dumps(config, indent=1) + "\n").encode()])
