"""How far apart two experts of a layer are: the terms of STUN's Eq. 7, and two more to compare them with.

Shapes: E experts of a layer, N some of them, D hidden size, P parameters of one expert.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from scipy.spatial.distance import pdist, squareform
from torch import Tensor

RouterScale = Literal["none", "frobenius"]
CoactivationScale = Literal["mean", "count"]


def row_distance(rows_ED: Tensor) -> np.ndarray:
    """Euclidean distances of rows, (E, E) in fp64.

    By differences, not by the matrix product, which would lose the small distances: the ones that merge.
    """
    return np.asarray(squareform(pdist(rows_ED.detach().double().cpu().numpy())))


def router_distance(rows_ED: Tensor, scale: RouterScale) -> np.ndarray:
    """||W_i - W_j|| (the paper), or that over ||W||_F of the layer's whole router (the code's `division_by_norm`).

    The official code computes it in fp32.
    """
    distance_EE = row_distance(rows_ED)
    if scale == "none":
        return distance_EE
    norm = float(rows_ED.double().norm())
    if norm == 0:
        raise ValueError("expert_pruner.router_scale=frobenius: a router is all zeros; use router_scale=none")
    return distance_EE / norm


def coactivation_similarity(count_EE: Tensor, scale: CoactivationScale) -> np.ndarray:
    """a_ij: the count, or the count over its mean (the code's `divide_mean`).

    The mean is over all E^2 entries, the zero diagonal included, as in the official code.
    """
    similarity_EE = count_EE.double().cpu().numpy()
    if not similarity_EE.any():
        raise ValueError(
            "expert_pruner.lambda2: no two experts were ever active together (top-1 routing?); set lambda2=0"
        )
    return similarity_EE / similarity_EE.mean() if scale == "mean" else similarity_EE.copy()


def weight_distances(pieces: Iterable[Tensor], sizes: Sequence[int]) -> list[np.ndarray]:
    """Euclidean distances of the experts' flattened parameters within each cluster, (N, N) in fp64.

    `pieces` are the experts' parameters, (experts of all clusters, some of the parameters) each; `sizes` the clusters'
    numbers of experts. By matrix products around the clusters' means: differences would take hours for large experts.
    Distances below 1e-7 of a cluster's spread are lost to rounding.
    """
    grams = [torch.zeros(size, size, dtype=torch.float64) for size in sizes]
    for piece in pieces:
        for gram_NN, part in zip(grams, torch.split(piece, list(sizes)), strict=True):
            part_NP = part.double()
            part_NP -= part_NP.mean(0)
            gram_NN += (part_NP @ part_NP.T).cpu()
    return [_distance(gram_NN) for gram_NN in grams]


def _distance(gram_NN: Tensor) -> np.ndarray:
    square_N = gram_NN.diag()
    square_NN = (square_N[:, None] + square_N - 2 * gram_NN).clamp(min=0).fill_diagonal_(0)
    return square_NN.sqrt().numpy()
