"""Sparse kernels, as far as they can be looked at without a GPU: what is pruned, what is converted, what is said."""

import pytest
import torch
from torch import nn

from stun_exp.inference import kernels
from stun_exp.inference.kernels import against_dense, expert_products, halve_linears_
from stun_exp.inference.storage import is_two_four
from stun_exp.moe.families import FAMILIES
from stun_exp.moe.layers import MoELayer
from stun_exp.unstructured_pruner.masks import lowest_of_neighbors


def test_2_4_keeps_the_two_largest_of_every_four() -> None:
    weight = torch.tensor([[1.0, -4.0, 2.0, 3.0, 0.1, 0.2, -0.4, 0.3]])
    pruned = weight.masked_fill(lowest_of_neighbors(weight.abs(), 0.5, 4), 0)
    assert (pruned != 0).tolist() == [[False, True, False, True, False, False, True, True]]
    assert is_two_four(pruned)


def test_nothing_is_measured_without_a_gpu() -> None:
    assert expert_products(torch.device("cpu"), 2) == ([], [])


def test_a_product_is_timed_against_the_dense_one_and_compared_with_it() -> None:
    """50 dense products take a second each on this clock, sparse ones a half; one result of 8 is a quarter off."""
    time = [0.0]

    def dense(x: torch.Tensor) -> torch.Tensor:
        time[0] += 1.0
        return 2 * x

    def sparse(x: torch.Tensor) -> torch.Tensor:
        time[0] += 0.5
        return 2 * x - torch.tensor([0.0, 2.0])

    found = against_dense("k", dense, sparse, torch.tensor([[1.0, 4.0]]), 2, 3, lambda: time[0])
    assert (found.dense_ms.median, found.sparse_ms.median) == (1000.0, 500.0)
    assert (found.error, found.tokens, found.inputs) == (0.25, 1, 2)


def test_what_a_gpu_cannot_do_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no kernel image\n  is available")

    monkeypatch.setattr(kernels, "_two_four", fails)
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    assert expert_products(torch.device("cuda"), 2) == ([], ["sparse kernel: no kernel image is available"])


def test_plain_linears_with_the_pattern_are_converted_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four attention matrices of 64 x 64 in 16 bits two have the pattern; fused experts are left."""
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralDecoderLayer

    config = MixtralConfig(
        hidden_size=64, intermediate_size=64, num_attention_heads=2, num_key_value_heads=2, num_local_experts=2
    )
    model = nn.Module()
    model.model = nn.Module()
    model.model.layers = nn.ModuleList([MixtralDecoderLayer(config, 0).bfloat16().requires_grad_(False)])
    layer = MoELayer(model.model.layers[0], 0, FAMILIES["mixtral"])
    for parameter in layer.module.parameters():
        parameter.normal_()
    for _, linear in list(layer.linears())[:2]:
        linear.weight[:, ::2] = 0
    converted = []
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda w: converted.append(w.shape) or w)
    assert halve_linears_(model, FAMILIES["mixtral"]) == 2
    assert converted == [(64, 64)] * 2
