"""Sparse kernels on a GPU, against dense ones: 2:4 by torch, and MACKO where it is installed.

Shapes: O rows (outputs) and C columns (inputs) of one matrix, T tokens.
"""

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from stun_exp.inference.records import KernelFigures
from stun_exp.inference.storage import is_two_four
from stun_exp.inference.timing import Clock, clock_of, in_turns, spread
from stun_exp.moe.families import MoEFamily
from stun_exp.moe.layers import layers_of
from stun_exp.unstructured_pruner.masks import lowest, lowest_of_neighbors

EXPERT_SHAPES = ((14336, 4096), (768, 2048))
"""(Outputs, inputs) of an expert's first matrix, in Mixtral-8x7B and in Qwen3-30B-A3B."""
TOKENS = (32, 1024)
"""Of an expert at once: a batch that decodes, and one that reads prompts."""
CALLS = 50
"""Products in one measurement."""
WHOLE = 64
"""Both sides of a matrix must be multiples of it, for either of torch's 2:4 kernels."""
Product = Callable[[Tensor], Tensor]


def halve_linears_(model: nn.Module, family: MoEFamily) -> int:
    """Gives each plain linear that has the 2:4 pattern torch's sparse kernel; how many did.

    Experts are left: they are fused, and torch has the kernel for single matrices alone.
    """
    found = 0
    for layer in layers_of(model, family):
        for _, linear in layer.linears():
            weight_OC = linear.weight.detach()
            fits = weight_OC.dtype.itemsize == 2 and not any(size % WHOLE for size in weight_OC.shape)
            if fits and is_two_four(weight_OC):
                sparse_OC = torch.sparse.to_sparse_semi_structured(weight_OC)
                linear.weight = nn.Parameter(sparse_OC, requires_grad=False)
                found += 1
    return found


def expert_products(device: torch.device, repeats: int) -> tuple[list[KernelFigures], list[str]]:
    """Products of one expert's matrix by each kernel, and why one could not be measured; nothing without a GPU."""
    figures, failed = list[KernelFigures](), list[str]()
    if device.type != "cuda":
        return figures, failed
    for measure in _measurements(device, repeats):
        try:
            figures.append(measure())
        except (RuntimeError, ImportError, NotImplementedError) as error:  # a GPU or a build without the kernel
            failed.append(f"sparse kernel: {' '.join(str(error).split())[:200]}")
    return figures, list(dict.fromkeys(failed))


def _measurements(device: torch.device, repeats: int) -> Iterator[Callable[[], KernelFigures]]:
    for shape in EXPERT_SHAPES:
        for tokens in TOKENS:
            yield partial(_two_four, *shape, tokens, device, repeats)
        if find_spec("macko_spmv") is not None:
            yield partial(_macko, *shape, device, repeats)


def _two_four(outputs: int, inputs: int, tokens: int, device: torch.device, repeats: int) -> KernelFigures:
    weight_OC = torch.randn(outputs, inputs, device=device, dtype=torch.bfloat16)
    pruned_OC = weight_OC.masked_fill(lowest_of_neighbors(weight_OC.abs(), 0.5, 4), 0)
    sparse_OC = torch.sparse.to_sparse_semi_structured(pruned_OC)
    x_TC = torch.randn(tokens, inputs, device=device, dtype=torch.bfloat16)
    dense, sparse = (partial(nn.functional.linear, weight=weight) for weight in (pruned_OC, sparse_OC))
    return against_dense("2:4, torch", dense, sparse, x_TC, outputs, repeats, clock_of(device))


def _macko(outputs: int, inputs: int, device: torch.device, repeats: int) -> KernelFigures:
    """At half zeros, for a single token: it multiplies a matrix with a vector."""
    import macko_spmv  # type: ignore[import-not-found,unused-ignore]

    weight_OC = torch.randn(outputs, inputs, device=device, dtype=torch.float16)
    pruned_OC = weight_OC.masked_fill(lowest(weight_OC.abs(), 0.5), 0)
    packed = macko_spmv.compress(pruned_OC)
    x_1C = torch.randn(1, inputs, device=device, dtype=torch.float16)
    dense = partial(nn.functional.linear, weight=pruned_OC)

    def sparse(x_1C: Tensor) -> Tensor:
        product_O: Tensor = macko_spmv.multiply(packed, x_1C[0])
        return product_O[None]

    return against_dense("MACKO, half zeros", dense, sparse, x_1C, outputs, repeats, clock_of(device))


def against_dense(
    kernel: str, dense: Product, sparse: Product, x_TC: Tensor, outputs: int, repeats: int, now: Clock
) -> KernelFigures:
    """Milliseconds of one product by each, measured in turns, and how far the results are apart."""
    expected_TO, found_TO = dense(x_TC).float(), sparse(x_TC).float()
    error = float((found_TO - expected_TO).abs().max() / expected_TO.abs().max())

    def milliseconds(product: Product) -> float:
        start = now()
        for _ in range(CALLS):
            product(x_TC)
        return 1000 * (now() - start) / CALLS

    dense_ms, sparse_ms = (
        spread(times) for times in in_turns([lambda: milliseconds(dense), lambda: milliseconds(sparse)], repeats)
    )
    return KernelFigures(kernel, outputs, x_TC.shape[1], len(x_TC), dense_ms, sparse_ms, error)
