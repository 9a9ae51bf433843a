"""Measure size and speed in use."""

import os
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from stun_exp.config.component import Component
from stun_exp.inference.records import KV_TOKENS, Workload
from stun_exp.utils.paths import expanded, is_file

if TYPE_CHECKING:
    import torch

    from stun_exp.checkpoint.architecture import Architecture
    from stun_exp.inference.protocol import Compared
    from stun_exp.inference.records import Comparison
    from stun_exp.serving.vllm_process import InstalledVLLM


class MeasureInference(Component):
    """Bytes, experts and tokens a second of the pruned model and the unpruned one, in turns in one process."""

    batch_sizes: tuple[int, ...] = Field(min_length=1)
    prompt_tokens: int = Field(ge=KV_TOKENS)
    """Of each sequence, real text."""
    new_tokens: int = Field(ge=2)
    """Generated behind each prompt."""
    repeats: int = Field(ge=2)
    """Measurements of each figure, beside a first one that does not count."""
    vllm_python: str | None
    """The Python of an environment with vLLM, which then measures the same models; null for transformers alone."""

    @field_validator("batch_sizes")
    @classmethod
    def _are_sizes(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if min(sizes) < 1 or len(set(sizes)) < len(sizes):
            raise ValueError("must be different numbers of sequences, each 1 or more; pass [1,8,32], say")
        return sizes

    @field_validator("vllm_python")
    @classmethod
    def _is_program(cls, path: str | None) -> str | None:
        if path is not None and not (is_file(expanded(path)) and os.access(expanded(path), os.X_OK)):
            raise ValueError("no program is there; give the bin/python of an environment with vLLM, or null")
        return path

    @property
    def workload(self) -> Workload:
        """What each model is given to do."""
        return Workload(self.batch_sizes, self.prompt_tokens, self.new_tokens, self.repeats)

    def check(self, source: "Architecture", device: "torch.device", nf4: bool) -> None:
        from stun_exp.inference.fitting import check_fits, check_length

        check_length(source, self.workload)
        check_fits([source, source], device, nf4)
        self._vllm()

    def measure(self, compared: "Compared") -> "Comparison":
        from stun_exp.inference.side_by_side import compare

        return compare(compared, self.workload, self._vllm())

    def _vllm(self) -> "InstalledVLLM | None":
        """ValueError if the Python has none."""
        from stun_exp.serving.vllm_process import find_vllm

        return find_vllm(str(expanded(self.vllm_python)), "inference.vllm_python") if self.vllm_python else None
