"""A program for a Python that has llm-compressor: quantizes a pruned checkpoint to 4 bits, and counts zeros that stay.

Its argument is a JSON object: `folder`, `method` (gptq or rtn), `texts` (token ids to calibrate on), `group_size`,
`quantized` (the folder to write) and `out` (the file for the counts).
"""

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any


def main(job: dict[str, Any]) -> None:
    from datasets import Dataset
    from llmcompressor import oneshot  # type: ignore[import-not-found,unused-ignore]
    from llmcompressor.modifiers.gptq import GPTQModifier  # type: ignore[import-not-found,unused-ignore]
    from llmcompressor.modifiers.quantization import QuantizationModifier  # type: ignore[import-not-found,unused-ignore]
    from transformers import AutoModelForCausalLM

    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": job["group_size"]}
    how = {
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head", "re:.*gate$", "re:.*router$"],
    }
    model = AutoModelForCausalLM.from_pretrained(job["folder"], dtype="auto")
    texts = Dataset.from_dict({"input_ids": job["texts"], "attention_mask": [[1] * len(ids) for ids in job["texts"]]})
    modifier = (GPTQModifier if job["method"] == "gptq" else QuantizationModifier)(**how)
    oneshot(
        model=model,
        recipe=modifier,
        dataset=texts,
        num_calibration_samples=len(job["texts"]),
        max_seq_length=len(job["texts"][0]),
        output_dir=job["quantized"],
    )
    del model
    counts = _zeros(Path(job["folder"]), Path(job["quantized"]))
    names = ("llmcompressor", "compressed-tensors", "torch", "transformers")
    versions = {name: importlib.metadata.version(name) for name in names}
    Path(job["out"]).write_text(json.dumps({**counts, "versions": versions}))


def _zeros(pruned: Path, quantized: Path) -> dict[str, int]:
    """Of the matrices that are packed now: their weights, those that were zero, and how many of these still are."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32  # type: ignore

    before, after = _tensors(pruned), _tensors(quantized)
    weights = zeros = kept = matrices = 0
    for key, packed in after.items():
        if not key.endswith(".weight_packed"):
            continue
        name = key.removesuffix("_packed")
        was_zero = before[name if name in before else _of_mixtral(name)] == 0
        shape = tuple(after[f"{name}_shape"].tolist())
        numbers = unpack_from_int32(packed, 4, shape)
        matrices += 1
        weights += numbers.numel()
        zeros += int(was_zero.sum())
        kept += int((was_zero & (numbers == 0)).sum())
    return {"matrices": matrices, "weights": weights, "pruned_zeros": zeros, "zeros_that_stay": kept}


def _of_mixtral(name: str) -> str:
    """The key of a weight as its owners name it: llm-compressor names an expert's parts as other models do."""
    for new, old in {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}.items():
        name = name.replace(f".{new}.", f".{old}.")
    return name


def _tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {key: tensor for file in folder.glob("*.safetensors") for key, tensor in load_file(file).items()}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
