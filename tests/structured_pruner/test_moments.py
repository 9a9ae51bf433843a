"""Mean, variance and norm of inputs against torch's own, and FLAP's variance against its code."""

import torch
from torch import Tensor

from stun_exp.structured_pruner.moments import Moments


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [3 + torch.randn(20, 5, generator=generator) * torch.arange(1, 6) for _ in range(4)]


def test_moments_are_torchs() -> None:
    moments = Moments(5)
    for x_NC in batches():
        moments.update(x_NC)
    x_NC = torch.cat(batches())
    torch.testing.assert_close(moments.mean_C(), x_NC.mean(0))
    torch.testing.assert_close(moments.variance_C(), x_NC.var(0, correction=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moments.norm_C(), x_NC.norm(dim=0))


def test_the_official_variance_is_that_of_an_aliased_buffer() -> None:
    """As published (FLAP 3bb57db, layerwrapper.py), batches of one sequence: `old` is the new mean, and the first
    sequence sets the sum to 0."""
    baseline, fluctuation = torch.zeros(5), torch.zeros(5)
    moments = Moments(5, official=True)
    for samples, x_NC in enumerate(batches()):
        moments.update(x_NC)
        old = baseline
        baseline *= samples / (samples + 1)
        baseline += x_NC.mean(0) / (samples + 1)
        if samples == 0:
            fluctuation = torch.zeros(5)
        else:
            fluctuation *= (samples - 1) / samples
            fluctuation += ((x_NC - baseline) * (x_NC - old)).sum(0) / (samples + 1)
    torch.testing.assert_close(moments.variance_C(), fluctuation, rtol=1e-4, atol=1e-4)
    true = torch.cat(batches()).var(0, correction=0)
    assert not torch.allclose(moments.variance_C() / 20, true, rtol=0.05)
