"""The budget's counts, worked by hand on the tiny Mixtral.

Per layer: attention 16x16 + 8x16 + 8x16 + 16x16 = 768; an expert 3 x 24x16 = 1152, six of them 6912; router 6x16 = 96;
two norms 32. Outside: embeddings and head 2 x 64x16, final norm 16, together 2064. Three layers: 25488 parameters.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.pipeline.budget import LayerBudget, Scope, budget_of, count_by_kind, expected_counts

KEPT = {0: 5, 1: 5}  # one expert goes in each of two layers


def test_the_numbers_in_the_docstring(mixtral: Checkpoint) -> None:
    assert count_by_kind(mixtral.outline(0)) == {"attention": 768, "mlp": 0, "expert": 6912}
    assert mixtral.num_parameters == 3 * (768 + 6912 + 96 + 32) + 2064 == 25488


@pytest.mark.parametrize(
    ("scope", "attention", "sparsity", "in_scope", "removed", "prunable", "ratio"),
    [
        ("experts", True, 0.5, 20736, 2304, 18432, (10368 - 2304) / 18432),
        ("experts", False, 0.5, 20736, 2304, 18432, (10368 - 2304) / 18432),
        ("decoder", True, 0.4, 23040, 2304, 20736, 1 / 3),
        ("decoder", False, 0.4, 23040, 2304, 18432, 0.375),
        # An expert takes its router row of 16 along, and every parameter counts.
        ("model", True, 0.5, 25488, 2336, 20736, (12744 - 2336) / 20736),
        ("model", False, 0.5, 25488, 2336, 18432, (12744 - 2336) / 18432),
    ],
)
def test_counts_and_ratio_by_hand(
    mixtral: Checkpoint,
    scope: Scope,
    attention: bool,
    sparsity: float,
    in_scope: int,
    removed: int,
    prunable: int,
    ratio: float,
) -> None:
    budget = budget_of(mixtral, KEPT, sparsity, scope, attention)
    assert (budget.in_scope, budget.removed, budget.prunable) == (in_scope, removed, prunable)
    assert budget.weights_ratio() == pytest.approx(ratio, abs=1e-12)


def test_layers_have_their_own_counts(mixtral: Checkpoint) -> None:
    budget = budget_of(mixtral, {0: 2}, 0.5, "decoder", True)
    assert budget.layers == [
        LayerBudget(in_scope=7680, removed=4 * 1152, prunable=768 + 2 * 1152),
        LayerBudget(in_scope=7680, removed=0, prunable=7680),
        LayerBudget(in_scope=7680, removed=0, prunable=7680),
    ]


def test_shared_experts_are_mlp_and_dense_layers_lose_nothing(tiny_model: Callable[[str], Path]) -> None:
    """Qwen2-MoE: layer 0 is dense (3 x 40x16 = 1920), the others have a shared expert (3 x 32x16 = 1536)."""
    qwen = Checkpoint(tiny_model("qwen2_moe"), None)
    budget = budget_of(qwen, {1: 5, 2: 6}, 0.5, "decoder", True)
    assert [layer.in_scope for layer in budget.layers] == [768 + 1920, 768 + 1536 + 6912, 768 + 1536 + 6912]
    assert [layer.removed for layer in budget.layers] == [0, 1152, 0]
    assert budget_of(qwen, {}, 0.5, "experts", True).layers[0] == LayerBudget(0, 0, 0)


def test_a_source_with_unequal_layers_is_counted_as_it_is(
    mixtral: Checkpoint, write_regrouped: Callable[[Checkpoint, dict[int, list[list[int]]]], Checkpoint]
) -> None:
    """Pruning a pruned model: what is already gone is not in scope again."""
    unequal = write_regrouped(mixtral, {1: [[0], [1], [2]]})
    budget = budget_of(unequal, {1: 2}, 0.5, "experts", True)
    assert [layer.in_scope for layer in budget.layers] == [6912, 3 * 1152, 6912]
    assert [layer.removed for layer in budget.layers] == [0, 1152, 0]


def test_the_two_stages_add_up_to_the_asked_total(checkpoint: Checkpoint) -> None:
    for scope in ("experts", "decoder", "model"):
        budget = budget_of(checkpoint, {2: 4}, 0.43, scope, True)
        assert (budget.removed + budget.weights_ratio() * budget.prunable) / budget.in_scope == pytest.approx(0.43)


def test_a_total_below_the_expert_stage_is_refused(mixtral: Checkpoint) -> None:
    with pytest.raises(ValueError, match=r"sparsity=0.05: the expert stage alone takes 0.1111.*expert_pruner.ratio"):
        budget_of(mixtral, KEPT, 0.05, "experts", True).weights_ratio()


def test_a_total_that_rounding_puts_below_the_expert_stage_is_none(mixtral: Checkpoint) -> None:
    """Experts come whole: asked 0.111, one in nine is 0.1111; that is no error and leaves nothing to do."""
    assert budget_of(mixtral, KEPT, 0.111, "experts", True).weights_ratio() == 0.0


def test_a_total_beyond_what_may_be_pruned_is_refused(mixtral: Checkpoint) -> None:
    """Without attention 20736 of 23040 weights may go: 0.9."""
    assert budget_of(mixtral, KEPT, 0.9, "decoder", False).weights_ratio() == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"sparsity=0.95: only 0.9000 of the weights in scope.*attention"):
        budget_of(mixtral, KEPT, 0.95, "decoder", False).weights_ratio()


def test_expected_counts_removes_as_many_experts_as_the_ratio_asks(mixtral: Checkpoint) -> None:
    """18 experts: 0.2 is 3.6, so 4 go; no layer falls below top_k."""
    assert expected_counts(mixtral, 0.2) == {0: 2, 1: 6, 2: 6}
    assert expected_counts(mixtral, 0.5) == {0: 2, 1: 2, 2: 5}
    assert expected_counts(mixtral, 0.0) == {0: 6, 1: 6, 2: 6}


def test_expected_counts_leaves_dense_layers_out(tiny_model: Callable[[str], Path]) -> None:
    assert expected_counts(Checkpoint(tiny_model("qwen2_moe"), None), 0.25) == {1: 3, 2: 6}


def test_a_ratio_that_leaves_fewer_than_top_k_is_refused(mixtral: Checkpoint) -> None:
    """At most 4 of 6 in each layer: 12 of 18."""
    assert expected_counts(mixtral, 12 / 18) == {0: 2, 1: 2, 2: 2}
    with pytest.raises(ValueError, match=r"expert_pruner.ratio=0.75 removes 14 of 18.*top_k=2.*at most 0.6667"):
        expected_counts(mixtral, 0.75)
