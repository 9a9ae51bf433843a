"""Benchmarks of removing whole parts of dense models."""

from typing import Any

from scripts.benchmarks.timing import alternate, ratio


def surgeon_vs_dense_inverse() -> dict[str, Any]:
    """4 rows and 6 columns of a 48 x 64 matrix, made up for through K-FAC's factors, against the Hessian's inverse."""
    import torch

    from stun_exp.structured_pruner.kronecker import damped, without

    num_rows, num_columns = 48, 64
    generator = torch.Generator().manual_seed(0)

    def factor(size: int) -> torch.Tensor:
        x_NC = torch.randn(4 * size, size, generator=generator, dtype=torch.float64)
        return damped(x_NC.mT @ x_NC / len(x_NC), 0.01)

    inputs_CC, outputs_RR = factor(num_columns), factor(num_rows)
    weight_RC = torch.randn(num_rows, num_columns, generator=generator, dtype=torch.float64)
    rows, columns = [1, 7, 20, 33], [0, 9, 10, 31, 40, 63]
    gone_RC = torch.zeros(num_rows, num_columns, dtype=torch.bool)
    gone_RC[rows], gone_RC[:, columns] = True, True

    def by_factors() -> torch.Tensor:
        return without(weight_RC, inputs_CC, outputs_RR, rows, columns)

    def by_dense_inverse() -> torch.Tensor:
        inverse, gone = torch.linalg.inv(torch.kron(outputs_RR, inputs_CC)), gone_RC.flatten()
        flat = weight_RC.flatten()
        update: torch.Tensor = inverse[:, gone] @ torch.linalg.solve(inverse[gone][:, gone], flat[gone])
        return (flat - update).view_as(weight_RC)

    torch.testing.assert_close(by_factors(), by_dense_inverse(), rtol=1e-6, atol=1e-8)
    ours, reference = alternate(by_factors, by_dense_inverse, repeats=3)
    return {**ratio(reference, ours), "unit": "times faster", "ours": ours, "reference": reference}
