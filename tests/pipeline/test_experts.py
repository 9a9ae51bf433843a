"""The stages together, from a checkpoint on disk to a pruned one: what was asked is what the files lack."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from stun_exp.allocation.protocol import Allocation
from stun_exp.allocation.uniform import Uniform
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.writer import CheckpointWriter
from stun_exp.cli.main import CONF
from stun_exp.expert_pruner.none import KeepAllExperts
from stun_exp.expert_pruner.protocol import ExpertPruner
from stun_exp.expert_pruner.stun.stun import STUN
from stun_exp.moe.plan import Plan, keep
from stun_exp.pipeline.allocate import layer_ratios
from stun_exp.pipeline.budget import Scope, budget_of, expected_counts
from stun_exp.pipeline.experts import even_counts, missed_ratio, plan_experts, uneven_losses
from stun_exp.pipeline.prune import Pruning, prune_layers
from stun_exp.pipeline.verify import count_written, prove_it_runs
from stun_exp.pipeline.weight_stage import WeightStage
from stun_exp.state.cache import NoCache, Store
from stun_exp.state.statistics_cache import StatisticsCache
from stun_exp.streaming.walk import Walk
from stun_exp.unstructured_pruner.none import KeepAllWeights
from stun_exp.unstructured_pruner.protocol import UnstructuredPruner

CPU = torch.device("cpu")
NOTHING_KNOWN = StatisticsCache(Store(NoCache(), pytest.fail), {})


def built(choice: str, **settings: Any) -> Any:
    """The component that `group/choice` of conf/ describes, but for the settings given."""
    config = yaml.safe_load((CONF / f"{choice}.yaml").read_text())
    module, _, name = config.pop("_target_").rpartition(".")
    return getattr(import_module(module), name)(**config | settings)


WANDA = built("unstructured_pruner/wanda")
PRUNERS = {name: built(f"unstructured_pruner/{name}") for name in ("wanda", "moe_pruner", "magnitude")}
OWL = built("allocation/owl", outlier_multiple=3.0)
KEEP_EXPERTS = KeepAllExperts()
FIFTH = STUN(
    ratio=0.2,
    lambda1=1.0,
    lambda2=0.5,
    lambda_weights=0.0,
    lambda_outputs=0.0,
    router_scale="none",
    coactivation_scale="mean",
    linkage="complete",
    budget="global",
    representative="nearest",
    kappa=3,
    kappa_on="clusters",
    threshold=None,
    max_removed_per_layer=None,
    laboratory=False,
)


class Pruned:
    """A run of all stages, in the order of the pipeline."""

    def __init__(
        self,
        source: Checkpoint,
        tokens_BT: Tensor,
        out: Path,
        sparsity: float,
        *,
        experts: ExpertPruner = KEEP_EXPERTS,
        weights: UnstructuredPruner = WANDA,
        allocation: Allocation | None = None,
        scope: Scope = "decoder",
    ):
        batches_BT = list(tokens_BT.split(3))
        walks = [Walk(source, batches_BT, CPU, what) for what in ("selecting experts", "full model")]
        self.plan = plan_experts(source, experts, *walks, NOTHING_KNOWN)

        kept = {layer.layer: len(layer.groups) for layer in self.plan.layers}
        self.budget = budget_of(source, kept, sparsity, scope, weights.attention)
        stage = WeightStage(weights, scope)
        self.allocating = Walk(source, batches_BT, CPU, "allocating", self.plan)
        self.ratios = layer_ratios(
            stage, allocation or Uniform(), self.budget, self.budget.weights_ratio(), self.allocating
        )
        self.pruning = Walk(source, batches_BT, CPU, "pruning", self.plan)
        prune_layers([Pruning(stage, self.ratios, self.pruning, CheckpointWriter(source, out))])
        self.written = Checkpoint(out, None)
        self.stage = stage

    def sparsity_on_disk(self) -> float:
        """Removed weights and zeros over the weights in scope, from the written files."""
        layers = count_written(self.written, self.stage, range(self.written.num_layers))
        planned = [layer.in_scope for layer in self.budget.layers]
        gone = sum(n - found.weights + found.zeros for n, found in zip(planned, layers, strict=True))
        return gone / self.budget.in_scope


def hashes(path: Path) -> dict[str, str]:
    found = {file.name: sha256(file.read_bytes()).hexdigest() for file in path.iterdir()}
    assert found
    return found


def weights(path: Path) -> dict[str, Tensor]:
    found = {key: tensor for file in sorted(path.glob("*.safetensors")) for key, tensor in load_file(file).items()}
    assert found
    return found


@pytest.mark.parametrize("pruner", PRUNERS.values(), ids=PRUNERS)
@pytest.mark.parametrize("allocation", [Uniform(), OWL], ids=["uniform", "owl"])
def test_asked_sparsity_is_counted_on_disk(
    checkpoint: Checkpoint,
    tokens_BT: Tensor,
    tmp_path: Path,
    pruner: UnstructuredPruner,
    allocation: Allocation,
) -> None:
    """Experts first, then weights, every family: a stage that skipped fused experts would show at once."""
    pruned = Pruned(checkpoint, tokens_BT, tmp_path / "out", 0.5, experts=FIFTH, weights=pruner, allocation=allocation)
    assert pruned.sparsity_on_disk() == pytest.approx(0.5, abs=0.001)
    assert len({layer.num_experts for layer in pruned.written.outlines}) > 1  # unequal layers


@pytest.mark.parametrize("scope", ["experts", "decoder", "model"])
@pytest.mark.parametrize("attention", [True, False])
def test_every_scope_is_counted_on_disk(
    checkpoint: Checkpoint, tokens_BT: Tensor, tmp_path: Path, scope: Scope, attention: bool
) -> None:
    """OWL under `experts` has nothing to measure in the dense layer of Qwen2-MoE, which must not disturb it."""
    pruned = Pruned(
        checkpoint,
        tokens_BT,
        tmp_path / "out",
        0.4,
        experts=FIFTH,
        weights=built("unstructured_pruner/wanda", attention=attention),
        allocation=OWL,
        scope=scope,
    )
    assert pruned.sparsity_on_disk() == pytest.approx(0.4, abs=0.001)


@pytest.mark.parametrize(("scope", "attention"), [("experts", True), ("decoder", False)])
def test_attention_out_of_reach_is_bit_equal(
    checkpoint: Checkpoint, tokens_BT: Tensor, tmp_path: Path, scope: Scope, attention: bool
) -> None:
    pruned = Pruned(
        checkpoint,
        tokens_BT,
        tmp_path / "out",
        0.4,
        weights=built("unstructured_pruner/wanda", attention=attention),
        scope=scope,
    )
    source, written = weights(checkpoint.path), weights(pruned.written.path)
    untouched = [key for key in source if ".self_attn." in key]
    assert untouched
    assert all(torch.equal(source[key], written[key]) for key in untouched)


def test_routers_norms_gates_and_embeddings_are_never_pruned(
    checkpoint: Checkpoint, tokens_BT: Tensor, tmp_path: Path
) -> None:
    """The published code prunes the router as one more linear."""
    pruned = Pruned(checkpoint, tokens_BT, tmp_path / "out", 0.9)
    for key, tensor in weights(pruned.written.path).items():
        if any(part in key for part in ("gate.weight", "norm", "bias", "embed", "lm_head")):
            assert torch.equal(tensor, weights(checkpoint.path)[key]), key


def test_nothing_asked_writes_bit_equal_weights(checkpoint: Checkpoint, tokens_BT: Tensor, tmp_path: Path) -> None:
    """0 % is the identity, and costs no measuring."""
    pruned = Pruned(checkpoint, tokens_BT, tmp_path / "out", 0.0, allocation=OWL)
    source, written = weights(checkpoint.path), weights(pruned.written.path)
    assert source.keys() == written.keys()
    assert all(torch.equal(source[key], written[key]) for key in source)
    assert pruned.allocating.forward_passes == 0


def test_no_pruner_at_all_writes_bit_equal_weights(mixtral: Checkpoint, tokens_BT: Tensor, tmp_path: Path) -> None:
    pruned = Pruned(mixtral, tokens_BT, tmp_path / "out", 0.0, weights=KeepAllWeights())
    source, written = weights(mixtral.path), weights(pruned.written.path)
    assert all(torch.equal(source[key], written[key]) for key in source)


def test_two_runs_write_the_same_bytes(checkpoint: Checkpoint, tokens_BT: Tensor, tmp_path: Path) -> None:
    gated = PRUNERS["moe_pruner"]
    for name in ("once", "again"):
        Pruned(checkpoint, tokens_BT, tmp_path / name, 0.5, experts=FIFTH, weights=gated, allocation=OWL)
    assert hashes(tmp_path / "once") == hashes(tmp_path / "again")


def test_wanda_with_owl_costs_two_passes_at_most(mixtral: Checkpoint, tokens_BT: Tensor, tmp_path: Path) -> None:
    """One to measure, and one and a rerun of each changed layer but the last to prune."""
    pruned = Pruned(mixtral, tokens_BT, tmp_path / "out", 0.5, allocation=OWL)
    assert pruned.allocating.forward_passes == pytest.approx(1)
    assert pruned.pruning.forward_passes == pytest.approx(5 / 3)


@pytest.mark.parametrize("pruner", PRUNERS.values(), ids=PRUNERS)
def test_permuting_experts_commutes_with_all_stages(
    checkpoint: Checkpoint,
    write_regrouped: Callable[[Checkpoint, dict[int, list[list[int]]]], Checkpoint],
    tokens_BT: Tensor,
    tmp_path: Path,
    pruner: UnstructuredPruner,
) -> None:
    """Experts carry no meaning in their number: a renumbered model is pruned to the renumbered result."""
    order = [3, 5, 0, 1, 4, 2]
    renumbered = write_regrouped(checkpoint, {2: [[expert] for expert in order]})
    plain = Pruned(checkpoint, tokens_BT, tmp_path / "plain", 0.5, weights=pruner).written.read_layer(2)
    other = Pruned(renumbered, tokens_BT, tmp_path / "other", 0.5, weights=pruner).written.read_layer(2)
    plain.regroup([[expert] for expert in order])
    pieces = zip(plain.expert_weights(range(6)), other.expert_weights(range(6)), strict=True)
    # Sums of floats in another order may flip a near tie, no more.
    assert all(float((one == two).float().mean()) > 0.999 for one, two in pieces)


def test_a_model_that_gives_nan_is_caught_at_its_layer(mixtral_copy: Path, tokens_BT: Tensor) -> None:
    tensors = load_file(mixtral_copy / "model.safetensors")
    tensors["model.layers.1.self_attn.o_proj.weight"][0, 0] = torch.nan
    save_file(tensors, mixtral_copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="layer 1 of the pruned model gives NaN"):
        prove_it_runs(Walk(Checkpoint(mixtral_copy, None), [tokens_BT], CPU, "test"))


def test_a_model_without_experts_has_an_empty_plan(
    tiny_model: Callable[[str], Path], tmp_path: Path, tokens_BT: Tensor
) -> None:
    """All layers of this Qwen2-MoE are dense; a ratio is refused before."""
    config = AutoConfig.from_pretrained(tiny_model("qwen2_moe"))
    config.mlp_only_layers = [0, 1, 2]
    dense = tmp_path / "dense"
    AutoModelForCausalLM.from_config(config).save_pretrained(dense)
    source = Checkpoint(dense, None)
    assert Pruned(source, tokens_BT, tmp_path / "out", 0.0).plan.layers == []
    with pytest.raises(
        ValueError, match=r"expert_pruner.ratio=0.5: no layer of .* has experts; pass expert_pruner=none"
    ):
        expected_counts(source, 0.5)


@dataclass(frozen=True)
class Counts:
    """What `even_counts` looks at."""

    index: int
    num_experts: int
    min_experts: int = 2
    top_k: int = 2
    num_groups: int = 1


def test_an_even_budget_is_exact_in_total() -> None:
    """0.2 of 32 is 6.4: rounded alone, four layers would lose 24 and not 26 of 128."""
    assert even_counts([Counts(i, 32) for i in range(4)], 0.2) == [26, 25, 26, 25]
    assert even_counts([Counts(0, 8), Counts(1, 16), Counts(2, 4)], 0.25) == [6, 12, 3]
    assert even_counts([Counts(i, 8) for i in range(3)], 0.0) == [8, 8, 8]


def test_an_even_budget_takes_equally_many_from_each_group() -> None:
    """A quarter of 32 in 4 groups is 2 of each; a tenth is 3.2 a layer, so some layers lose more and some none."""
    assert even_counts([Counts(0, 32, num_groups=4)], 0.25) == [24]
    counts = even_counts([Counts(i, 32, num_groups=4) for i in range(10)], 0.1)
    assert all(count % 4 == 0 for count in counts)
    assert sum(counts) == 288


def test_a_number_of_experts_that_groups_put_out_of_reach_is_said() -> None:
    """Whichever pruner: 3 of 8 experts in two groups are 4, or 2."""
    layers = [Counts(0, 8, num_groups=2)]
    kept = even_counts(layers, 0.375)
    (warning,) = missed_ratio(layers, 0.375, kept)
    assert f"ratio=0.375 would keep 5 of 8 experts; {kept[0]} is the nearest" in warning
    assert missed_ratio(layers, 0.5, even_counts(layers, 0.5)) == []


def test_a_ratio_that_leaves_a_layer_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ratio=0.9 leaves 1 of 8 experts in layer 5; the router needs 2 \(top_k=2\)"):
        even_counts([Counts(5, 8)], 0.9)


@dataclass
class Router:
    """All that a warning about its layer looks at."""

    index: int
    top_k: int = 2


def uneven(pruner: ExpertPruner, *kept: int) -> list[str]:
    """The warnings of a plan that keeps so many of eight experts in each layer."""
    plan = Plan([keep(layer, 8, range(left)) for layer, left in enumerate(kept)])
    return uneven_losses(plan, [Router(layer) for layer in range(len(kept))], pruner)  # type: ignore[list-item]


def test_layers_that_lose_over_twice_the_mean_share_are_named_with_the_way_out() -> None:
    """Of 8, 8, 8, 4 one in eight goes on average, and half of the last layer; of 8, 8, 6, 6 none loses more."""
    (warning,) = uneven(FIFTH, 8, 8, 8, 4)
    assert "more than twice the mean share of 12 % keep layer 3: 4 of 8 experts" in warning
    assert "expert_pruner.budget=per_layer, or expert_pruner.max_removed_per_layer=N, or a lower" in warning
    assert uneven(FIFTH, 8, 8, 6, 6) == []


def test_a_router_without_a_choice_is_named() -> None:
    (warning,) = uneven(built("expert_pruner/random", ratio=0.75, seed=0), 2, 2, 2)
    assert "(layer 0: 2 of 8, layer 1: 2 of 8, layer 2: 2 of 8)" in warning
    assert "budget" not in warning  # which random has not
    assert uneven(KEEP_EXPERTS, 8, 8) == []
