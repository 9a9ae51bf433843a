"""Makes a model in which every expert has a noisy copy: what an expert pruner has to find.

The copies come after the originals, with router rows of their own. The noise is normal, and its size a share of each
tensor's own spread. A token still chooses as many experts as before, so the model with copies is another one than the
original; without the copies it is the original again, tensor for tensor.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralForCausalLM

from stun_exp.toy import MODELS


def with_copies(model: MixtralForCausalLM, noise: float, seed: int = 0) -> MixtralForCausalLM:
    """A Mixtral with twice the experts: those of `model`, and a noisy copy of each."""
    config = type(model.config).from_dict(model.config.to_dict() | {"num_local_experts": 2 * _count(model)})
    generator = torch.Generator().manual_seed(seed)
    doubled = MixtralForCausalLM(config).to(model.dtype)
    source = model.state_dict()
    for name, tensor in doubled.state_dict().items():
        own = source[name]
        if tensor.shape != own.shape:
            deviation = noise * own.float().std() * torch.randn(own.shape, generator=generator)
            own = torch.cat([own, (own.float() + deviation).to(own.dtype)])
        tensor.copy_(own)
    return doubled


def _count(model: MixtralForCausalLM) -> int:
    count: int = model.config.num_local_experts
    return count


def main() -> None:
    """Writes the model with its tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--noise", type=float, default=0.3, help="over each tensor's standard deviation")
    parser.add_argument("--source", type=Path, default=MODELS["toy_moe"], help="a Mixtral checkpoint")
    arguments = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(arguments.source, dtype="auto")
    with_copies(model, arguments.noise).save_pretrained(arguments.out)
    AutoTokenizer.from_pretrained(arguments.source).save_pretrained(arguments.out)
    print(f"stun method=stun model=local model.path={arguments.out} sparsity=0.5 sparsity_scope=experts")


if __name__ == "__main__":
    main()
