"""The recipe resumes to the same weights, keeps experts in use, and weighs answers as it says."""

import dataclasses
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import MixtralForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from scripts.toy.probe import expert_shares
from scripts.toy.recipes import RECIPE, TOYS, UPCYCLED_RECIPE, Phase, Recipe
from scripts.toy.training import (
    answer_mask,
    balance_loss,
    language_loss,
    learning_rate,
    packed_batch,
    ship,
    train,
)
from scripts.toy.upcycling import MASKED, start, upcycle
from stun_exp.toy import WEIGHTS

BUNDLED = [model for model in TOYS if not model.startswith("ladder")]
TINY = dataclasses.replace(RECIPE, steps=2, batch_size=2, sequence_length=24, warmup_steps=1)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    loaded: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(WEIGHTS)
    return loaded


def tiny_config(tokenizer: PreTrainedTokenizerFast, model: str = "toy_moe", phase: int = -1) -> PretrainedConfig:
    config = TOYS[model][phase].config(tokenizer)
    config.update({"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 2})
    if hasattr(config, "head_dim"):
        config.update({"head_dim": 4})
    if hasattr(config, "num_local_experts"):
        config.update({"num_local_experts": 4})
    return config


def tiny_phases(tokenizer: PreTrainedTokenizerFast, model: str, recipe: Recipe) -> list[Phase]:
    shapes = [partial(tiny_config, model=model, phase=number) for number in range(len(TOYS[model]))]
    return [Phase(recipe, shape) for shape in shapes]


def run(
    tokenizer: PreTrainedTokenizerFast,
    checkpoint: Path,
    stop_after: int | None = None,
    model: str = "toy_moe",
    recipe: Recipe = TINY,
) -> PreTrainedModel:
    """A tiny model of the toy's kind, trained through all of its phases; only the last stops early."""
    trained = None
    phases = tiny_phases(tokenizer, model, recipe)
    for number, phase in enumerate(phases, 1):
        trained = train(
            recipe,
            start(phase, tokenizer, trained),
            tokenizer,
            device=torch.device("cpu"),
            checkpoint=checkpoint.with_suffix(f".{number}"),
            checkpoint_every=1,
            report=lambda step, measured: None,
            stop_after=stop_after if number == len(phases) else None,
        )
    assert trained is not None
    return trained


@pytest.mark.parametrize("model", BUNDLED)
def test_a_resumed_run_ends_in_the_same_weights(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, model: str) -> None:
    whole = run(tokenizer, tmp_path / "whole.pt", model=model)
    half = run(tokenizer, tmp_path / "half.pt", stop_after=1, model=model)
    torch.manual_seed(12345)  # the state of the generator at the time of the break must not matter
    resumed = run(tokenizer, tmp_path / "half.pt", model=model)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    assert not torch.equal(whole.lm_head.weight, half.lm_head.weight)


def test_training_starts_where_the_shipped_weights_did(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """The shipped toy_moe was drawn by the architecture's own constructor, from the recipe's seed."""
    untrained = run(tokenizer, tmp_path / "none.pt", recipe=dataclasses.replace(TINY, steps=0))
    torch.manual_seed(RECIPE.seed)
    for name, weight in MixtralForCausalLM(tiny_config(tokenizer)).state_dict().items():
        assert torch.equal(weight, untrained.state_dict()[name]), name


def test_a_checkpoint_of_another_recipe_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    torch.save({"recipe": vars(RECIPE), "step": 1}, tmp_path / "other.1")
    with pytest.raises(ValueError, match=r"other\.1 was made with"):
        run(tokenizer, tmp_path / "other.pt")


def test_a_training_may_be_made_longer_before_its_rate_falls(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Of 10 steps the last fifth falls: after 7 the first steps are those of 20 as well, after 9 they are not."""
    short = dataclasses.replace(TINY, restart_step=None, steps=10)
    long = dataclasses.replace(short, steps=20)
    run(tokenizer, tmp_path / "a.pt", recipe=short, stop_after=7)
    longer = run(tokenizer, tmp_path / "a.pt", recipe=long)
    whole = run(tokenizer, tmp_path / "b.pt", recipe=long)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, longer.state_dict()[name]), name
    run(tokenizer, tmp_path / "c.pt", recipe=short, stop_after=10)
    with pytest.raises(ValueError, match=r"c\.1 was made with"):
        run(tokenizer, tmp_path / "c.pt", recipe=long)


@torch.no_grad()
def test_a_mixture_of_copies_computes_what_the_dense_model_does(tokenizer: PreTrainedTokenizerFast) -> None:
    """Gates add up to one and all experts are alike, so it does not matter which are chosen."""
    dense_phase, mixture_phase, _ = tiny_phases(tokenizer, "toy_upcycled", TINY)
    dense = start(dense_phase, tokenizer, None).eval()
    mixture = start(mixture_phase, tokenizer, dense).eval()
    ids_BS = packed_batch(tokenizer, TINY, 0)
    torch.testing.assert_close(mixture(ids_BS).logits, dense.float()(ids_BS).logits, rtol=1e-4, atol=1e-5)
    routers = [layer.mlp.gate.weight for layer in mixture.model.layers]
    assert all(0.01 < router.std() < 0.03 for router in routers)


@torch.no_grad()
def test_all_slices_together_are_the_dense_feed_forward(tokenizer: PreTrainedTokenizerFast) -> None:
    """Two slices of two copies each: chosen all, with even gates, they give what the dense feed-forward gives."""
    dense_phase, mixture_phase, _ = tiny_phases(tokenizer, "toy_upcycled", TINY)
    dense = start(dense_phase, tokenizer, None).eval()
    config = mixture_phase.config(tokenizer)
    config.update({"intermediate_size": 4, "num_local_experts": 4, "num_experts_per_tok": 4})
    mixture = upcycle(dense, config, seed=0).eval()
    for layer in mixture.model.layers:
        layer.mlp.gate.weight.zero_()
    ids_BS = packed_batch(tokenizer, TINY, 0)
    torch.testing.assert_close(mixture(ids_BS).logits, dense(ids_BS).logits, rtol=1e-4, atol=1e-5)


def test_shipped_files_are_stock_per_expert_bf16(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    ship(MixtralForCausalLM(tiny_config(tokenizer)), tokenizer, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_all_rungs_have_one_budget(tokenizer: PreTrainedTokenizerFast) -> None:
    """Width times experts, and width times experts a token, are those of every rung; so are the recipes."""
    rungs = [phases for name, phases in TOYS.items() if name.startswith("ladder")]
    configs = [mixture.config(tokenizer) for _, mixture in rungs]
    assert [config.num_local_experts for config in configs] == [8, 16, 32, 64, 128, 256]
    assert {config.num_local_experts * config.intermediate_size for config in configs} == {1024}
    assert {config.num_experts_per_tok * config.intermediate_size for config in configs} == {256}
    assert len({(dense.recipe, mixture.recipe) for dense, mixture in rungs}) == 1


def test_rows_start_with_a_document_and_repeat_exactly(tokenizer: PreTrainedTokenizerFast) -> None:
    recipe = dataclasses.replace(TINY, sequence_length=256)
    ids_BS = packed_batch(tokenizer, recipe, step=7)
    assert ids_BS.shape == (2, 256)
    assert torch.equal(ids_BS, packed_batch(tokenizer, recipe, step=7))
    assert not torch.equal(ids_BS, packed_batch(tokenizer, recipe, step=8))
    assert (ids_BS[:, 0] != tokenizer.eos_token_id).all()
    assert (ids_BS == tokenizer.eos_token_id).any()


def test_experts_as_one_wide_feed_forward_give_the_same_and_learn_the_same(tokenizer: PreTrainedTokenizerFast) -> None:
    ids_BS = packed_batch(tokenizer, TINY, 0)
    gradients = []
    for implementation in (MASKED, "eager"):
        torch.manual_seed(0)
        model = MixtralForCausalLM(tiny_config(tokenizer))
        model.set_experts_implementation(implementation)
        model(input_ids=ids_BS, labels=ids_BS).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-4, atol=1e-6)


def test_balance_loss_by_hand() -> None:
    # Even logits over four experts: every probability is 1/4, so the loss is 4 * 1/4 whatever the load.
    assert balance_loss(torch.zeros(2, 4), top_k=1).item() == pytest.approx(1.0)
    # Both tokens surely to expert 0: its load and its probability are 1, so the loss is 4.
    assert balance_loss(torch.tensor([[50.0, 0, 0, 0]] * 2), top_k=1).item() == pytest.approx(4.0)


def test_answer_mask_by_hand() -> None:
    # 1 2 open an answer, 8 or 9 closes it. The 1 alone opens nothing; the second 8 closes nothing.
    ids_BS = torch.tensor([[1, 3, 1, 2, 5, 6, 8, 7, 8, 1, 2, 4, 9, 5]])
    inside = [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 1, 0]
    assert answer_mask(ids_BS, (1, 2), (8, 9)).int().tolist() == [inside]


def test_answer_weight_by_hand() -> None:
    # Of the three predicted tokens the second is an answer and counts three times.
    ids_BS = torch.tensor([[1, 2, 3, 0]])
    logits_BSV = torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(0))
    one_S = F.cross_entropy(logits_BSV[0, :-1], ids_BS[0, 1:], reduction="none")
    expected = (one_S[0] + 3 * one_S[1] + one_S[2]) / 5
    answer_BS = torch.tensor([[False, False, True, False]])
    torch.testing.assert_close(language_loss(logits_BSV, ids_BS, answer_BS, 3.0), expected)


def test_learning_rate_rises_falls_and_restarts_at_half() -> None:
    rates = [learning_rate(step, RECIPE) for step in range(RECIPE.steps)]
    peak, restart = RECIPE.learning_rate, RECIPE.restart_step
    assert rates[1] == pytest.approx(2 * rates[0])
    assert max(rates) == pytest.approx(peak) == rates[RECIPE.warmup_steps]
    assert rates[restart - 1] == pytest.approx(0.02 * peak, rel=0.01)
    assert rates[restart] == pytest.approx(peak / 2)
    assert rates[-1] == pytest.approx(0.01 * peak, rel=0.01)


def test_the_rate_without_a_restart_is_constant_until_its_last_fifth() -> None:
    recipe = UPCYCLED_RECIPE
    rates = [learning_rate(step, recipe) for step in range(recipe.steps)]
    falls = round(0.8 * recipe.steps)
    assert set(rates[recipe.warmup_steps : falls + 1]) == {recipe.learning_rate}
    assert rates[-1] == pytest.approx(0.02 * recipe.learning_rate, rel=0.1)
    assert rates[falls:] == sorted(rates[falls:], reverse=True)


def test_expert_shares_average_to_one(tokenizer: PreTrainedTokenizerFast) -> None:
    model = MixtralForCausalLM(tiny_config(tokenizer)).eval()
    shares_LE = expert_shares(model, tokenizer, num_documents=20)
    assert shares_LE.shape == (2, 4)
    torch.testing.assert_close(shares_LE.mean(1), torch.ones(2))
