"""The loss of every subset at once, for routers that renormalize the chosen experts' gates.

Then a token's squared error depends on the removed set S through its new top-k alone, which few of the experts in S
decide. As a function of S it is a sum over subsets Q of S, e(S) = sum_{Q <= S} g(Q), whose coefficients g (its Möbius
transform) vanish but for the few Q that reach down the token's ranks without leaving K of them out: for K = 2 and 8
removed of 32 experts, 45 sets a token out of 15 million. So the coefficients of all tokens are added up in one table
over the sets, and one sum over subsets (a zeta transform) turns the table into the squared error of every set.

Sets of one size are numbered in colexicographic order: rank {s_1 < ... < s_m} = sum_j C(s_j, j). Shapes: T tokens, B
batches, N sets of one size, M elements of a set, K experts a token.
"""

from collections.abc import Sequence
from itertools import combinations
from math import comb

import torch
from torch import Tensor

from stun_exp.expert_pruner.reconstruction.token_grams import TokenChunk, TokenGrams

TABLE_BYTES = 2**30
"""Memory for the table; batches that do not fit are done in turn."""
ROWS = 2**18
"""Sets updated at once, so that temporary copies stay small."""


def num_sets(num_experts: int, num_removed: int) -> int:
    """How many sets the table has: all sets of at most `num_removed` experts."""
    return sum(comb(num_experts, size) for size in range(num_removed + 1))


def best_subset(grams: TokenGrams, num_experts: int, num_removed: int) -> tuple[tuple[int, ...], float]:
    """The set of removed experts with the least loss of all sets of its size, and the loss; of equals the first."""
    lattice = _Lattice(num_experts, num_removed)
    loss_N = torch.zeros(comb(num_experts, num_removed), dtype=torch.float64)
    at_once = max(TABLE_BYTES // (8 * num_sets(num_experts, num_removed)), 1)
    for first in range(0, grams.num_batches, at_once):
        batches = range(first, min(first + at_once, grams.num_batches))
        squares_NB = lattice.squared_errors(grams, batches)
        loss_N += squares_NB.clamp_(min=0).sqrt_().sum(1)
    best = int(loss_N.argmin())
    return tuple(lattice.sets[num_removed][best].tolist()), float(loss_N[best])


class _Lattice:
    """All sets of at most `num_removed` of the experts."""

    def __init__(self, num_experts: int, num_removed: int):
        self.num_removed = num_removed
        self.sets = _subsets(num_experts, num_removed)
        """By size: (N, M), ascending in each row, rows in colexicographic order."""
        sizes = range(num_removed + 2)
        self.binomial = torch.tensor([[comb(n, size) for size in sizes] for n in range(num_experts + 1)])

    def squared_errors(self, grams: TokenGrams, batches: range) -> Tensor:
        """(N, B): each batch's squared error for every set of `num_removed` experts."""
        table = [torch.zeros(len(sets), len(batches), dtype=torch.float64) for sets in self.sets]
        for chunk in grams.chunks():
            if chunk.batch in batches:
                self._add_coefficients([level[:, chunk.batch - batches[0]] for level in table], chunk)
        self._sum_over_subsets(table)
        return table[-1]

    def _add_coefficients(self, columns: Sequence[Tensor], chunk: TokenChunk) -> None:
        """Adds every token's g(Q) to the column of its batch.

        A token is served by the ranks A = {a_1 < ... < a_K} if all other ranks before a_K are removed (P) and A is not.
        In indicators r of removal that is prod_P r * prod_A (1 - r), so A's error counts with (-1)^|X| in Q = P + X
        for every X in A.
        """
        top_k = chunk.top_k
        coefficients: dict[tuple[int, ...], Tensor] = {}
        for ranks in combinations(range(top_k + self.num_removed), top_k):
            if ranks[-1] >= chunk.num_ranks:
                continue
            gone = set(range(ranks[-1])) - set(ranks)
            ranks_TK = torch.tensor(ranks).expand(len(chunk.order_TE), -1)
            error_T = chunk.errors_T(ranks_TK, chunk.value_TE[:, 0])
            for size in range(min(top_k, self.num_removed - len(gone)) + 1):
                for also in combinations(ranks, size):
                    places = tuple(sorted(gone.union(also)))
                    term_T = error_T if size % 2 == 0 else -error_T
                    coefficients[places] = coefficients[places] + term_T if places in coefficients else term_T
        for places, value_T in coefficients.items():
            experts_TM = chunk.order_TE[:, list(places)].sort(dim=1).values
            columns[len(places)].index_add_(0, self._rank(experts_TM), value_T)

    def _rank(self, sets_NM: Tensor) -> Tensor:
        """The number of each set among those of its size."""
        rank_N = torch.zeros(len(sets_NM), dtype=torch.int64)
        for place in range(sets_NM.shape[1]):
            rank_N += self.binomial[:, place + 1][sets_NM[:, place].int()]
        return rank_N

    def _sum_over_subsets(self, table: list[Tensor]) -> None:
        """Turns g into e, in place.

        After step j a set holds the sum over its subsets that lack nothing but some of its j lowest elements: those
        with the j-th are there already, those without it are what the set without it holds.
        """
        for place in range(self.num_removed):
            for size in range(self.num_removed, place, -1):
                sets_NM, smaller = self.sets[size], table[size - 1]
                for rows in range(0, len(sets_NM), ROWS):
                    some_NM = sets_NM[rows : rows + ROWS]
                    without_NM = torch.cat([some_NM[:, :place], some_NM[:, place + 1 :]], 1)
                    table[size][rows : rows + ROWS] += smaller[self._rank(without_NM)]


def _subsets(num_experts: int, largest: int) -> list[Tensor]:
    """Sets of each size up to the largest in colexicographic order: a lower greatest element comes first."""
    levels = [torch.zeros(1, 0, dtype=torch.uint8)]
    for size in range(1, largest + 1):
        parts = []
        for greatest in range(size - 1, num_experts):
            rest_NM = levels[-1][: comb(greatest, size - 1)]
            parts.append(torch.cat([rest_NM, rest_NM.new_full((len(rest_NM), 1), greatest)], 1))
        levels.append(torch.cat(parts))
    return levels
