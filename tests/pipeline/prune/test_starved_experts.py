"""An expert that too little of the calibration text reached is still pruned by something, in its share, and named."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stun_exp.allocation.protocol import Allotment, Saliencies
from stun_exp.allocation.ratios import LayerRatios
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.pipeline.allocate import layer_ratios
from stun_exp.pipeline.budget import budget_of
from stun_exp.pipeline.weight_stage import WeightStage
from stun_exp.streaming.walk import Walk
from stun_exp.unstructured_pruner.masks import SquaredNorm, lowest
from stun_exp.unstructured_pruner.protocol import Task

CPU = torch.device("cpu")
Make = Callable[..., Any]
EXPERT_WEIGHTS = 3 * 16 * 24
FALLBACKS = ["every_token", "shared", "magnitude"]


@pytest.fixture
def starving(mixtral_copy: Path) -> Checkpoint:
    """Expert 5 of layer 1 is never chosen: of two opposite pairs of router rows, two logits are above its zero."""
    tensors = load_file(mixtral_copy / "model.safetensors")
    rows = tensors["model.layers.1.block_sparse_moe.gate.weight"]
    rows[1], rows[2], rows[3], rows[5] = rows[0], -rows[0], -rows[0], 0
    save_file(tensors, mixtral_copy / "model.safetensors", metadata={"format": "pt"})
    return Checkpoint(mixtral_copy, None)


def entering_experts(checkpoint: Checkpoint, tokens_BT: Tensor, index: int) -> Tensor:
    """All tokens as they reach the experts of a layer."""
    seen: list[Tensor] = []
    for step in Walk(checkpoint, list(tokens_BT.split(3)), CPU, "test"):
        if step.layer.index == index:
            step.layer.block.register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(0, -2)))
            step.forward()
    return torch.cat(seen)


def hidden(checkpoint: Checkpoint, x_TD: Tensor, expert: int) -> Tensor:
    weights = {matrix.name: matrix.weight_OC for matrix in checkpoint.read_layer(1).matrices()}
    gate, up = (weights[f"mlp.experts.{expert}.{name}_proj"] for name in ("gate", "up"))
    return nn.functional.silu(x_TD @ gate.T) * (x_TD @ up.T)


def norm_of(task: Task) -> list[float]:
    assert isinstance(task.statistic, SquaredNorm)
    return task.statistic.norm_C().tolist()


def test_an_expert_without_tokens_is_starved_and_reported(starving: Checkpoint, prune: Make, component: Make) -> None:
    layers = prune(starving, component("wanda")).layers
    assert [layer.starved for layer in layers] == [[], [5], []]
    assert layers[1].tokens[5] == 0
    assert sum(layers[1].tokens) == 2 * 128


def test_min_tokens_is_the_fewest_that_are_enough(mixtral: Checkpoint, prune: Make, component: Make) -> None:
    """On the border by one token on either side; and none is starved on this text at the setting of conf/."""
    counts = prune(mixtral, component("wanda", inputs="dense")).layers[1].tokens
    assert min(counts) > 1
    for min_tokens in (min(counts), min(counts) + 1, sorted(counts)[2] + 1, 1000):
        layer = prune(mixtral, component("wanda", inputs="dense", min_tokens=min_tokens)).layers[1]
        assert layer.starved == [expert for expert, count in enumerate(counts) if count < min_tokens]
    assert layer.starved == list(range(6))


def test_every_token_is_what_the_expert_makes_of_all_tokens(
    starving: Checkpoint, tokens_BT: Tensor, prune: Make, recorder: Make
) -> None:
    """Layer 1 of the model as it is, and expert 5 run by hand; its neighbors keep what was routed to them."""
    x_TD = entering_experts(starving, tokens_BT, 1)
    pruner = recorder(inputs="dense")
    pruned = prune(starving, pruner)
    gate, up, down = (pruner.layers[1][f"mlp.experts.5.{name}_proj"] for name in ("gate", "up", "down"))
    assert norm_of(gate) == norm_of(up) == pytest.approx(x_TD.double().norm(dim=0).tolist(), rel=1e-5)
    assert norm_of(down) == pytest.approx(hidden(starving, x_TD, 5).double().norm(dim=0).tolist(), rel=1e-5)
    assert down.statistic.num_tokens == 128
    for expert, count in enumerate(pruned.layers[1].tokens[:5]):
        assert pruner.layers[1][f"mlp.experts.{expert}.down_proj"].statistic.num_tokens == count
    before, after = pruned.matrices(1, 5)["mlp.experts.5.down_proj"]
    expected = lowest(before.abs() * hidden(starving, x_TD, 5).norm(dim=0), 0.5)
    assert torch.equal(after == 0, expected)


def test_shared_is_the_sum_over_the_experts_of_the_layer(starving: Checkpoint, prune: Make, recorder: Make) -> None:
    pruner, plain = recorder(inputs="dense", starved="shared"), recorder(inputs="dense")
    prune(starving, pruner)
    prune(starving, plain)
    for name in ("gate", "up", "down"):
        norms = [norm_of(plain.layers[1][f"mlp.experts.{expert}.{name}_proj"]) for expert in range(5)]
        total = torch.tensor(norms).double().square().sum(0).sqrt().tolist()
        assert norm_of(pruner.layers[1][f"mlp.experts.5.{name}_proj"]) == pytest.approx(total, rel=1e-5)


def test_magnitude_is_magnitude(starving: Checkpoint, prune: Make, component: Make) -> None:
    for before, after in prune(starving, component("wanda", starved="magnitude")).matrices(1, 5).values():
        assert torch.equal(after == 0, lowest(before.abs(), 0.5))


@pytest.mark.parametrize("starved", FALLBACKS)
@pytest.mark.parametrize("group", ["row", "cumulative", "matrix", "layer"])
@pytest.mark.parametrize("name", ["wanda", "moe_pruner"])
def test_a_starved_expert_loses_its_share_and_not_by_order(
    starving: Checkpoint, prune: Make, component: Make, name: str, group: str, starved: str
) -> None:
    """The traps: a metric of zero under a stable sort erases the left half of every row; compared with the whole layer
    an expert without a norm would go whole, and one that was shown every token would keep more than its neighbors.
    """
    pruned = prune(starving, component(name, group=group, starved=starved))
    assert pruned.zeros(1, 5) == EXPERT_WEIGHTS // 2
    assert pruned.zeros(1) == pytest.approx(pruned.size(1) / 2, abs=1)
    for _, after in pruned.matrices(1, 5).values():
        half = after.shape[1] // 2
        left, right = (after[:, :half] == 0).float().mean(), (after[:, half:] == 0).float().mean()
        assert float(left - right) == pytest.approx(0, abs=0.35)


def test_magnitude_erases_nobody_either(starving: Checkpoint, prune: Make, component: Make) -> None:
    """It sees no tokens: the expert is one like any other, pruned by the same comparison in every matrix."""
    pruned = prune(starving, component("magnitude"))
    for expert in range(6):
        assert pruned.zeros(1, expert) == EXPERT_WEIGHTS // 2
    assert pruned.layers[1].starved == []


@pytest.mark.parametrize("starved", FALLBACKS)
def test_a_layer_all_of_whose_experts_are_starved_is_pruned_all_the_same(
    mixtral: Checkpoint, prune: Make, component: Make, starved: str
) -> None:
    pruned = prune(mixtral, component("moe_pruner", min_tokens=1000, starved=starved))
    for index in range(3):
        assert [pruned.zeros(index, expert) for expert in range(6)] == [EXPERT_WEIGHTS // 2] * 6


@pytest.mark.parametrize("scope", ["experts", "decoder"])
@pytest.mark.parametrize("name", ["wanda", "moe_pruner"])
def test_dense_leaves_the_expert_alone_and_the_rest_makes_up_for_it(
    starving: Checkpoint, prune: Make, component: Make, name: str, scope: str
) -> None:
    """The published copies skip such an expert too, and miss the total."""
    pruned = prune(starving, component(name, starved="dense"), 0.5, scope)
    assert all(torch.equal(before, after) for before, after in pruned.matrices(1, 5).values())
    size = 6 * EXPERT_WEIGHTS if scope == "experts" else pruned.size(1)
    assert pruned.zeros(1) == pytest.approx(size / 2, abs=len(pruned.matrices(1)) / 2)
    others = [pruned.zeros(1, expert) / EXPERT_WEIGHTS for expert in range(5)]
    assert others == pytest.approx([0.5 * size / (size - EXPERT_WEIGHTS)] * 5, abs=2e-3)
    assert pruned.layers[1].ratio == 0.5


def test_dense_with_ratios_of_their_own_asks_nobody_for_more_than_all(
    starving: Checkpoint, prune: Make, component: Make
) -> None:
    """Expert 0 is to lose 0.95: scaled by what the others must give it would lose more than it has.

    Of the 6 experts 0.95 + 5 x 0.5 = 3.45 are to go. Without the sixth's 0.5, 2.05 are left in the others, of which
    0.5 / 2.05 goes too: 0.95 becomes 0.962, 0.5 becomes 0.622.
    """
    ratios = LayerRatios(0.0, {0: 0.95} | dict.fromkeys(range(1, 6), 0.5))
    pruned = prune(starving, component("wanda", starved="dense"), [ratios] * 3, "experts")
    lost = [pruned.zeros(1, expert) / EXPERT_WEIGHTS for expert in range(6)]
    assert lost == pytest.approx([0.9622, 0.6220, 0.6220, 0.6220, 0.6220, 0.0], abs=2e-3)
    assert sum(lost) == pytest.approx(3.45, abs=2e-3)


def test_dense_under_a_pattern_takes_no_more_of_the_rest(starving: Checkpoint, prune: Make, component: Make) -> None:
    """4:8 is 4:8, though 0.6 of the other five would make up for it: the total is missed, which the run says."""
    pruned = prune(starving, component("wanda", starved="dense", pattern="4:8"), 0.5, "experts")
    assert [pruned.zeros(1, expert) for expert in range(6)] == [EXPERT_WEIGHTS // 2] * 5 + [0]
    for expert in range(5):
        for _, after in pruned.matrices(1, expert).values():
            assert (after == 0).view(len(after), -1, 8).sum(2).unique().tolist() == [4]


@pytest.mark.parametrize(("settings", "ratio"), [({"min_tokens": 1000}, 0.1), ({}, 0.9)])
def test_dense_that_cannot_be_made_up_for_is_refused(
    starving: Checkpoint, prune: Make, component: Make, settings: dict[str, int], ratio: float
) -> None:
    """All experts starved and nothing else in scope; or one, where 0.9 of six is more than the other five have."""
    with pytest.raises(ValueError, match=r"^layer \d: \d starved experts? stay.? dense .*choose starved=every_token"):
        prune(starving, component("wanda", starved="dense", **settings), ratio, "experts")


@pytest.mark.parametrize(
    ("settings", "layer_passes"),
    [
        ({"starved": "every_token"}, 3 + 1 + 1 / 2),  # layer 1 once more, with a third expert beside each token's two
        ({"starved": "shared"}, 3 + 1),
        ({"starved": "magnitude"}, 3),
        ({"starved": "dense"}, 3),
        # Two portions of experts and attention; only the portion with the expert in it is run again.
        ({"starved": "every_token", "experts_at_once": 4}, 3 * 3 + 1 + 1 / 2),
        # All of three portions of two, each again with its own two experts alone on every token.
        ({"starved": "every_token", "experts_at_once": 2, "min_tokens": 1000}, 3 * (4 + 3 * (1 + 2 / 2))),
    ],
)
def test_starved_experts_cost_what_they_cost(
    starving: Checkpoint, prune: Make, recorder: Make, settings: dict[str, Any], layer_passes: float
) -> None:
    assert 3 * prune(starving, recorder(inputs="dense", **settings)).passes == pytest.approx(layer_passes)


class Sizes:
    """An allocation that measures how many weights it is shown of each unit, and spreads nothing."""

    measures, exact, pools_starved = True, True, False

    def __init__(self, per_expert: bool):
        self.per_expert = per_expert
        self.measured: list[float] = []

    def measure(self, saliencies: Saliencies) -> list[float]:
        found = [float(sum(saliency.numel() for saliency in unit())) for unit in saliencies]
        self.measured += found
        return found

    def allocate(self, measured: Sequence[float], sizes: Sequence[int], ratio: float) -> Allotment:
        return Allotment([ratio] * len(sizes))


@pytest.mark.parametrize(
    ("per_expert", "min_tokens", "unseen"),
    [(False, 1, 1), (True, 1, 0), (False, 999, 6)],
    ids=["layer", "expert", "all"],
)
def test_an_allocation_is_not_misled_by_what_stands_in_for_a_statistic(
    starving: Checkpoint, tokens_BT: Tensor, component: Make, per_expert: bool, min_tokens: int, unseen: int
) -> None:
    """A layer is measured without its starved experts, whose scale is another; an expert by itself always is."""
    stage, sizes = WeightStage(component("wanda", min_tokens=min_tokens), "decoder"), Sizes(per_expert)
    walk = Walk(starving, [tokens_BT], CPU, "test")
    ratios = layer_ratios(stage, sizes, budget_of(starving, {}, 0.5, "decoder", True), 0.5, walk)
    layer = sum(matrix.weight_OC.numel() for matrix in starving.read_layer(1).matrices())
    units = 7 if per_expert else 1
    assert sum(sizes.measured[units : 2 * units]) == layer - unseen * EXPERT_WEIGHTS
    assert len(sizes.measured) == 3 * units
    assert ratios[1].rest == 0.5
