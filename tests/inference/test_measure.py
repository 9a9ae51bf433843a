"""Two models measured side by side, and settings that cannot be."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.writer import CheckpointWriter
from stun_exp.inference import fitting, side_by_side
from stun_exp.inference.measure import MeasureInference
from stun_exp.inference.protocol import Compared
from stun_exp.inference.side_by_side import FILLED, first_prompts

Compare = Callable[[Mapping[str, Checkpoint]], Compared]
Small = Callable[..., MeasureInference]
CPU = torch.device("cpu")


@pytest.fixture
def pruned(mixtral: Checkpoint, write_regrouped: Callable[..., Checkpoint]) -> Checkpoint:
    """The tiny Mixtral without two experts of its first layer."""
    return write_regrouped(mixtral, {0: [[0], [2], [3], [5]]})


@pytest.fixture
def with_zeros(mixtral: Checkpoint, tmp_path: Path) -> Checkpoint:
    """The tiny Mixtral with every other input of each expert's matrices zero."""
    writer = CheckpointWriter(mixtral, tmp_path / "zeros")
    for index in range(mixtral.num_layers):
        layer = mixtral.read_layer(index)
        for matrix in layer.matrices():
            if matrix.kind == "expert":
                matrix.weight_OC[:, ::2] = 0
        writer.write_layer(layer)
    writer.finish()
    return Checkpoint(writer.path, None)


def test_removed_experts_free_memory_for_the_cache(
    mixtral: Checkpoint, pruned: Checkpoint, compared: Compare, small: Small
) -> None:
    """2 experts of 3 matrices of 16 x 24 and their 2 router rows of 16, 4 bytes each.

    A token takes keys and values of 3 layers, 2 heads of 4 numbers, 4 bytes each.
    """
    found = small().measure(compared({"unpruned": mixtral, "pruned": pruned}))
    before, after = found.models
    freed = 4 * (2 * 3 * 16 * 24 + 2 * 16)
    assert (before.freed_bytes, after.freed_bytes) == (0, freed)
    assert before.weight_bytes - after.weight_bytes == freed
    assert before.kv_bytes_per_token == after.kv_bytes_per_token == 2 * 3 * 2 * 4 * 4
    assert after.freed_tokens == freed // 192
    assert (before.num_experts, after.num_experts) == (6.0, pytest.approx(16 / 3))
    assert before.active_parameters - after.active_parameters == 2 * 16  # the router's rows alone
    assert not before.variants
    assert not after.variants
    for model in found.models:
        assert [speed.batch_size for speed in model.speed] == [1, 2]
        for speed in model.speed:
            assert 0 < speed.decode.lower <= speed.decode.median <= speed.decode.upper


def test_a_model_with_zeros_is_measured_once_more_without_them(
    mixtral: Checkpoint, with_zeros: Checkpoint, compared: Compare, small: Small
) -> None:
    """So that what zeros do to speed is a measured figure; the toy's experts are 3/4 of the weights in matrices."""
    found = small().measure(compared({"unpruned": mixtral, "pruned": with_zeros}))
    before, after = found.models
    (variant,) = after.variants
    assert variant.name == FILLED
    assert [speed.batch_size for speed in variant.speed] == [1, 2]
    experts, attention = 6 * 3 * 16 * 24, 2 * 16 * 16 + 2 * 8 * 16
    assert after.zeros == pytest.approx(experts / 2 / (experts + attention))
    assert after.formats.num_two_four == 3 * 6 * 3
    # Of 4 bytes a weight, half of the weights and two bits each: 1.875 bytes a weight are left out.
    assert after.formats.two_four == after.formats.dense - 3 * 1.875 * experts
    assert after.formats.bitmask == after.formats.dense - 3 * (4 / 2 - 1 / 8) * experts
    assert after.freed_bytes == 0
    assert after.experts_hit[0].decode == before.experts_hit[0].decode == 2.0


def test_zeros_are_not_measured_apart_where_memory_is_short(
    mixtral: Checkpoint, with_zeros: Checkpoint, compared: Compare, small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 2 * 4 * mixtral.num_parameters
    monkeypatch.setattr(fitting, "machine", lambda: {"RAM": room})
    found = small().measure(compared({"unpruned": mixtral, "pruned": with_zeros}))
    assert not found.models[1].variants
    assert "no memory" in found.notes[0]


def test_models_must_fit_in_memory_side_by_side(
    mixtral: Checkpoint, compared: Compare, small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before a run prunes; what is pruned away is not counted on."""
    monkeypatch.setattr(fitting, "machine", lambda: {"RAM": 6 * mixtral.num_parameters})
    with pytest.raises(ValueError, match=r"side by side.*pass inference=none save=true"):
        small().check(mixtral, CPU, False)
    with pytest.raises(ValueError, match="side by side"):
        small().measure(compared({"unpruned": mixtral, "pruned": mixtral}))
    small().check(mixtral, CPU, True)


def test_prompts_must_fit_in_the_model(mixtral: Checkpoint, compared: Compare, small: Small) -> None:
    with pytest.raises(ValueError, match=r"prompt_tokens=60.*at most 64 tokens"):
        small(prompt_tokens=60, new_tokens=5).check(mixtral, CPU, False)
    small(prompt_tokens=60, new_tokens=4).check(mixtral, CPU, False)


def test_models_of_different_vocabularies_are_refused(
    mixtral: Checkpoint, mixtral_copy: Path, compared: Compare, small: Small
) -> None:
    other = Checkpoint(mixtral_copy, None)
    other.config.vocab_size = 65
    with pytest.raises(ValueError, match=r"different sizes \(a 64, b 65\)"):
        small().measure(compared({"a": mixtral, "b": other}))


def test_short_text_is_read_again_and_that_is_said() -> None:
    tokens = torch.arange(10)
    prompts, notes = first_prompts([tokens[None, :6], tokens[None, 6:]], 2, 4)
    assert prompts.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert notes == []
    prompts, notes = first_prompts([tokens[None]], 3, 4)
    assert prompts.flatten().tolist() == [*range(10), 0, 1]
    assert "it is read 2 times" in notes[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_sizes": [1, 1]}, "different numbers"),
        ({"batch_sizes": [0]}, "1 or more"),
        ({"batch_sizes": []}, "at least 1"),
        ({"prompt_tokens": 7}, "greater than or equal to 8"),
        ({"new_tokens": 1}, "greater than or equal to 2"),
        ({"repeats": 1}, "greater than or equal to 2"),
        ({"vllm_python": "/nowhere/python"}, "no program is there"),
        ({"vllm_python": __file__}, "no program is there"),
    ],
)
def test_settings_that_measure_nothing_are_refused(changes: dict[str, object], said: str, small: Small) -> None:
    with pytest.raises(ValidationError, match=said):
        small(**changes)


def test_vllm_is_asked_only_where_its_python_is_named(
    mixtral: Checkpoint, compared: Compare, small: Small, monkeypatch: pytest.MonkeyPatch, vllm_python: str
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(side_by_side, "measure_in_vllm", lambda work, vllm, *_: asked.append(vllm.python))
    small().measure(compared({"unpruned": mixtral}))
    assert asked == []
    small(vllm_python=vllm_python).measure(compared({"unpruned": mixtral}))
    assert asked == [vllm_python]


def test_a_python_without_vllm_is_refused_before_anything_is_measured(mixtral: Checkpoint, small: Small) -> None:
    """It was found out once the models were measured in transformers, or pruned."""
    with pytest.raises(ValueError, match=r"^inference.vllm_python=.*: has no vLLM that runs"):
        small(vllm_python=sys.executable).check(mixtral, torch.device("cpu"), False)
