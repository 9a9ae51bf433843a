"""Benchmarks of pruning weights: Wanda's masks, and SparseGPT over all experts at once."""

from typing import Any

from scripts.benchmarks.timing import alternate, ratio


def wanda_mask_vs_sort() -> dict[str, Any]:
    """The mask of one 4096 x 14336 matrix at 50 %, against a stable sort of each row."""
    import torch

    from stun_exp.unstructured_pruner.masks import lowest

    saliency_RC = torch.rand(4096, 14336, generator=torch.Generator().manual_seed(0))

    def by_sort() -> torch.Tensor:
        order_RC = saliency_RC.argsort(dim=1, stable=True)[:, : saliency_RC.shape[1] // 2]
        return torch.zeros_like(saliency_RC, dtype=torch.bool).scatter_(1, order_RC, True)

    assert torch.equal(lowest(saliency_RC, 0.5), by_sort())
    ours, reference = alternate(lambda: lowest(saliency_RC, 0.5), by_sort)
    return {**ratio(reference, ours), "unit": "times faster", "ours": ours, "reference": reference}


def sparsegpt_batched_vs_single() -> dict[str, Any]:
    """SparseGPT on gate and up of 32 experts, 256 x 512 each, against one matrix and its own Hessian at a time."""
    import torch

    from stun_exp.unstructured_pruner.protocol import Task
    from stun_exp.unstructured_pruner.sparsegpt import SparseGPT

    pruner = SparseGPT(
        attention=True,
        pattern="unstructured",
        block_size=128,
        damping=0.01,
        damping_over="alive",
        inputs="pruned",
        min_tokens=1,
        starved="every_token",
        experts_at_once=None,
    )
    generator = torch.Generator().manual_seed(0)
    mixing_CC = torch.randn(512, 512, generator=generator) / 512**0.5
    weights_EHOC = torch.randn(32, 2, 256, 512, generator=generator)
    hessians = [pruner.statistic(512) for _ in range(32)]
    for hessian in hessians:
        hessian.update(torch.randn(2048, 512, generator=generator) @ mixing_CC)

    def tasks(pruned_EHOC: torch.Tensor) -> list[Task]:
        return [
            Task(f"{expert} {half}", pruned_EHOC[expert, half], hessian, 0.5)
            for expert, hessian in enumerate(hessians)
            for half in range(2)
        ]

    def batched() -> torch.Tensor:
        pruned_EHOC = weights_EHOC.clone()
        assert pruner.prune_(tasks(pruned_EHOC)) == []
        return pruned_EHOC

    def single() -> torch.Tensor:
        pruned_EHOC = weights_EHOC.clone()
        for task in tasks(pruned_EHOC):
            assert pruner.prune_([task]) == []
        return pruned_EHOC

    assert torch.equal(batched() == 0, single() == 0)
    torch.testing.assert_close(batched(), single(), rtol=1e-3, atol=1e-4)
    ours, reference = alternate(batched, single)
    return {**ratio(reference, ours), "unit": "times faster", "ours": ours, "reference": reference}
