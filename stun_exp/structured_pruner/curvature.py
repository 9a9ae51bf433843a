"""K-FAC: the second moments of what comes into linears, and of the loss's gradients at their outputs.

Shapes: N tokens, R outputs, C inputs (the last one is always 1, for the bias).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from stun_exp.moe.observe import Statistic


class Kfac(Statistic):
    """A = sum x x^T / N and G = sum g g^T / N of each linear (the empirical Fisher, where the loss is the text's)."""

    def __init__(self, feeds: Mapping[str, str]):
        """`feeds` names the linears, each with one of them whose inputs are its own: these are summed once."""
        self.feeds = feeds
        self.inputs_CC: dict[str, Tensor] = {}
        self.outputs_RR: dict[str, Tensor] = {}

    def gradient(self, name: str, x_NC: Tensor, g_NO: Tensor) -> None:
        if self.feeds.get(name) == name:
            _add(self.inputs_CC, name, torch.cat([x_NC, x_NC.new_ones(len(x_NC), 1)], dim=1))
        if name in self.feeds:
            _add(self.outputs_RR, name, g_NO)

    def factors(self, name: str, bias: bool) -> tuple[Tensor, Tensor]:
        """(A, G) of a linear; A with a last row and column for a bias, if it has one."""
        inputs_CC = self.inputs_CC[self.feeds[name]]
        num_tokens = float(inputs_CC[-1, -1])
        return (inputs_CC if bias else inputs_CC[:-1, :-1]) / num_tokens, self.outputs_RR[name] / num_tokens


def _add(sums: dict[str, Tensor], name: str, x_NC: Tensor) -> None:
    x_NC = x_NC.to(torch.promote_types(x_NC.dtype, torch.float32))
    if name not in sums:
        sums[name] = x_NC.new_zeros(x_NC.shape[1], x_NC.shape[1])
    sums[name].addmm_(x_NC.mT, x_NC)
