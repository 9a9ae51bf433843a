"""M-SMoE: who is dominant, who joins whom, and what becomes of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.expert_pruner.m_smoe import MSMoE
from stun_exp.moe.plan import Plan
from stun_exp.moe.statistics import ExpertTokens, RouterLogitGram

Planned = Callable[..., Plan]


def m_smoe(ratio: float, *, align: bool = True) -> MSMoE:
    return MSMoE(ratio=ratio, align=align)


def gathered(tokens: list[int], logits_TE: Tensor) -> list[Any]:
    count, gram = ExpertTokens(len(tokens)), RouterLogitGram(len(tokens))
    count.count_E = torch.tensor(tokens)
    gram.routing(logits_TE, torch.empty(0), torch.empty(0))
    return [count, gram]


def alike(tokens: list[int]) -> list[Any]:
    """All experts routed alike, so every one joins the first dominant one."""
    return gathered(tokens, torch.ones(1, len(tokens)))


def test_dominant_experts_are_the_most_used_of_the_model(planned: Planned, source: Any) -> None:
    """Shares 0.70 0.20 0.06 0.04 and 0.30 0.28 0.22 0.20: the four largest are one in layer 0, three in layer 1.

    Layer 0 saw ten times the tokens: by raw counts 700, 200, 60 and 40 all its experts would stay.
    """
    layers = [source(0, torch.ones(4, 2)), source(1, torch.ones(4, 2))]
    plan = planned(m_smoe(0.5), layers, [alike([60, 700, 40, 200]), alike([28, 20, 30, 22])])
    assert [layer.kept for layer in plan.layers] == [[1], [0, 2, 3]]


def test_no_layer_keeps_fewer_than_its_router_needs(planned: Planned, source: Any) -> None:
    """The same shares with top_k=2: layer 0 has its second expert before layer 1 its third."""
    layers = [source(0, torch.ones(4, 2), top_k=2), source(1, torch.ones(4, 2), top_k=2)]
    plan = planned(m_smoe(0.5), layers, [alike([60, 700, 40, 200]), alike([28, 20, 30, 22])])
    assert [layer.kept for layer in plan.layers] == [[1, 3], [0, 2]]


def test_equal_usage_goes_by_layer_then_by_index(planned: Planned, source: Any) -> None:
    """68 of 128 stay: the 32 with 6 tokens of each layer, and of those with 5 the first four of layer 0.

    Small layers would not show a sort that is not stable.
    """
    layers = [source(i, torch.ones(64, 2)) for i in range(2)]
    plan = planned(m_smoe(60 / 128), layers, [alike([5, 6] * 32)] * 2)
    assert [layer.kept for layer in plan.layers] == [sorted([0, 2, 4, 6, *range(1, 64, 2)]), list(range(1, 64, 2))]


def test_others_join_by_cosine_not_by_inner_product(planned: Planned, source: Any) -> None:
    """Expert 2's logits (1, 0.2) point along those of 0, (1, 0); their product with those of 1, (9, 9), is larger."""
    logits_TE = torch.tensor([[1.0, 9.0, 1.0], [0.0, 9.0, 0.2]])
    (layer,) = planned(m_smoe(1 / 3), [source(0, torch.ones(3, 2))], [gathered([6, 5, 2], logits_TE)]).layers
    assert layer.groups == [[0, 2], [1]]
    assert layer.weights == [[0.75, 0.25], [1.0]]


def cosine(tokens: list[list[float]], a: int, b: int) -> float:
    dot = {(x, y): sum(token[x] * token[y] for token in tokens) for x in (a, b) for y in (a, b)}
    return dot[a, b] / (dot[a, a] * dot[b, b]) ** 0.5


@pytest.mark.parametrize("seed", range(4))
def test_plan_equals_loops_over_experts_and_tokens(seed: int, planned: Planned, source: Any) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(7, size, generator=generator) for size in (5, 8, 6)]
    counts = [torch.randperm(100, generator=generator)[:size].tolist() for size in (5, 8, 6)]
    sources = [source(i, torch.ones(size, 2), top_k=2) for i, size in enumerate((5, 8, 6))]
    plan = planned(m_smoe(9 / 19), sources, [gathered(c, x) for c, x in zip(counts, logits, strict=True)])

    usage = {(i, e): c / sum(count) for i, count in enumerate(counts) for e, c in enumerate(count)}
    dominant = {
        (i, e) for i, count in enumerate(counts) for e in sorted(range(len(count)), key=lambda e: -count[e])[:2]
    }
    while len(dominant) < 10:
        dominant.add(max(usage.keys() - dominant, key=lambda key: usage[key]))
    for i, (layer, logits_TE, count) in enumerate(zip(plan.layers, logits, counts, strict=True)):
        groups: dict[int, list[int]] = {e: [] for e in sorted(e for n, e in dominant if n == i)}
        for expert in range(len(count)):
            near = {d: cosine(logits_TE.tolist(), d, expert) for d in groups}
            groups[expert if expert in groups else max(near, key=lambda d, near=near: near[d])].append(expert)
        assert layer.kept == list(groups)
        assert layer.groups == list(groups.values())
        for group, shares in zip(layer.groups, layer.weights or [], strict=True):
            assert shares == pytest.approx([count[e] / sum(count[m] for m in group) for e in group])


def test_group_limited_routers_merge_within_their_groups(planned: Planned, source: Any) -> None:
    """Groups {0, 1, 2} and {3, 4, 5} keep one each; expert 2 is routed like 3, but may only join 0."""
    logits_TE = torch.tensor([[1.0, 1.0, 0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0, 0.0, 1.0]])
    layer = source(0, torch.ones(6, 2), num_groups=2)
    (plan,) = planned(m_smoe(4 / 6), [layer], [gathered([50, 40, 30, 20, 10, 5], logits_TE)]).layers
    assert plan.kept == [0, 3]
    assert plan.groups == [[0, 1, 2], [3, 4, 5]]


def test_group_limited_routers_share_the_budget_in_rounds(planned: Planned, source: Any) -> None:
    """Second rounds: (0.01 + 0.28) / 2 in layer 0, (0.10 + 0.24) / 2 in layer 1, which has the better one."""
    layers = [source(i, torch.ones(4, 2), num_groups=2) for i in range(2)]
    plan = planned(m_smoe(2 / 8), layers, [alike([1, 41, 28, 30]), alike([30, 10, 24, 36])])
    assert [layer.kept for layer in plan.layers] == [[1, 3], [0, 1, 2, 3]]


def test_an_expert_without_tokens_is_merged_without_weight_and_named(planned: Planned, source: Any) -> None:
    """In layer 4 all have tokens."""
    layers = [source(3, torch.ones(3, 2)), source(4, torch.ones(3, 2))]
    plan = planned(m_smoe(1 / 3), layers, [alike([4, 0, 3]), alike([4, 2, 3])])
    assert plan.layers[0].groups == [[0, 1], [2]]
    assert plan.layers[0].weights == [[1.0, 0.0], [1.0]]
    (warning,) = plan.warnings
    assert "layer 3: no calibration token reached expert 1:" in warning


def test_permuting_experts_permutes_the_plan(planned: Planned, source: Any) -> None:
    order = [3, 5, 0, 1, 4, 2]
    logits_TE = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    tokens = [4, 9, 2, 7, 1, 6]
    layer = source(0, torch.ones(6, 2))
    (plan,) = planned(m_smoe(0.5), [layer], [gathered(tokens, logits_TE)]).layers
    (permuted,) = planned(m_smoe(0.5), [layer], [gathered([tokens[e] for e in order], logits_TE[:, order])]).layers
    assert sorted(plan.groups) == sorted(sorted(order[place] for place in group) for group in permuted.groups)
    assert plan.kept == sorted(order[place] for place in permuted.kept)


@pytest.mark.parametrize("align", [True, False])
def test_only_alignment_merges_a_renumbered_copy_without_loss(
    align: bool, mixtral: Checkpoint, planned: Planned, source: Any
) -> None:
    """Expert 4 is expert 1 with its hidden units in another order; merged into one, it must still be expert 1."""
    layer = mixtral.read_layer(1)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    layer.experts.gate_up_proj[4] = layer.experts.gate_up_proj[1][torch.cat([order, order + 24])]
    layer.experts.down_proj[4] = layer.experts.down_proj[1][:, order]
    x_TD = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    before = layer.experts(x_TD, torch.full((5, 1), 1), torch.ones(5, 1))
    logits_TE = torch.eye(6)
    logits_TE[:, 4] = logits_TE[:, 1]
    plan = planned(m_smoe(1 / 6, align=align), [source(1, torch.ones(6, 2))], [gathered([9, 8, 7, 6, 1, 5], logits_TE)])
    assert plan.layers[0].groups == [[0], [1, 4], [2], [3], [5]]
    layer.apply(plan.layers[0])
    after = layer.experts(x_TD, torch.full((5, 1), 1), torch.ones(5, 1))
    assert torch.allclose(after, before, atol=1e-5) is align


def test_real_layers_take_one_pass_and_keep_what_was_asked_in_all(
    checkpoint: Checkpoint, tokens_BT: Tensor, plan_and_passes: Callable[..., tuple[Plan, float]]
) -> None:
    plan, passes = plan_and_passes(checkpoint, m_smoe(0.5), [tokens_BT])
    assert passes == 1
    assert sum(len(layer.kept) for layer in plan.layers) == 3 * len(plan.layers)
    for layer_plan in plan.layers:
        assert layer_plan.aligned
        assert sorted(e for group in layer_plan.groups for e in group) == list(range(6))
        layer = checkpoint.read_layer(layer_plan.layer)
        layer.apply(layer_plan)
        assert layer.num_experts == len(layer_plan.kept)
