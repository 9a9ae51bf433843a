"""Thresholds come from the written model's own gates, and the report counts what they did."""

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.moe.layers import layers_of
from stun_exp.moe.skip import Skipped
from stun_exp.pipeline.skip import Threshold, gate_statistics, layer_thresholds, skipping_json
from stun_exp.skipping.dynamic import DynamicSkipping
from stun_exp.streaming.walk import Walk


def test_thresholds_are_those_of_the_whole_model(checkpoint: Checkpoint, tokens_BT: Tensor) -> None:
    """Against the router logits of transformers' own model: renormalized or not, w_2 / w_1 is e^(l_2 - l_1)."""
    walk = Walk(checkpoint, [tokens_BT[:1], tokens_BT[1:]], torch.device("cpu"), "test")
    gates = gate_statistics(DynamicSkipping(), checkpoint)
    thresholds = layer_thresholds(DynamicSkipping(), gates, walk)
    assert walk.forward_passes == 1
    assert not gates  # so that no layer's ratios are kept beyond its threshold

    model = AutoModelForCausalLM.from_pretrained(checkpoint.path).eval()
    seen: dict[int, Tensor] = {}
    for index in range(checkpoint.num_layers):
        layer = layers_of(model, checkpoint.family)[index]
        if layer.is_moe:
            layer.router.register_forward_hook(
                lambda module, args, output, index=index: seen.update({index: output[0].flatten(0, -2)})
            )
    with torch.inference_mode():
        model(tokens_BT)
    assert thresholds.keys() == seen.keys()
    for index, logits_TE in seen.items():
        top_T2 = logits_TE.topk(2, dim=1).values
        expected = np.median((top_T2[:, 1] - top_T2[:, 0]).exp().numpy())
        assert thresholds[index].beta == pytest.approx(expected, rel=1e-4)
        # An even number of tokens, half of which skip one of their two.
        assert thresholds[index].calibration == 0.25


def test_the_report_by_hand() -> None:
    """Over all is over all slots, not the mean of the layers: they were run on equally many only by chance."""
    thresholds = {0: Threshold(0.5, 0.25), 2: Threshold(0.4, 0.15)}
    skips = {0: Skipped(100, 30), 2: Skipped(300, 10)}
    assert skipping_json(thresholds, skips) == {
        "calibration": 0.2,
        "evaluation": 0.1,
        "per_layer": [
            {"layer": 0, "beta": 0.5, "calibration": 0.25, "evaluation": 0.3},
            {"layer": 2, "beta": 0.4, "calibration": 0.15, "evaluation": pytest.approx(1 / 30)},
        ],
    }


def test_without_a_benchmark_there_is_no_share_and_without_skipping_no_entry() -> None:
    found = skipping_json({0: Threshold(0.5, 0.25)}, {0: Skipped(0, 0)})
    assert found is not None
    assert found["evaluation"] is None
    assert skipping_json({}, {}) is None
