"""What exports say of dense models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.export.hf import HfExport
from stun_exp.export.hf_padded import HfPaddedExport
from stun_exp.export.hf_unequal import HfUnequalExport


def test_exports_about_numbers_of_experts_are_refused(tiny_model: Callable[[str], Path]) -> None:
    source = Checkpoint(tiny_model("llama"), None)
    with pytest.raises(ValueError, match="export=hf_padded: llama is dense"):
        HfPaddedExport(vllm_python=None).check(source, 0.0, True)
    with pytest.raises(ValueError, match="export=hf_unequal: llama is dense"):
        HfUnequalExport(format="per_layer_config").check(source, 0.0, True)


def test_layers_of_different_widths_are_refused_before_anything_is_pruned(tiny_model: Callable[[str], Path]) -> None:
    source: Any = Checkpoint(tiny_model("llama"), None)
    with pytest.raises(ValueError, match=r"export=hf: .* pass structured_pruner.budget=per_layer"):
        HfExport(vllm_python=None).check(source, 0.0, False)
    HfExport(vllm_python=None).check(source, 0.0, True)
