"""Distinct experts that a batch hits, counted by hand."""

import torch

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.load import assemble
from stun_exp.inference.records import ExpertsHit
from stun_exp.inference.routing import Choices, experts_hit, hit_by


def choices(sequences: list[list[list[int]]], num_experts: int) -> torch.Tensor:
    """What a layer's tokens chose: of each sequence, of each token, its experts."""
    found = Choices()
    for sequence in sequences:
        found.routing(torch.empty(0), torch.tensor(sequence), torch.empty(0))
    return found.chosen_BTE(num_experts)


def test_experts_are_counted_together_over_sequences_place_by_place() -> None:
    """Two sequences of two tokens, two experts each, of 4.

    At place 0 they choose {0, 1} and {1, 2}: 3 together; at place 1 {0, 1} and {0, 1}: 2; all of them {0, 1, 2}.
    """
    chosen = [choices([[[0, 1], [0, 1]], [[1, 2], [1, 0]]], 4)]
    assert hit_by(chosen, 1) == ExpertsHit(1, decode=2.0, prefill=2.0)
    assert hit_by(chosen, 2) == ExpertsHit(2, decode=2.5, prefill=3.0)


def test_figures_are_means_over_layers_of_different_sizes() -> None:
    one, other = choices([[[0], [1]]], 2), choices([[[2], [2]]], 5)
    assert hit_by([one, other], 1) == ExpertsHit(1, decode=1.0, prefill=1.5)


def test_a_token_over_an_experts_capacity_hits_nobody() -> None:
    """It is numbered as one more than there are."""
    assert hit_by([choices([[[0], [3]]], 3)], 1) == ExpertsHit(1, decode=0.5, prefill=1.0)


def test_they_are_those_that_the_router_chooses(mixtral: Checkpoint, tokens_BT: torch.Tensor) -> None:
    """Against the two largest of the logits that transformers gives."""
    model, prompts_BT = assemble(mixtral, torch.device("cpu")), tokens_BT[:3, :8]
    (found,) = experts_hit(model, mixtral.family, prompts_BT, [3])
    with torch.inference_mode():
        logits = model(prompts_BT, output_router_logits=True).router_logits
    chosen = [layer.topk(2).indices.view(3, 8, 2) for layer in logits]
    decode = [len(set(layer[:, place].flatten().tolist())) for layer in chosen for place in range(8)]
    assert abs(found.decode - sum(decode) / len(decode)) < 1e-6
    assert found.prefill == sum(len(set(layer.flatten().tolist())) for layer in chosen) / 3
