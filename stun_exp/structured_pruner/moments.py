"""Mean, variance and norm of the inputs of a matrix.

Shapes: N tokens, C inputs.
"""

import torch
from torch import Tensor


class Moments:
    """Sums over all tokens, in 64 bits: mean, variance and norm of each input.

    With `official` the variance is that of FLAP's code, which takes a call for one sequence: the buffer of the old mean
    is the one that the new mean is written to, and of the first sequence nothing is counted.
    """

    def __init__(self, num_inputs: int, official: bool = False):
        self.count = 0
        self.sum_C = torch.zeros(num_inputs, dtype=torch.float64)
        self.squares_C = torch.zeros(num_inputs, dtype=torch.float64)
        self.official = official
        self.calls = 0
        self.flap_mean_C = torch.zeros(num_inputs, dtype=torch.float64)
        self.flap_variance_C = torch.zeros(num_inputs, dtype=torch.float64)

    def update(self, x_NC: Tensor, gate_N: Tensor | None = None) -> None:
        x_NC = x_NC.double()
        self.count += len(x_NC)
        self.sum_C = self.sum_C.to(x_NC.device) + x_NC.sum(0)
        self.squares_C = self.squares_C.to(x_NC.device) + x_NC.square().sum(0)
        if self.official:
            self._update_as_flap(x_NC)

    def _update_as_flap(self, x_NC: Tensor) -> None:
        # layerwrapper.py, BiasGPT.add_batch, for a batch of one sequence.
        n = self.calls
        self.flap_mean_C = (self.flap_mean_C.to(x_NC.device) * n + x_NC.mean(0)) / (n + 1)
        if n:
            spread_C = (x_NC - self.flap_mean_C).square().sum(0)
            self.flap_variance_C = self.flap_variance_C.to(x_NC.device) * (n - 1) / n + spread_C / (n + 1)
        self.calls += 1

    def mean_C(self) -> Tensor:
        return (self.sum_C / max(self.count, 1)).float()

    def variance_C(self) -> Tensor:
        """The variance over all tokens; FLAP's, which is larger by the tokens of a sequence, if that is asked for."""
        if self.official:
            return self.flap_variance_C.float()
        mean_C = self.sum_C / max(self.count, 1)
        return (self.squares_C / max(self.count, 1) - mean_C.square()).clamp(min=0).float()

    def norm_C(self) -> Tensor:
        return self.squares_C.sqrt().float()
