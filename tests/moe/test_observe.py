"""Watching a layer shows every routing decision and expert call, and changes nothing."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.moe.layers import MoELayer
from stun_exp.moe.observe import Statistic, observe
from stun_exp.moe.statistics import Coactivation, ExpertTokens, MeanOutputs, RoutedOutputs
from stun_exp.streaming.walk import Step, Walk

CPU = torch.device("cpu")


class Call(NamedTuple):
    x_ND: Tensor
    h_NF: Tensor
    y_ND: Tensor
    weight_N: Tensor


class Everything(Statistic):
    """Keeps all it is shown."""

    def __init__(self) -> None:
        self.logits_TE, self.index_TK, self.weight_TK = torch.empty(0), torch.empty(0), torch.empty(0)
        self.calls: dict[int, Call] = {}
        self.linears: dict[str, Tensor] = {}

    def routing(self, router_logits_TE: Tensor, topk_index_TK: Tensor, topk_weight_TK: Tensor) -> None:
        self.logits_TE, self.index_TK, self.weight_TK = router_logits_TE, topk_index_TK, topk_weight_TK

    def expert(self, expert: int, x_ND: Tensor, h_NF: Tensor, y_ND: Tensor, weight_N: Tensor) -> None:
        self.calls[expert] = Call(x_ND, h_NF, y_ND, weight_N)

    def linear(self, name: str, x_TC: Tensor) -> None:
        self.linears[name] = x_TC


def last_step(checkpoint: Checkpoint, tokens_BT: Tensor) -> Step:
    """The last layer, which has experts in every tiny model, not run yet."""
    return list(Walk(checkpoint, [tokens_BT], CPU, "test"))[-1]


def run(step: Step) -> Tensor:
    with torch.inference_mode():
        step.forward()
    assert step.outputs_BTD is not None
    return step.outputs_BTD[0]


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_observed_equals_eager(checkpoint: Checkpoint, tokens_BT: Tensor, implementation: str) -> None:
    """Outputs are the same whichever of transformers' own experts functions would have run."""
    step = last_step(checkpoint, tokens_BT)
    step.layer.experts.config._experts_implementation = implementation
    plain = run(step)
    with observe(step.layer, [ExpertTokens(6), Everything()]):
        observed = run(step)
    torch.testing.assert_close(observed, plain, rtol=1e-5, atol=1e-5)
    assert step.layer.experts.config._experts_implementation == implementation


def test_a_dense_layer_can_be_observed_too(checkpoint: Checkpoint, tokens_BT: Tensor) -> None:
    for step in Walk(checkpoint, [tokens_BT], CPU, "test"):
        seen = Everything()
        with observe(step.layer, [seen]):
            step.forward()
        assert seen.linears.keys() == {name for name, _ in step.layer.linears()}
        assert len(seen.calls) == step.layer.num_experts


def test_nothing_is_left_behind_even_after_an_error(mixtral: Checkpoint, tokens_BT: Tensor) -> None:
    step = last_step(mixtral, tokens_BT)
    before = run(step)
    with pytest.raises(RuntimeError, match="stop"), observe(step.layer, [Everything()]):
        raise RuntimeError("stop")
    assert torch.equal(run(step), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in step.layer.module.modules())
    assert not hasattr(step.layer.experts, "observers")


def test_expert_sees_exactly_the_tokens_routed_to_it(checkpoint: Checkpoint, tokens_BT: Tensor) -> None:
    """Which tokens, what they are, what becomes of them, and with what weight they are added up."""
    step = last_step(checkpoint, tokens_BT)
    entered: list[Tensor] = []
    step.layer.router.register_forward_hook(lambda module, args, output: entered.append(args[0].flatten(0, -2)))
    seen = Everything()
    with observe(step.layer, [seen]):
        run(step)
    weights = {matrix.name: matrix.weight_OC for matrix in step.layer.matrices()}
    assert seen.calls.keys() == set(range(6))
    for expert, call in seen.calls.items():
        token_N, slot_N = (seen.index_TK == expert).nonzero(as_tuple=True)
        gate, up, down = (weights[f"mlp.experts.{expert}.{name}_proj"] for name in ("gate", "up", "down"))
        assert len(token_N) > 0
        assert torch.equal(call.x_ND, entered[0][token_N])
        torch.testing.assert_close(call.h_NF, nn.functional.silu(call.x_ND @ gate.T) * (call.x_ND @ up.T))
        torch.testing.assert_close(call.y_ND, call.h_NF @ down.T)
        assert torch.equal(call.weight_N, seen.weight_TK[token_N, slot_N])


def test_router_logits_are_the_routers_own(checkpoint: Checkpoint, tokens_BT: Tensor) -> None:
    """A router returns logits, weights and choice: shown in the wrong order they would still have plausible shapes."""
    step = last_step(checkpoint, tokens_BT)
    seen = Everything()
    with observe(step.layer, [seen]):
        run(step)
    assert torch.equal(seen.logits_TE.topk(2, dim=-1).indices, seen.index_TK)
    assert seen.logits_TE.shape == (tokens_BT.numel(), 6)


def test_an_expert_without_tokens_is_still_called(mixtral: Checkpoint, tokens_BT: Tensor) -> None:
    """Transformers' own loop skips it, so a statistic would not know that it is starved."""
    step = last_step(mixtral, tokens_BT)
    never_choose(step.layer, 5)
    seen = Everything()
    with observe(step.layer, [seen]):
        run(step)
    assert seen.calls[5].x_ND.shape == (0, 16)
    assert seen.calls[5].h_NF.shape == (0, 24)


def never_choose(layer: MoELayer, expert: int) -> None:
    """Two pairs of opposite router rows: whatever the token, two logits are above the zero of `expert`."""
    rows = layer.router.weight
    rows[1], rows[2], rows[3], rows[expert] = rows[0], -rows[0], -rows[0], 0


def test_expert_tokens_sum_to_tokens_times_top_k(checkpoint: Checkpoint, tokens_BT: Tensor) -> None:
    step = last_step(checkpoint, tokens_BT)
    tokens = ExpertTokens(6)
    with observe(step.layer, [tokens]):
        run(step)
    assert int(tokens.count_E.sum()) == tokens_BT.numel() * step.layer.top_k


def test_coactivation_sums_to_two_per_token_at_top_2(checkpoint: Checkpoint, tokens_BT: Tensor) -> None:
    """One pair a token, counted from both sides."""
    step = last_step(checkpoint, tokens_BT)
    coactivation = Coactivation(6)
    with observe(step.layer, [coactivation]):
        run(step)
    assert float(coactivation.count_EE.sum()) == 2 * tokens_BT.numel()


class EveryExpert(Everything):
    """Keeps every expert's output for all tokens, chunk by chunk, with the routing it came with."""

    def __init__(self, chunk_tokens: int) -> None:
        super().__init__()
        self.chunk_tokens = chunk_tokens
        self.chunks: list[tuple[Tensor, ...]] = []
        self.parts: list[tuple[int, Call]] = []

    def expert(self, expert: int, x_ND: Tensor, h_NF: Tensor, y_ND: Tensor, weight_N: Tensor) -> None:
        self.parts.append((expert, Call(x_ND, h_NF, y_ND, weight_N)))

    def all_experts(
        self, y_ETD: Tensor, router_logits_TE: Tensor, topk_index_TK: Tensor, topk_weight_TK: Tensor
    ) -> None:
        self.chunks.append((y_ETD.transpose(0, 1).clone(), router_logits_TE, topk_index_TK, topk_weight_TK))


CHUNKS = pytest.mark.parametrize("chunk_tokens", [1, 50, 128, 1000])


@CHUNKS
def test_every_expert_on_every_token_equals_each_expert_alone(
    checkpoint: Checkpoint, tokens_BT: Tensor, chunk_tokens: int
) -> None:
    """128 tokens in chunks that divide them or not: all are seen once, in order, with their own routing."""
    step = last_step(checkpoint, tokens_BT)
    entered: list[Tensor] = []
    hook = step.layer.experts.register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    seen = EveryExpert(chunk_tokens)
    with observe(step.layer, [seen]):
        run(step)
    hook.remove()
    assert [len(chunk[0]) for chunk in seen.chunks[:-1]] == [chunk_tokens] * (len(seen.chunks) - 1)
    y_TED, logits_TE, index_TK, weight_TK = (torch.cat(parts) for parts in zip(*seen.chunks, strict=True))
    for expert in range(6):
        alone_TD = step.layer.experts(entered[0], torch.full((128, 1), expert), torch.ones(128, 1))
        torch.testing.assert_close(y_TED[:, expert], alone_TD)
    assert torch.equal(logits_TE, seen.logits_TE)
    assert torch.equal(index_TK, seen.index_TK)
    assert torch.equal(weight_TK, seen.weight_TK)


@CHUNKS
def test_running_every_expert_leaves_the_outputs_as_they_are(
    checkpoint: Checkpoint, tokens_BT: Tensor, chunk_tokens: int
) -> None:
    """The sum is over the chosen experts alone, and a statistic that wants no more sees what it always sees."""
    step = last_step(checkpoint, tokens_BT)
    plain = run(step)
    chosen, every = Everything(), EveryExpert(chunk_tokens)
    with observe(step.layer, [chosen]):
        run(step)
    with observe(step.layer, [every]):
        observed = run(step)
    torch.testing.assert_close(observed, plain, rtol=1e-5, atol=1e-5)
    for expert, call in chosen.calls.items():
        parts = [part for number, part in every.parts if number == expert]
        for whole, pieces in zip(call, zip(*parts, strict=True), strict=True):
            torch.testing.assert_close(torch.cat(pieces), whole)


def test_the_smallest_chunk_asked_for_bounds_the_memory(mixtral: Checkpoint, tokens_BT: Tensor) -> None:
    """Two statistics with different wishes get the same chunks; one without a wish gets none."""
    step = last_step(mixtral, tokens_BT)
    small, large = EveryExpert(40), EveryExpert(100)
    with observe(step.layer, [ExpertTokens(6), large, small]):
        run(step)
    assert [len(chunk[0]) for chunk in large.chunks] == [len(chunk[0]) for chunk in small.chunks] == [40, 40, 40, 8]


def test_mean_outputs_do_not_depend_on_the_chunk(
    mixtral: Checkpoint, tokens_BT: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    means = []
    for chunk_tokens in (1024, 7):
        monkeypatch.setattr(MeanOutputs, "chunk_tokens", chunk_tokens)
        step, outputs = last_step(mixtral, tokens_BT), MeanOutputs()
        with observe(step.layer, [outputs]):
            run(step)
        assert outputs.num_tokens == tokens_BT.numel()
        means.append(outputs.mean_ED())
    torch.testing.assert_close(*means, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("every", [False, True], ids=["chosen experts", "every expert"])
def test_routed_outputs_are_what_the_experts_give(checkpoint: Checkpoint, tokens_BT: Tensor, every: bool) -> None:
    """Without a shared expert's part, and without the residual; last call of a batch."""
    step = last_step(checkpoint, tokens_BT)
    given: list[Tensor] = []
    hook = step.layer.experts.register_forward_hook(lambda module, args, output: given.append(output.clone()))
    run(step)
    outputs = RoutedOutputs()
    with observe(step.layer, [outputs, *([EveryExpert(50)] if every else [])]):
        run(step)
    hook.remove()
    (found_TD,) = outputs.outputs_TD
    torch.testing.assert_close(found_TD, given[0], rtol=1e-5, atol=1e-5)


class Everywhere(Everything):
    """Keeps what chosen experts make of every token."""

    def __init__(self, *experts: int) -> None:
        super().__init__()
        self.every_token = frozenset(experts)
        self.seen: list[tuple[int, Tensor, Tensor]] = []

    def expert_everywhere(self, expert: int, x_TD: Tensor, h_TF: Tensor) -> None:
        self.seen.append((expert, x_TD, h_TF))


def test_an_expert_can_be_seen_on_tokens_not_routed_to_it(checkpoint: Checkpoint, tokens_BT: Tensor) -> None:
    """All tokens, once a batch, in their order; by each statistic those that it named, and no output changes."""
    step = last_step(checkpoint, tokens_BT)
    plain = run(step)
    entered: list[Tensor] = []
    hook = step.layer.experts.register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    two, one, none = Everywhere(0, 5), Everywhere(5), Everywhere()
    with observe(step.layer, [two, one, none]):
        observed = run(step)
    hook.remove()
    torch.testing.assert_close(observed, plain, rtol=1e-5, atol=1e-5)
    weights = {matrix.name: matrix.weight_OC for matrix in step.layer.matrices()}
    assert [sorted(expert for expert, _, _ in statistic.seen) for statistic in (two, one, none)] == [[0, 5], [5], []]
    for expert, x_TD, h_TF in (*two.seen, *one.seen):
        gate, up = (weights[f"mlp.experts.{expert}.{name}_proj"] for name in ("gate", "up"))
        assert torch.equal(x_TD, entered[0])
        torch.testing.assert_close(h_TF, nn.functional.silu(x_TD @ gate.T) * (x_TD @ up.T))
    for statistic in (two, one, none):
        routed = [int((statistic.index_TK == expert).sum()) for expert in range(6)]
        assert [len(statistic.calls[expert].x_ND) for expert in range(6)] == routed


def test_an_expert_that_nobody_chose_is_seen_on_every_token(mixtral: Checkpoint, tokens_BT: Tensor) -> None:
    """What a starved expert is pruned by."""
    step = last_step(mixtral, tokens_BT)
    never_choose(step.layer, 5)
    seen = Everywhere(5)
    with observe(step.layer, [seen]):
        run(step)
    ((expert, x_TD, h_TF),) = seen.seen
    assert (expert, len(x_TD), len(seen.calls[5].x_ND)) == (5, tokens_BT.numel(), 0)
    assert bool(h_TF.abs().sum(0).gt(0).all())
