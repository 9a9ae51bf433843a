"""How redundant a layer's experts are, by what they weigh, what they give, and how the router treats them.

Shapes: E experts of a layer, P parameters of one expert, D hidden size.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


def nearest_distances(rows_ED: Tensor) -> Tensor:
    """How far each expert's row is from the nearest other, over the mean length of a row, (E,) in fp64.

    0 for a row that is there twice; about sqrt(2) for rows that are drawn at random.
    """
    rows_ED = rows_ED.double()
    length = rows_ED.norm(dim=1).mean()
    centered_ED = rows_ED - rows_ED.mean(0)  # by inner products, which lose the small distances of large numbers
    square_E = centered_ED.square().sum(1)
    square_EE = square_E[:, None] + square_E - 2 * centered_ED @ centered_ED.T
    nearest_E = square_EE.clamp(min=0).fill_diagonal_(torch.inf).min(1).values.sqrt()
    return nearest_E / length if length else torch.zeros_like(nearest_E)


def nearest_cosine(gram_EE: Tensor) -> float:
    """The cosine between an expert and the one most like it, on average, from their inner products.

    1 for copies, 0 for what is orthogonal; an expert of length 0 has cosine 0 with all others.
    """
    length_E = gram_EE.diag().clamp(min=0).sqrt()
    cosine_EE = gram_EE / (length_E[:, None] * length_E)
    cosine_EE = torch.where(cosine_EE.isfinite(), cosine_EE, 0.0)
    return float(cosine_EE.fill_diagonal_(-torch.inf).max(1).values.mean())


def weight_gram(pieces: Iterable[Tensor]) -> Tensor:
    """Inner products of the experts' flattened parameters, (E, E) in fp64, from pieces (E, some of the P)."""
    total = torch.zeros((), dtype=torch.float64)
    for piece in pieces:
        total = total + (piece @ piece.T).double().cpu()
    return total


def effective_number(load_E: Tensor) -> float:
    """exp of the entropy of the experts' load: E where all get as many tokens, 1 where one gets all."""
    share_E = load_E.double() / load_E.sum()
    return float(torch.special.entr(share_E).sum().exp())


def gini(load_E: Tensor) -> float:
    """The Gini coefficient of the experts' load: 0 where all get as many tokens, (E - 1) / E where one gets all."""
    sorted_E = load_E.double().sort().values
    rank_E = torch.arange(1, len(load_E) + 1, dtype=torch.float64)
    return float((2 * (rank_E * sorted_E).sum() / sorted_E.sum() - len(load_E) - 1) / len(load_E))
